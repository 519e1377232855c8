"""cmb-jax simulate: a tree of simulated subjects with their truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cmb_jax.cli.common import check_output
from cmb_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Simulate subjects with known microbleeds and mimics; the same seed gives the same bytes."""

    out: Path
    """folder to make: a BIDS-like tree with the truth in derivatives/truth."""
    subjects: int = 1
    """how many."""
    seed: int = 0
    """of the first subject; the next ones count up."""
    protocol: str = "iso05"
    """acquisition by name: iso05, iso08, sabre, rss, thick3, swi7t, gre5."""
    tier: str = "easy"
    """easy or hard: how faint the microbleeds, how many the mimics, how good the scan; end_on: microbleeds
    among veins of their own caliber that cross the slices."""
    anatomy: tuple[str, ...] = ("mni2009c",)
    """heads, taken in turn."""
    mean_cmbs: float | None = None
    """mean number of microbleeds; default: as in patients."""
    te_ms: tuple[float, float] | None = None
    """range of the echo time in ms; default: the protocol's."""
    b0_t: float | None = None
    """field strength in T; default: the protocol's."""
    snr: tuple[float, float] | None = None
    """range of the signal-to-noise ratio; default: the protocol's."""
    diameters_mm: tuple[float, float] | None = None
    """smallest and largest true diameter of a microbleed, used as they are."""
    gap_mm: float = 1.0
    """least distance between the borders of two lesions; negative lets them overlap."""
    overwrite: bool = False
    """replace the folder if it exists."""


def run(options: SimulateOptions) -> None:
    """Simulate and write.

    Raises:
      UserError: impossible settings, an unknown protocol, tier or anatomy, a folder that exists.
    """
    if options.subjects < 1:
        raise UserError(f"--subjects {options.subjects}: give at least 1")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.phantom import SubjectSettings, simulate_tree
    from cmb_jax.phantom.settings import check_settings

    settings = SubjectSettings(
        protocol=options.protocol,
        tier=options.tier,
        mean_cmbs=options.mean_cmbs,
        te_ms=options.te_ms,
        b0_t=options.b0_t,
        snr=options.snr,
        diameters_mm=options.diameters_mm,
        gap_mm=options.gap_mm,
    )
    check_settings(settings)
    check_output(options.out, options.overwrite)
    use_compilation_cache()
    simulate_tree(
        options.out,
        options.subjects,
        options.seed,
        settings,
        anatomies=options.anatomy,
        overwrite=options.overwrite,
    )
    print(f"written: {options.out}")
