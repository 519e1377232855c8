"""The group level: one table over all participants, a line a scan, failed and missing ones included."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmb_jax.bids_app import group_table
from cmb_jax.bids_app.dataset import GROUP_TABLE, finished_results, write_json
from cmb_jax.bids_app.failures import failure_log, read_reason, read_status
from cmb_jax.datasets.bids.layout import BidsLayout
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text

_ALIKE = {"images": "images", "weights": "weights", "threshold": "thresholds", "version": "versions"}
"""Columns in which results must agree if their counts are to be compared, and their words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """What a group table holds."""

    path: Path
    statuses: Counter[str]  # lines by status
    failures: tuple[str, ...]  # scan and reason
    mixed: tuple[str, ...]  # in what the results differ, so that counts should not be compared


def write_group(layout: BidsLayout, out: Path, participants: Sequence[str]) -> GroupSummary:
    """Write the table and its dictionary, over older ones.

    Args:
        layout: of the source data set.
        out: with the results of the participant level.
        participants: labels to list; those that only participants.tsv has come behind, if all are listed.

    Raises:
        UserError: the table cannot be written.
    """
    rows = [row for label in participants for row in _participant_rows(layout, out, label)]
    if tuple(participants) == layout.participants:
        rows += [group_table.participant_row(label, group_table.NO_FOLDER) for label in layout.without_folder]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(group_table.COLUMNS), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = out / GROUP_TABLE
    atomic_write_text(path, text.getvalue(), overwrite=True)
    write_json(path.with_suffix(".json"), group_table.COLUMNS)
    return GroupSummary(
        path=path,
        statuses=Counter(row["status"] for row in rows),
        failures=tuple(
            f"{_name(row)}: {row['reason']}" for row in rows if row["status"] == group_table.FAILED
        ),
        mixed=_mixed(row for row in rows if row["status"] == group_table.DONE),
    )


def _participant_rows(layout: BidsLayout, out: Path, label: str) -> Iterator[dict[str, str]]:
    """Lines of all scans and of all results; a result whose scan has gone since is listed too."""
    results = finished_results(out, label)
    try:
        scans = layout.scans(label)
    except UserError as error:
        yield group_table.participant_row(label, group_table.FAILED, str(error))
        return
    if not scans and not results:
        yield group_table.participant_row(label, group_table.NO_IMAGES)
    for name, files in results:
        try:
            yield group_table.result_row(name, files)
        except UserError as error:
            reason = str(error).replace(f"{out}/", "")
            yield group_table.damaged_row(name, reason)
    finished = {(name.get("ses"), name.get("run"), name.get("chunk")) for name, _ in results}
    for scan in scans:
        log = failure_log(out, scan.name)
        if log.is_file():
            yield group_table.scan_row(scan, read_status(log).value, read_reason(log))
        elif (scan.session, scan.run, scan.chunk) not in finished:
            yield group_table.scan_row(scan, group_table.NOT_RUN)


def _name(row: dict[str, str]) -> str:
    """The scan of a line, for people."""
    run = "" if row["run"] == group_table.MISSING else f"_run-{row['run']}"
    session = "" if row["session_id"] == group_table.MISSING else f"_{row['session_id']}"
    return f"{row['participant_id']}{session}{run}"


def _mixed(done: Iterator[dict[str, str]]) -> tuple[str, ...]:
    rows = list(done)
    found = []
    for column, word in _ALIKE.items():
        counts = Counter(row[column] for row in rows)
        if len(counts) > 1:
            listed = ", ".join(f"{value} {count}" for value, count in counts.most_common())
            found.append(f"{word} differ ({listed})")
    return tuple(found)
