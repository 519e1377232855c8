"""The participant level: every scan by itself, so that one that fails stops no other."""

from __future__ import annotations

import dataclasses
import enum
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cmb_jax.bids_app.dataset import failure_log, result_files, write_json
from cmb_jax.bids_app.result import Making, what_changed, write_result
from cmb_jax.bids_app.scan_images import PhaseOptions, ScanImages, read_scan_images, taken_images
from cmb_jax.datasets.bids.choice import Choice, choose
from cmb_jax.datasets.bids.layout import NO_IMAGES, BidsLayout, Scan
from cmb_jax.datasets.bids.names import label_of
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.predict import Prediction

Say = Callable[[str], None]


class Status(enum.Enum):
    """How a scan came out."""

    DONE = "done"
    SKIPPED = "skipped"  # done by an earlier run
    STALE = "made otherwise"  # done by an earlier run with other weights, settings or images
    FAILED = "failed"
    NO_IMAGES = "no images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a scan."""

    name: str  # sub-01_ses-2_run-1
    status: Status
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How a scan is worked on."""

    bundle: WeightsBundle
    detect: Callable[[ScanImages, Say], Prediction]
    threshold: float
    phase: PhaseOptions

    @property
    def making(self) -> Making:
        """What results depend on besides the images."""
        return Making(
            weights_name=self.bundle.path.name,
            weights_sha256=self.bundle.sha256,
            threshold=round(self.threshold, 6),
            phase_sign=self.phase.sign,
            phase_range="auto" if self.phase.stored is None else self.phase.stored.value,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which scans are worked on; empty: all."""

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    acquisition: str | None = None

    def of(self, scans: tuple[Scan, ...]) -> tuple[Scan, ...]:
        """The scans of a participant that are selected, with the images that are."""
        fitting = [scan for scan in scans if not self.sessions or scan.session in self.sessions]
        named = [scan.of_acquisition(self.acquisition) for scan in fitting]
        return tuple(scan for scan in named if scan.files)


def select_participants(layout: BidsLayout, asked: Sequence[str]) -> tuple[str, ...]:
    """Labels of the participants asked for, with or without sub-; all of them if none is.

    Raises:
        UserError: a label that is none, or that the data set has not.
    """
    if not asked:
        return layout.participants
    labels = tuple(dict.fromkeys(label_of(text, "sub") for text in asked))
    missing = [label for label in labels if label not in layout.participants]
    if missing:
        there = ", ".join(layout.participants[:10]) + (", ..." if len(layout.participants) > 10 else "")
        raise UserError(f"{layout.root}: has no participant {', '.join(missing)}; there are {there}")
    return labels


def run_participants(
    layout: BidsLayout,
    out: Path,
    selection: Selection,
    pipeline: Pipeline,
    *,
    overwrite: bool = False,
    say: Say,
) -> list[Outcome]:
    """Find microbleeds in the selected scans and write the derivatives.

    A scan that an earlier run has finished is left as it is, unless `overwrite` is set. A scan that fails
    leaves its reason in logs/.

    Args:
        layout: of the source data set.
        out: the data set of derivatives, checked and with its own files.
        selection: of labels that exist.
        pipeline: the detector and its settings.
        overwrite: make finished results again.
        say: told what is being done, a line at a time.
    """
    outcomes: list[Outcome] = []
    for number, label in enumerate(selection.participants, start=1):
        say(f"participant {number} of {len(selection.participants)}: sub-{label}")
        try:
            scans = layout.scans(label)
        except UserError as error:
            outcomes.append(Outcome(name=f"sub-{label}", status=Status.FAILED, reason=str(error)))
            say(f"  sub-{label}: failed: {error}")
            continue
        selected = selection.of(scans)
        if not selected:
            reason = f"{NO_IMAGES} of the session or acquisition asked for" if scans else NO_IMAGES
            outcomes.append(Outcome(name=f"sub-{label}", status=Status.NO_IMAGES, reason=reason))
            say(f"  sub-{label}: {reason}")
        outcomes += [_run_scan(scan, layout.root, out, pipeline, overwrite, say) for scan in selected]
    return outcomes


def _run_scan(scan: Scan, root: Path, out: Path, pipeline: Pipeline, overwrite: bool, say: Say) -> Outcome:
    """Work on one scan; whatever is wrong with it becomes its outcome and its log."""
    try:
        choice = choose(scan, root)
        for line in choice_lines(choice):
            say(f"  {line}")
        outcome = _work(choice, out, pipeline, overwrite, say)
    except UserError as error:
        outcome = Outcome(name=scan.name, status=Status.FAILED, reason=_without_paths(str(error), root, out))
    except Exception as error:  # the other scans must go on, and the reason must not be lost
        traceback.print_exc()
        reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it"
        outcome = Outcome(name=scan.name, status=Status.FAILED, reason=_without_paths(reason, root, out))
    log = failure_log(out, scan)
    if outcome.status is Status.FAILED:
        say(f"  {scan.name}: failed: {outcome.reason}")
        write_json(log, {"Scan": scan.name, "Reason": outcome.reason})
    elif outcome.status in (Status.DONE, Status.SKIPPED):
        log.unlink(missing_ok=True)
    return outcome


def _work(choice: Choice, out: Path, pipeline: Pipeline, overwrite: bool, say: Say) -> Outcome:
    """Detect and write, unless that has been done.

    Raises:
        UserError: images that cannot be used, files that cannot be written.
    """
    name, files = choice.scan.name, result_files(out, choice)
    taken = taken_images(choice)
    if files.table_sidecar.is_file() and not overwrite:
        changed = what_changed(files, taken, pipeline.making)
        if changed is not None:
            reason = f"{changed} changed since; make it again with --overwrite, or give another folder"
            say(f"  {name}: has a result that was made otherwise: {reason}")
            return Outcome(name=name, status=Status.STALE, reason=reason)
        say(f"  {name}: finished by an earlier run, skipped")
        return Outcome(name=name, status=Status.SKIPPED)
    say(f"  {name}: reading the images")
    images = read_scan_images(choice, pipeline.phase)
    prediction = pipeline.detect(images, lambda text: say(f"  {name}: {text}"))
    prediction = dataclasses.replace(
        prediction,
        steps=(*images.steps, *prediction.steps),
        warnings=(*choice.notes, *images.warnings, *prediction.warnings),
    )
    write_result(files, choice, images, taken, prediction, pipeline.bundle, pipeline.making)
    kept = len(prediction.kept)
    say(f"  {name}: done, {kept} kept, {len(prediction.rows) - kept} rejected")
    return Outcome(name=name, status=Status.DONE)


def choice_lines(choice: Choice) -> list[str]:
    """What is taken of a scan and why, and what is left, for people."""
    files = ", ".join(image.file.relative for image in choice.images)
    return [
        f"{choice.scan.name}: takes {files}",
        f"  because: {choice.why}",
        *(f"  leaves {image.file.relative}: {image.why}" for image in choice.left),
        *(f"  note: {note}" for note in choice.notes),
    ]


def _without_paths(text: str, root: Path, out: Path) -> str:
    """A message without the folders of this machine: reasons are kept, and may be passed on."""
    for folder in (out, root):
        if folder != Path("."):
            text = text.replace(f"{folder}/", "")
    return text
