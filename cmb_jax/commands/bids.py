"""cmb-jax bids: the BIDS App. Participant level: scans to derivatives; group level: one table over all."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from cmb_jax.bids_app.dataset import check_out, write_dataset_files
from cmb_jax.bids_app.group import write_group
from cmb_jax.bids_app.participants import (
    Outcome,
    Pipeline,
    Say,
    Selection,
    Status,
    run_participants,
    select_participants,
)
from cmb_jax.bids_app.scan_images import PhaseOptions, ScanImages
from cmb_jax.commands.common import stopwatch, use_compilation_cache
from cmb_jax.commands.predict import check_threshold
from cmb_jax.datasets.bids.layout import BidsLayout, read_layout
from cmb_jax.datasets.bids.names import label_of
from cmb_jax.errors import UserError
from cmb_jax.inference.predict import Prediction, load_detector
from cmb_jax.inference.scan import PhaseSign
from cmb_jax.io.phase import PhaseRange

SOME_FAILED_CODE = 1
"""Exit code if some scans failed; 2 means that nothing was done."""


def run(
    *,
    data: Path,
    out: Path,
    level: str,
    participant_label: tuple[str, ...] = (),
    session_label: tuple[str, ...] = (),
    acq_label: str | None = None,
    phase_sign: PhaseSign = "auto",
    phase_range: str = "auto",
    weights: str = "small",
    threshold: float | None = None,
    overwrite: bool = False,
) -> None:
    """Run one level of analysis; progress on stderr, the end's summary on stdout.

    Raises:
      UserError: anything wrong with the data set as a whole or the arguments, or no scan that can be used.
      SystemExit: with code 1 if some scans failed.
    """
    layout = read_layout(data)
    labels = select_participants(layout, participant_label)
    check_out(data, out)
    for problem in layout.problems:
        print(f"note: {problem.where}: {problem.what}", file=sys.stderr)
    if level == "group":
        _group(layout, out, labels)
        return
    selection = Selection(
        participants=labels,
        sessions=tuple(label_of(text, "ses") for text in session_label),
        acquisition=None if acq_label is None else label_of(acq_label, "acq"),
    )
    check_threshold(threshold)
    use_compilation_cache()
    phase = PhaseOptions(sign=phase_sign, stored=None if phase_range == "auto" else PhaseRange(phase_range))
    pipeline = detector_pipeline(weights, threshold, phase)
    write_dataset_files(data, out)
    outcomes = run_participants(layout, out, selection, pipeline, overwrite=overwrite, say=stopwatch())
    _report(outcomes, data, out)


def detector_pipeline(weights: str, threshold: float | None, phase: PhaseOptions) -> Pipeline:
    """The trained detector as a pipeline.

    Raises:
      UserError: no such weights.
    """
    detector = load_detector(weights)

    def detect(images: ScanImages, say: Say) -> Prediction:
        return detector.predict(
            images.swi,
            images.phase,
            images.magnitude,
            phase_sign=images.phase_sign,
            phase_range=images.phase_range,
            customary_sign=images.customary_sign,
            threshold=threshold,
            progress=say,
        )

    cut = detector.config.inference.score_threshold if threshold is None else threshold
    return Pipeline(bundle=detector.bundle, detect=detect, threshold=cut, phase=phase)


def _report(outcomes: list[Outcome], data: Path, out: Path) -> None:
    counts = Counter(outcome.status for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.status in (Status.FAILED, Status.STALE)]
    if not counts[Status.DONE] and not counts[Status.SKIPPED]:
        more = f" (and {len(outcomes) - 1} more)" if len(outcomes) > 1 else ""
        first = (failed or outcomes)[0]
        raise UserError(f"{data}: nothing was done: {first.name}: {first.reason}{more}")
    print(", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status]))
    for outcome in failed:
        print(f"{outcome.name}: {outcome.status.value}: {outcome.reason}")
    print(f"written: {out} (research use only); one table over all: cmb-jax bids DIR OUT group")
    if failed:
        sys.exit(SOME_FAILED_CODE)


def _group(layout: BidsLayout, out: Path, labels: tuple[str, ...]) -> None:
    if not out.is_dir():
        raise UserError(f"{out}: no results there; run the participant level first")
    write_dataset_files(layout.root, out)
    summary = write_group(layout, out, labels)
    print(", ".join(f"{count} {status}" for status, count in summary.statuses.items()))
    for line in summary.failures:
        print(f"failed: {line}")
    for line in summary.mixed:
        print(f"note: counts should not be compared as they stand: {line}")
    print(f"written: {summary.path} (research use only)")
    if summary.failures:
        sys.exit(SOME_FAILED_CODE)
