"""Train a grid of variants of the detector with several seeds, and compare them."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Train a grid of variants and seeds and compare them; run again to go on."""

    config: Path
    """file with get_grid(), such as configs/ablation.py."""
    workdir: Path
    """a folder for each run; tables; ablation.html."""
    validation: Path | None = None
    """folder of prepared subjects (seed-*) to choose thresholds by; default: simulated ones."""
    test: Path | None = None
    """folder of prepared subjects (seed-*) to compare on; default: simulated ones."""
    train: bool = True
    """train what is not finished; --no-train: tables of the finished runs alone."""
    samples: int = 2000
    """bootstrap resamples."""


def run(options: AblateOptions) -> None:
    """Train what is not finished, compare, write tables and page.

    Raises:
      UserError: a grid, folders or runs that cannot be used.
    """
    from absl import flags

    from cmb_jax.devices import keep_freed_memory
    from cmb_jax.research.ablation import run_study
    from cmb_jax.research.runs import grid_from_file

    keep_freed_memory()
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    run_study(
        grid_from_file(options.config),
        options.workdir,
        validation=options.validation,
        test=options.test,
        training=options.train,
        samples=options.samples,
    )
