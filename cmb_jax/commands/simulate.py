"""cmb-jax simulate: a tree of simulated subjects with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmb_jax.commands.common import check_output, use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.phantom import SubjectSettings, simulate_tree
from cmb_jax.phantom.tiers import check_settings


def run(
    *,
    out: Path,
    subjects: int,
    seed: int,
    settings: SubjectSettings,
    anatomies: Sequence[str],
    overwrite: bool = False,
) -> None:
    """Simulate and write.

    Raises:
      UserError: impossible settings, an unknown protocol, tier or anatomy, a folder that exists.
    """
    if subjects < 1:
        raise UserError(f"--subjects {subjects}: give at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    check_settings(settings)
    check_output(out, overwrite)
    use_compilation_cache()
    simulate_tree(out, subjects, seed, settings, anatomies=anatomies, overwrite=overwrite)
    print(f"written: {out}")
