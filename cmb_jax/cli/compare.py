"""cmb-jax compare: what changed between two results of one patient."""

import dataclasses
import sys
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.progress import stopwatch

_MATCH_MM = (1.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two scans of one patient: which microbleeds are new, resolved, stable or uncertain."""

    baseline: Path
    """folder that `cmb-jax predict` wrote for the earlier scan."""
    followup: Path
    """that of the later scan."""
    baseline_image: Path
    """the image that was --swi of the baseline's prediction."""
    followup_image: Path
    """the image that was --swi of the follow-up's prediction."""
    out: Path
    """folder to make: comparison.csv, comparison.json, report.html."""
    match_mm: float = 4.0
    """greatest distance in mm of one lesion at two times, after registration."""
    overwrite: bool = False
    """replace the folder if it exists."""


def run(options: CompareOptions) -> None:
    """Read both, compare, write; progress on stderr, the statement and the report's place on stdout."""
    say = stopwatch()
    if not _MATCH_MM[0] <= options.match_mm <= _MATCH_MM[1]:
        raise UserError(
            f"--match-mm {options.match_mm:g}: allowed are {_MATCH_MM[0]:g} to {_MATCH_MM[1]:g} mm"
        )
    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.followup.compare import compare, write_comparison
    from cmb_jax.followup.time_point import read_time_point

    use_compilation_cache()
    say("reading both scans and finding their brains")
    first = read_time_point("baseline", "--baseline-image", options.baseline, options.baseline_image)
    second = read_time_point("follow-up", "--followup-image", options.followup, options.followup_image)
    comparison = compare(first, second, match_mm=options.match_mm, progress=say)
    say("writing the report")
    write_comparison(comparison, options.out, overwrite=options.overwrite)
    # notes on JSON files quote them and may name the patient: they are printed, never written
    for line in (*first.facts.notes, *second.facts.notes, *comparison.content.warnings):
        print(f"warning: {line}", file=sys.stderr)
    print(" ".join(comparison.content.statement))
    print(f"Report: {options.out / 'report.html'} (research use only)")
