"""cmb-jax bids: the BIDS App. Participant level: scans to derivatives; group level: one table over all."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from pathlib import Path

import jax

from cmb_jax.bids_app import group_table
from cmb_jax.bids_app.dataset import check_out, write_dataset_files
from cmb_jax.bids_app.detector import detector_pipeline
from cmb_jax.bids_app.group import write_group
from cmb_jax.bids_app.methods import write_methods
from cmb_jax.bids_app.outcome import Status
from cmb_jax.bids_app.participants import (
    ParticipantsRun,
    Selection,
    process_share,
    run_participants,
    select_participants,
)
from cmb_jax.bids_app.region_labels import RegionLabels, read_region_labels
from cmb_jax.bids_app.scan_images import PhaseOptions
from cmb_jax.commands.cohort_progress import shown_progress
from cmb_jax.commands.common import NOT_ANALYSABLE_CODE, check_threshold, use_compilation_cache
from cmb_jax.commands.participant_options import ParticipantOptions
from cmb_jax.datasets.bids.filter import read_filter
from cmb_jax.datasets.bids.layout import BidsLayout, read_layout
from cmb_jax.datasets.bids.names import label_of
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.scan.phase_range import asked_range
from cmb_jax.training.processes import start_processes

SOME_FAILED_CODE = 1
"""Exit code if some scans failed; 2: nothing was done; 3: none failed, but some are not analysable."""

_LONGEST_WAIT_S = 7 * 24 * 3600
"""For the other processes at the end: shares of a cohort do not finish together."""

MOST_LISTED = 20
"""Failures that are printed at the end; the table has all."""


def run(*, data: Path, out: Path, level: str, options: ParticipantOptions) -> None:
    """Run one level of analysis; progress on stderr, the end's summary on stdout.

    Raises:
      UserError: anything wrong with the data set as a whole or the arguments, or no scan that can be used.
      SystemExit: with code 1 if some scans failed.
    """
    if level == "group":
        _group(_layout(data, out), out, options.participant_label)
    else:
        _participants(data, out, options)


def _participants(data: Path, out: Path, options: ParticipantOptions) -> None:
    """Process this process's share of the participants on all of its devices."""
    share = process_of(options)
    layout = _layout(data, out)
    selection = Selection(
        participants=process_share(select_participants(layout, options.participant_label), *share),
        sessions=tuple(label_of(text, "ses") for text in options.session_label),
        acquisition=None if options.acq_label is None else label_of(options.acq_label, "acq"),
        filter=None if options.bids_filter_file is None else read_filter(options.bids_filter_file),
    )
    check_threshold(options.threshold)
    regions = _regions(options)
    use_compilation_cache()
    pipeline = detector_pipeline(
        options.weights,
        options.threshold,
        PhaseOptions(sign=options.phase_sign, stored=asked_range(options.phase_range)),
        jax.local_devices(),
        regions,
        options.flips,
        options.precision,
    )
    pipeline = dataclasses.replace(pipeline, viewer=options.viewer, save_regions=options.save_regions)
    write_dataset_files(data, out, options.regions)
    with shown_progress() as progress:
        done = run_participants(
            layout, out, selection, pipeline, overwrite=options.overwrite, progress=progress
        )
        progress.say(done.times.summary())
    write_methods(out)
    _report(done, data, out)


def process_of(options: ParticipantOptions) -> tuple[int, int]:
    """Number of this process, from 0, and count of processes.

    Raises:
      UserError: both or a malformed option, or no cluster is recognized or complete.
    """
    if options.process is not None and options.distributed:
        raise UserError("--process and --distributed both name this process's share; give one of them")
    if options.distributed:
        start_processes(None, "auto", None, patience_s=_LONGEST_WAIT_S)
        return jax.process_index(), jax.process_count()
    text = options.process or "0/1"
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UserError(f"--process {text}: give number/count, such as 0/8 to 7/8 for eight processes")
    return index, count


def _layout(data: Path, out: Path) -> BidsLayout:
    layout = read_layout(data)
    check_out(data, out)
    for problem in layout.problems:
        print(f"note: {problem.where}: {problem.what}", file=sys.stderr)
    return layout


def _regions(options: ParticipantOptions) -> RegionLabels | None:
    if options.regions is not None:
        return read_region_labels(options.regions, options.region_labels)
    if options.region_labels is not None:
        raise UserError("--region-labels goes with --regions DERIVATIVES")
    return None


def _report(done: ParticipantsRun, data: Path, out: Path) -> None:
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
    if summary.statuses[group_table.NOT_ANALYSABLE]:
        sys.exit(NOT_ANALYSABLE_CODE)
