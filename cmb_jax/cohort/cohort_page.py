"""The page of a cohort from the lines of the group table and what lies beside each result."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cmb_jax
from cmb_jax.cohort import group_table
from cmb_jax.cohort.dataset import ResultFiles
from cmb_jax.cohort.result import Provenance, read_provenance
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_bytes, read_json_object, reading
from cmb_jax.report.cohort_content import CohortContent, CohortLine, Link
from cmb_jax.report.comparison_content import STATUSES
from cmb_jax.report.projection import Projection, marked_picture, shrunk
from cmb_jax.report.shapes import Picture
from cmb_jax.report.summary import Count
from cmb_jax.review.result import read_rows

MOST_PICTURE_BYTES = 17_000_000
"""Of all pictures together; in base64 they are a third more, and the page stays below 30 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLine:
    """A line of the group table, with the result that it is of."""

    row: dict[str, str]
    files: ResultFiles | None = None  # None: there is none, or it is damaged


def cohort_content(out: Path, lines: Sequence[GroupLine], notes: tuple[str, ...]) -> CohortContent:
    """What the page shows.

    Args:
        out: the data set of derivatives, in which the page will lie.
        lines: of the group table.
        notes: in what results differ.
    """
    results = [
        (n, line.files, read_provenance(line.files.table_sidecar))
        for n, line in enumerate(lines)
        if line.files
    ]
    changes = _changes(out, {n: made for n, _, made in results})
    most = MOST_PICTURE_BYTES // max(len(results), 1)
    beside: dict[int, dict[str, Any]] = {}
    for n, files, made in results:
        pages = [Link(text="Report", href=_href(files.report, out))] if files.report.is_file() else []
        if files.viewer.is_file():
            pages.append(Link(text="Viewer", href=_href(files.viewer, out)))
        beside[n] = {
            "warnings": made.warnings,
            "links": (*pages, *changes.get(n, ())),
            "picture": _picture(files, made, most),
        }
    participants = len({line.row["participant_id"] for line in lines})
    many = "" if participants == 1 else "s"
    return CohortContent(
        title=f"{participants} participant{many}, {len(results)} result{'' if len(results) == 1 else 's'}",
        lines=tuple(_line(line.row, **beside.get(n, {})) for n, line in enumerate(lines)),
        notes=notes,
        version=cmb_jax.__version__,
    )


def _line(row: dict[str, str], **beside: Any) -> CohortLine:
    said = {name: cell for name, cell in row.items() if cell != group_table.MISSING}
    counted = "cmb" in said
    details = (
        f"acq-{said['acquisition']}" if "acquisition" in said else "",
        said.get("images", "").replace("_", " "),
        f"{float(said['field_strength_t']):g} T" if "field_strength_t" in said else "",
    )
    return CohortLine(
        name=group_table.scan_name(row),
        details=", ".join(word for word in details if word),
        status=row["status"],
        reason=said.get("reason", ""),
        counted=_count(row) if counted else None,
        zones=tuple((zone, _count(row, f"{column}_")) for zone, column in group_table.ZONE_COLUMNS.items())
        if counted
        else (),
        rejected=int(row["rejected"]) if counted else None,
        brain_ml=float(said["brain_ml"]) if "brain_ml" in said else None,
        **beside,
    )


def _count(row: dict[str, str], start: str = "") -> Count:
    definite, possible = (int(row[f"{start}{category}"]) for category in group_table.CATEGORIES)
    return Count(definite=definite, possible=possible)


def _picture(files: ResultFiles, made: Provenance, most_bytes: int) -> Picture | None:
    """The scan's picture with its microbleeds; None where an earlier version wrote none, or it is damaged."""
    try:
        with reading(files.overview):
            projection = Projection.from_json(read_bytes(files.overview), made.overview or {})
            kept = [row for row in read_rows(files.table) if row.status == "kept"]
            return marked_picture(shrunk(projection, most_bytes, files.overview), kept, files.stem)
    except UserError:
        return None


def _changes(out: Path, made: dict[int, Provenance]) -> dict[int, tuple[Link, ...]]:
    """Pages that `cmb-jax compare` wrote below `out`, for the lines whose images they compare."""
    line_of = {digest: n for n, each in made.items() for _, digest in each.images}
    found: dict[int, list[Link]] = {}
    for record in sorted(out.glob("sub-*/**/comparison.json")):
        page = record.with_name("report.html")
        for n, link in _compared(record, line_of):
            if page.is_file():
                found.setdefault(n, []).append(dataclasses.replace(link, href=_href(page, out)))
    return {n: tuple(links) for n, links in found.items()}


def _compared(record: Path, line_of: dict[str, int]) -> Iterator[tuple[int, Link]]:
    # none of ours, or damaged: the scans are listed without it
    with contextlib.suppress(UserError), reading(record):
        content = read_json_object(record)
        found: dict[str, int] = {status: int(content["counts"].get(status, 0)) for status in STATUSES}
        told = [*STATUSES[:2], *(["uncertain"] if found["uncertain"] else [])]
        counts = ", ".join(f"{found[status]} {status}" for status in told)
        for scan, words in (("followup", "since before"), ("baseline", "later")):
            digests = {each["sha256"] for each in content[scan]["inputs"]}
            for n in sorted({line_of[digest] for digest in digests if digest in line_of}):
                yield n, Link(text=f"{counts} {words}", href="")


def _href(path: Path, out: Path) -> str:
    return quote(path.relative_to(out).as_posix())
