"""cmb-jax compare: two results of one patient in, what changed out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cmb_jax.commands.common import check_output, existing_file, use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.followup.compare import compare
from cmb_jax.followup.outputs import write_comparison
from cmb_jax.followup.time_point import read_time_point

_MATCH_MM = (1.0, 10.0)


def run(
    *,
    baseline: Path,
    followup: Path,
    baseline_image: Path,
    followup_image: Path,
    out: Path,
    match_mm: float,
    overwrite: bool = False,
) -> None:
    """Read both, compare, write; progress on stderr, the statement and the report's place on stdout.

    Raises:
      UserError: anything wrong with the folders, the images or the arguments.
    """
    tick = time.perf_counter()
    check_output(out, overwrite)
    if not _MATCH_MM[0] <= match_mm <= _MATCH_MM[1]:
        raise UserError(f"--match-mm {match_mm:g}: allowed are {_MATCH_MM[0]:g} to {_MATCH_MM[1]:g} mm")
    for path, name in ((baseline_image, "baseline's image"), (followup_image, "follow-up's image")):
        existing_file(path, name)
    use_compilation_cache()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - tick:6.1f} s] {text}", file=sys.stderr, flush=True)

    say("reading both scans and finding their brains")
    first = read_time_point("baseline", "--baseline-image", baseline, baseline_image)
    second = read_time_point("follow-up", "--followup-image", followup, followup_image)
    comparison = compare(first, second, match_mm=match_mm, progress=say)
    say("writing the report")
    write_comparison(comparison, out, overwrite=overwrite)
    # what is wrong in a JSON file is quoted from it, so it goes to the screen alone
    for line in (*first.facts.notes, *second.facts.notes, *comparison.warnings):
        print(f"warning: {line}", file=sys.stderr)
    print(" ".join(comparison.statement))
    print(f"Report: {out / 'report.html'} (research use only)")
