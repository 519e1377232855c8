"""The group level: one table and one page over all participants, failed and missing scans included."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmb_jax.cohort import group_table
from cmb_jax.cohort.cohort_page import GroupLine, cohort_content
from cmb_jax.cohort.dataset import GROUP_PAGE, GROUP_TABLE, finished_results, write_json
from cmb_jax.cohort.failures import failure_log, read_reason, read_status
from cmb_jax.cohort.methods import write_methods
from cmb_jax.datasets.bids.layout import BidsLayout
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.tables import table_text
from cmb_jax.report.cohort_html import write_cohort_report

_ALIKE = {"images": "images", "weights": "weights", "threshold": "thresholds", "version": "versions"}
"""Columns in which results must agree if their counts are to be compared, and their words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """What a group table holds."""

    path: Path
    page: Path
    statuses: Counter[str]  # lines by status
    failures: tuple[str, ...]  # scan and reason
    mixed: tuple[str, ...]  # in what the results differ, so that counts should not be compared


def write_group(layout: BidsLayout, out: Path, participants: Sequence[str]) -> GroupSummary:
    """Write the table, its dictionary, the page and the methods text, over older ones.

    Args:
        layout: of the source data set.
        out: with the results of the participant level.
        participants: labels to list; those that only participants.tsv has come behind, if all are listed.

    Raises:
        UserError: a file cannot be written.
    """
    lines = [line for label in participants for line in _participant_lines(layout, out, label)]
    if tuple(participants) == layout.participants:
        lines += [
            GroupLine(row=group_table.participant_row(label, group_table.NO_FOLDER))
            for label in layout.without_folder
        ]
    rows = [line.row for line in lines]
    columns = list(group_table.COLUMNS)
    text = table_text(columns, ([row[name] for name in columns] for row in rows), delimiter="\t")
    path = out / GROUP_TABLE
    atomic_write_text(path, text, overwrite=True)
    write_json(path.with_suffix(".json"), group_table.COLUMNS)
    mixed = _mixed(row for row in rows if row["status"] == group_table.DONE)
    write_cohort_report(out / GROUP_PAGE, cohort_content(out, lines, mixed))
    write_methods(out)
    return GroupSummary(
        path=path,
        page=out / GROUP_PAGE,
        statuses=Counter(row["status"] for row in rows),
        failures=tuple(
            f"{group_table.scan_name(row)}: {row['reason']}"
            for row in rows
            if row["status"] == group_table.FAILED
        ),
        mixed=mixed,
    )


def _participant_lines(layout: BidsLayout, out: Path, label: str) -> Iterator[GroupLine]:
    """Lines of all scans and of all results; a result whose scan has gone since is listed too."""
    results = finished_results(out, label)
    try:
        scans = layout.scans(label)
    except UserError as error:
        yield GroupLine(row=group_table.participant_row(label, group_table.FAILED, str(error)))
        return
    if not scans and not results:
        yield GroupLine(row=group_table.participant_row(label, group_table.NO_IMAGES))
    for name, files in results:
        try:
            yield GroupLine(row=group_table.result_row(name, files), files=files)
        except UserError as error:
            reason = str(error).replace(f"{out}/", "")
            yield GroupLine(row=group_table.damaged_row(name, reason))
    finished = {(name.get("ses"), name.get("run"), name.get("chunk")) for name, _ in results}
    for scan in scans:
        log = failure_log(out, scan.name)
        if log.is_file():
            row = group_table.scan_row(scan, read_status(log).value, read_reason(log))
            yield GroupLine(row=row)
        elif (scan.session, scan.run, scan.chunk) not in finished:
            yield GroupLine(row=group_table.scan_row(scan, group_table.NOT_RUN))


def _mixed(done: Iterator[dict[str, str]]) -> tuple[str, ...]:
    rows = list(done)
    found = []
    images = {row["images"] for row in rows}
    # scans without a phase may have a threshold of their own: then each kind of images still has one
    one_each = len({(row["images"], row["threshold"]) for row in rows}) == len(images)
    for column, word in _ALIKE.items():
        counts = Counter(row[column] for row in rows)
        if len(counts) > 1 and not (column == "threshold" and one_each):
            listed = ", ".join(f"{value} {count}" for value, count in counts.most_common())
            found.append(f"{word} differ ({listed})")
    return tuple(found)
