"""cmb-jax bids, the BIDS App: derivatives of every scan (participant), or one table over all (group)."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cmb_jax import progress
from cmb_jax.cli.common import NOT_ANALYSABLE_CODE
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.inference.options import ScanOptions
from cmb_jax.progress import stopwatch

if TYPE_CHECKING:
    from cmb_jax.cohort.participants import ParticipantsRun
    from cmb_jax.cohort.result import Outcome
    from cmb_jax.cohort.scan_images import RegionLabels
    from cmb_jax.datasets.bids.layout import BidsLayout

SOME_FAILED_CODE = 1
"""Exit code if some scans failed; 2: nothing was done; 3: none failed, but some are not analysable."""

_LONGEST_WAIT_S = 7 * 24 * 3600
"""How long a finished process waits for the others, whose shares of a cohort may take longer."""

MOST_LISTED = 20
"""Failures that are printed at the end; the table has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsOptions(ScanOptions):
    """Find microbleeds in a BIDS data set and write BIDS derivatives (a BIDS App).

    Run `participant` first; rerun it to resume: finished scans are left as they are. All devices are used;
    `--process` splits a cohort over several processes or machines. Then `group` makes one table. Exit code 0:
    all done; 1: some scans failed and are listed; 2: nothing was done; 3: none failed, but some are not
    analysable.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """folder of the BIDS data set; it is not changed."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """folder of the derivatives, such as DIR/derivatives/cmb-jax."""
    level: tyro.conf.Positional[Literal["participant", "group"]]
    """participant or group."""
    participant_label: tuple[str, ...] = ()
    """participants, with or without sub-; default: all."""
    session_label: tuple[str, ...] = ()
    """sessions, with or without ses-; default: all."""
    acq_label: str | None = None
    """take only images with this acq-, where a scan has several."""
    bids_filter_file: Path | None = None
    """JSON of entities that images must have, as for fMRIPrep, with the queries swi, mag and phase."""
    regions: Path | None = None
    """derivatives with label volumes (*_dseg.nii.gz) in place of the region network (docs/regions.md)."""
    viewer: bool = False
    """write a viewer of each scan too, which holds the images (about 10 MB each)."""
    save_regions: bool = False
    """write the brain mask and the region map of each scan too."""
    process: str | None = None
    """share of the participants to process: 0/8 to 7/8 for eight processes."""
    distributed: bool = False
    """take the share from jax.distributed (Slurm, Open MPI, Kubernetes, Cloud TPU)."""
    overwrite: bool = False
    """process finished scans again."""


def run(options: BidsOptions) -> None:
    """Run one level of analysis; progress goes to stderr, the final summary to stdout."""
    if options.level == "group":
        _group(_layout(options.data, options.out), options.out, options.participant_label)
    else:
        _participants(options)


def _participants(options: BidsOptions) -> None:
    """Process this process's share of the participants on all of its devices."""
    import jax

    from cmb_jax.cohort.dataset import write_dataset_files
    from cmb_jax.cohort.group import write_methods
    from cmb_jax.cohort.participants import Selection, process_share, run_participants, select_participants
    from cmb_jax.cohort.scan_work import detector_pipeline
    from cmb_jax.datasets.bids.layout import label_of, read_filter
    from cmb_jax.devices import use_compilation_cache

    data, out = options.data, options.out
    share = process_of(options)
    layout = _layout(data, out)
    selection = Selection(
        participants=process_share(select_participants(layout, options.participant_label), *share),
        sessions=tuple(label_of(text, "ses") for text in options.session_label),
        acquisition=None if options.acq_label is None else label_of(options.acq_label, "acq"),
        filter=None if options.bids_filter_file is None else read_filter(options.bids_filter_file),
    )
    regions = _regions(options)
    use_compilation_cache()
    pipeline = detector_pipeline(options, jax.local_devices(), regions)
    write_dataset_files(data, out, options.regions)
    with shown_progress() as shown:
        done = run_participants(layout, out, selection, pipeline, overwrite=options.overwrite, progress=shown)
        shown.say(done.times.summary())
    write_methods(out)
    _report(done, data, out)


def process_of(options: BidsOptions) -> tuple[int, int]:
    """The index of this process, from 0, and the number of processes."""
    if options.process is not None and options.distributed:
        raise UserError("--process and --distributed both name this process's share; give one of them")
    if options.distributed:
        import jax

        from cmb_jax.training.distributed import start_processes

        start_processes(None, "auto", None, patience_s=_LONGEST_WAIT_S)
        return jax.process_index(), jax.process_count()
    text = options.process or "0/1"
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UserError(f"--process {text}: give number/count, such as 0/8 to 7/8 for eight processes")
    return index, count


def _layout(data: Path, out: Path) -> BidsLayout:
    from cmb_jax.cohort.dataset import check_out
    from cmb_jax.datasets.bids.layout import read_layout

    layout = read_layout(data)
    check_out(data, out)
    for problem in layout.problems:
        print(f"note: {problem.where}: {problem.what}", file=sys.stderr)
    return layout


def _regions(options: BidsOptions) -> RegionLabels | None:
    if options.regions is not None:
        from cmb_jax.cohort.scan_images import read_region_labels

        return read_region_labels(options.regions, options.region_labels)
    if options.region_labels is not None:
        raise UserError("--region-labels goes with --regions DERIVATIVES")
    return None


def _report(done: ParticipantsRun, data: Path, out: Path) -> None:
    from cmb_jax.cohort.result import Status

    # A run that brought nothing at all is an error with its first reason; a run with some failures ends
    # normally, lists them, and says so by its exit code.
    outcomes = done.outcomes
    counts = Counter(outcome.status for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.status in (Status.FAILED, Status.STALE)]
    refused = [outcome for outcome in outcomes if outcome.status is Status.NOT_ANALYSABLE]
    if outcomes and not counts[Status.DONE] and not counts[Status.SKIPPED]:
        more = f" (and {len(outcomes) - 1} more)" if len(outcomes) > 1 else ""
        first = (failed or refused or outcomes)[0]
        kind = NotAnalysableError if refused and not failed else UserError
        raise kind(f"{data}: nothing was done: {first.name}: {first.reason}{more}")
    print(", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status]) or "no scans")
    listed = [*failed, *refused]
    for outcome in listed[:MOST_LISTED]:
        print(f"{outcome.name}: {outcome.status.value}: {outcome.reason}")
    if len(listed) > MOST_LISTED:
        print(f"and {len(listed) - MOST_LISTED} more")
    if done.failures is not None:
        print(f"failures of all runs so far: {done.failures}")
    print(f"written: {out} (research use only); one table over all: cmb-jax bids DIR OUT group")
    if listed:
        sys.exit(SOME_FAILED_CODE if failed else NOT_ANALYSABLE_CODE)


def _group(layout: BidsLayout, out: Path, asked: tuple[str, ...]) -> None:
    from cmb_jax.cohort.dataset import write_dataset_files
    from cmb_jax.cohort.group import write_group
    from cmb_jax.cohort.participants import select_participants
    from cmb_jax.cohort.result import Status

    labels = select_participants(layout, asked)
    if not out.is_dir():
        raise UserError(f"{out}: no results there; run the participant level first")
    write_dataset_files(layout.root, out)
    summary = write_group(layout, out, labels)
    print(", ".join(f"{count} {status}" for status, count in summary.statuses.items()))
    for line in summary.failures:
        print(f"failed: {line}")
    for line in summary.mixed:
        print(f"note: counts should not be compared as they stand: {line}")
    print(f"written: {summary.path}")
    print(f"Open {summary.page} in a browser. Research use only; not a diagnosis.")
    if summary.failures:
        sys.exit(SOME_FAILED_CODE)
    if summary.statuses[Status.NOT_ANALYSABLE]:
        sys.exit(NOT_ANALYSABLE_CODE)


def shown_progress() -> contextlib.AbstractContextManager[Bar | Lines]:
    """A bar with the time left where stderr is a terminal; otherwise lines, which log files can hold."""
    return Bar() if progress.on_terminal() else contextlib.nullcontext(Lines())


class Lines:
    """Prints a line for every step."""

    def __init__(self) -> None:
        self.say = stopwatch()
        self._scans = self._ended = 0

    def start(self, scans: int) -> None:
        """Remember the number of scans."""
        self._scans = scans

    def step(self, outcome: Outcome) -> None:
        """Print how many scans are finished."""
        self._ended += 1
        self.say(f"{self._ended} of {self._scans} scans: {outcome.name}: {outcome.status.value}")


class Bar:
    """A progress bar with a line above it for every scan that fails; used in a `with` statement."""

    def __init__(self) -> None:
        self._bar = progress.Bar("scans", shown=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def start(self, scans: int) -> None:
        """Show the bar."""
        self._bar = progress.Bar("scans", scans).__enter__()

    def say(self, text: str) -> None:
        """Show lines that belong to no scan; those of scans, which are indented, would crowd out the bar."""
        if not text.startswith(" "):
            progress.tell(text)

    def step(self, outcome: Outcome) -> None:
        """Advance the bar, and say why a scan failed."""
        self._bar.update()
        from cmb_jax.cohort.result import Status

        if outcome.status in (Status.FAILED, Status.STALE):
            progress.tell(f"{outcome.name}: {outcome.status.value}: {outcome.reason}")
