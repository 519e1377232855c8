"""cmb-jax simulate: a tree of simulated subjects with their truth."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.commands.common import use_compilation_cache
from cmb_jax.commands.predict import check_output
from cmb_jax.errors import UserError
from cmb_jax.phantom import PROTOCOLS, simulate_tree


def run(*, out: Path, subjects: int, seed: int, protocol: str, overwrite: bool = False) -> None:
    """Simulate and write.

    Raises:
      UserError: unknown protocol, a count below one, a folder that exists.
    """
    if subjects < 1:
        raise UserError(f"--subjects {subjects}: give at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: unknown; choose one of {', '.join(PROTOCOLS)}")
    check_output(out, overwrite)
    use_compilation_cache()
    simulate_tree(out, subjects, seed, protocol, progress=True, overwrite=overwrite)
    print(f"written: {out}")
