"""The participant level: every scan is processed by itself, so that a failure stops no other scan."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cmb_jax.cohort.result import Outcome, Status, failure_log, write_failure, write_failure_table
from cmb_jax.cohort.scan_work import Pipeline, ScanWork, StageTimes, overlapped
from cmb_jax.datasets.bids.choice import part_of
from cmb_jax.datasets.bids.layout import NO_IMAGES, BidsFile, BidsFilter, BidsLayout, Scan, label_of
from cmb_jax.errors import UserError


class Progress(Protocol):
    """Receives the progress of a run; `say` is called from several threads."""

    def start(self, scans: int) -> None:
        """Receive the number of scans."""

    def say(self, text: str) -> None:
        """Receive a line about what is being done."""

    def step(self, outcome: Outcome) -> None:
        """Receive the outcome of a scan that is finished."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which scans are processed; empty: all."""

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    acquisition: str | None = None
    filter: BidsFilter | None = None

    def of(self, scans: tuple[Scan, ...]) -> tuple[Scan, ...]:
        """The selected scans of a participant, with only their selected images."""
        in_sessions = [scan for scan in scans if not self.sessions or scan.session in self.sessions]
        selected = [scan.only(self._wants) for scan in in_sessions]
        return tuple(scan for scan in selected if scan.files)

    def _wants(self, file: BidsFile) -> bool:
        if self.acquisition is not None and file.name.get("acq") != self.acquisition:
            return False
        if self.filter is None:
            return True
        try:
            return self.filter.keeps(part_of(file.name), file.name, file.path.parent.name)
        except UserError:
            return True  # a part that is not read: `choose` leaves it out and says so


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticipantsRun:
    """The outcomes of a run."""

    outcomes: tuple[Outcome, ...]  # in order of participants and scans
    times: StageTimes
    failures: Path | None  # table of all that failed, in this run or before


def select_participants(layout: BidsLayout, asked: Sequence[str]) -> tuple[str, ...]:
    """Labels of the participants asked for, with or without sub-; all of them if none is.

    Raises:
        UserError: an invalid label, or one that the data set does not have.
    """
    if not asked:
        return layout.participants
    labels = tuple(dict.fromkeys(label_of(text, "sub") for text in asked))
    missing = [label for label in labels if label not in layout.participants]
    if missing:
        known = ", ".join(layout.participants[:10]) + (", ..." if len(layout.participants) > 10 else "")
        raise UserError(f"{layout.root}: has no participant {', '.join(missing)}; there are {known}")
    return labels


def process_share(participants: tuple[str, ...], index: int, count: int) -> tuple[str, ...]:
    """The participants of process `index` (from 0) of `count`: every count-th, so that shares are even."""
    return participants[index::count]


def run_participants(
    layout: BidsLayout,
    out: Path,
    selection: Selection,
    pipeline: Pipeline,
    *,
    overwrite: bool = False,
    progress: Progress,
) -> ParticipantsRun:
    """Find microbleeds in the selected scans and write the derivatives.

    A scan that an earlier run has finished is left as it is, unless `overwrite` is set. A scan that fails
    leaves its reason in logs/.

    Args:
        layout: of the source data set.
        out: the data set of derivatives, checked and with its own files.
        selection: which scans; its labels exist.
        pipeline: the detector on its devices, and its settings.
        overwrite: process finished scans again.
        progress: receives messages and outcomes.

    Raises:
        UserError: nothing can be written into `out`.
    """
    listed = list(_listed(layout, out, selection))
    scans = [entry for entry in listed if isinstance(entry, Scan)]
    outcomes = {entry.name: entry for entry in listed if isinstance(entry, Outcome)}
    for outcome in outcomes.values():
        progress.say(f"  {outcome.name}: {outcome.reason}")
    progress.start(len(scans))
    times = StageTimes()
    work = ScanWork(root=layout.root, out=out, pipeline=pipeline, overwrite=overwrite, say=progress.say)
    lanes = [work.lane(detector) for detector in pipeline.detectors]
    for outcome in overlapped(scans, lanes, times):
        outcomes[outcome.name] = outcome
        progress.step(outcome)
    return ParticipantsRun(
        outcomes=tuple(outcomes[entry.name] for entry in listed),
        times=times,
        failures=write_failure_table(out),
    )


def _listed(layout: BidsLayout, out: Path, selection: Selection) -> Iterator[Scan | Outcome]:
    """The scans that are selected, and the participants that have none."""
    for label in selection.participants:
        name = f"sub-{label}"
        try:
            scans = layout.scans(label)
        except UserError as error:
            write_failure(out, name, str(error))
            yield Outcome(name=name, status=Status.FAILED, reason=str(error))
            continue
        if all(scan.name != name for scan in scans):
            failure_log(out, name).unlink(missing_ok=True)  # of the folder, which can be read now
        selected = selection.of(scans)
        if not selected:
            reason = f"{NO_IMAGES} of the session or acquisition asked for" if scans else NO_IMAGES
            yield Outcome(name=name, status=Status.NO_IMAGES, reason=reason)
        yield from selected
