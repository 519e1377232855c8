"""The group level: a table, a page and a methods text over all scans, failed and missing ones included."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cmb_jax
from cmb_jax.cohort.dataset import GROUP_PAGE, GROUP_TABLE, ResultFiles, finished_results, write_json
from cmb_jax.cohort.result import Provenance, Status, failure_log, read_provenance, read_reason, read_status
from cmb_jax.datasets.bids.choice import ChoiceKind
from cmb_jax.datasets.bids.layout import BidsLayout, BidsName
from cmb_jax.datasets.tables import read_csv
from cmb_jax.errors import UserError
from cmb_jax.inference.options import NETWORK
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.outside import read_bytes, read_json_object, reading
from cmb_jax.io.tables import table_text
from cmb_jax.report.cohort import (
    CohortContent,
    CohortLine,
    Link,
    Projection,
    marked_picture,
    render_cohort,
    shrunk,
)
from cmb_jax.report.comparison import STATUSES
from cmb_jax.report.drawing import Picture
from cmb_jax.report.statements import MethodsFacts, methods_text
from cmb_jax.report.summary import Count
from cmb_jax.review.result import read_rows

MISSING = "n/a"
MOST_PICTURE_BYTES = 17_000_000
"""Of all pictures together; in base64 they are a third more, and the page stays below 30 MB."""
_ALIKE = {"images": "images", "weights": "weights", "threshold": "thresholds", "version": "versions"}
"""Columns in which results must agree for their counts to be comparable -> their names in messages."""
METHODS = "methods.md"
_USUAL_SETTINGS = {
    "PhaseSign": ("auto", "phase sign"),
    "PhaseRange": ("auto", "phase range"),
    "Flips": ("none", "flips"),
    "Precision": ("float32", "precision"),
}
"""Settings that methods.md names only where they are not at the usual value: (value, name in the text)."""
_KNOWN_SETTINGS = {*_USUAL_SETTINGS, "Weights", "Threshold", "Regions"}

CATEGORIES = ("definite", "possible")
ZONE_COLUMNS = {"lobar": "lobar", "deep": "deep", "infratentorial": "infratentorial", "none": "no_zone"}
"""Zones of detections and their columns."""

COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant, as in the source data set."},
    "session_id": {"Description": "Session."},
    "run": {"Description": "Run."},
    "chunk": {"Description": "Chunk: the part of the brain that was scanned by itself."},
    "acquisition": {"Description": "Label of acq- of the image taken."},
    "status": {
        "Description": "How the scan came out.",
        "Levels": {
            Status.DONE: "a result is there",
            Status.FAILED: "it was tried and failed; see reason",
            Status.NOT_ANALYSABLE: "its images can be read, but no count can be given on them; see reason",
            Status.NOT_RUN: "it has images, but no result yet",
            Status.NO_IMAGES: "the participant has no susceptibility images",
            Status.NO_FOLDER: "participants.tsv has the participant, but there is no folder",
        },
    },
    "reason": {"Description": "Why it failed or is not analysable."},
    "images": {
        "Description": "What the result was made from. Counts of different kinds must not be compared.",
        "Levels": {kind.name.lower(): kind.value for kind in ChoiceKind},
    },
    "field_strength_t": {"Description": "MagneticFieldStrength of the sidecar.", "Units": "T"},
    "cmb": {"Description": "Microbleeds kept."},
    **{category: {"Description": f"Of cmb: {category}."} for category in CATEGORIES},
    **{column: {"Description": f"Of cmb: {zone} zone."} for zone, column in ZONE_COLUMNS.items()},
    **{
        f"{column}_{category}": {"Description": f"Of cmb: {zone} zone, {category}."}
        for zone, column in ZONE_COLUMNS.items()
        for category in CATEGORIES
    },
    "rejected": {
        "Description": "Candidates listed that were not kept: under the threshold, at most the 40 best."
    },
    "brain_ml": {"Description": "Volume of the brain mask.", "Units": "ml"},
    "warnings": {"Description": "Number of warnings; they stand in the sidecar of the scan's table."},
    "weights": {"Description": "SHA-256 of the detector's weights, first 12 digits."},
    "threshold": {"Description": "Score from which a candidate was kept."},
    "version": {"Description": "Version of cmb-jax that made the result."},
}


def _row_without_result(
    entities: tuple[tuple[str, str], ...], status: str, reason: str = ""
) -> dict[str, str]:
    """The line of a participant without scans, a scan without a result, or a damaged result."""
    return _row({**_named(dict(entities)), "status": status, "reason": reason})


def _result_row(name: BidsName, files: ResultFiles) -> dict[str, str]:
    """The line of a finished result.

    Raises:
        UserError: its files are damaged.
    """
    detections = read_csv(files.table, ("status", "category", "zone"), delimiter="\t")
    kept = [row for row in detections if row["status"] == "kept"]
    zones, categories = Counter(row["zone"] for row in kept), Counter(row["category"] for row in kept)
    both = Counter((row["zone"], row["category"]) for row in kept)
    provenance = read_provenance(files.table_sidecar)
    return _row(
        {
            **_named(dict(name.entities)),
            "status": Status.DONE,
            "cmb": len(kept),
            **{category: categories[category] for category in CATEGORIES},
            **{column: zones[zone] for zone, column in ZONE_COLUMNS.items()},
            **{
                f"{column}_{category}": both[zone, category]
                for zone, column in ZONE_COLUMNS.items()
                for category in CATEGORIES
            },
            "rejected": len(detections) - len(kept),
            "images": provenance.kind,
            "field_strength_t": provenance.field_strength_t,
            "brain_ml": provenance.brain_ml,
            "warnings": len(provenance.warnings),
            "weights": provenance.weights_sha256[:12],
            "threshold": provenance.threshold,
            "version": provenance.version,
        }
    )


def scan_name(row: dict[str, str]) -> str:
    """The scan of a line, for people."""
    run = "" if row["run"] == MISSING else f"_run-{row['run']}"
    session = "" if row["session_id"] == MISSING else f"_{row['session_id']}"
    return f"{row['participant_id']}{session}{run}"


def _named(entities: dict[str, str]) -> dict[str, str]:
    named = {"participant_id": f"sub-{entities['sub']}"}
    if "ses" in entities:
        named["session_id"] = f"ses-{entities['ses']}"
    return named | {
        column: entities[key]
        for column, key in (("run", "run"), ("chunk", "chunk"), ("acquisition", "acq"))
        if key in entities
    }


def _row(values: dict[str, Any]) -> dict[str, str]:
    """A line with a cell for every column; one without value is n/a."""
    cells = {name: values.get(name) for name in COLUMNS}
    # no tab or line end may come into a table
    return {
        name: MISSING if value in (None, "") else " ".join(str(value).split())
        for name, value in cells.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLine:
    """A line of the group table, with the files of its result."""

    row: dict[str, str]
    files: ResultFiles | None = None  # None: there is none, or it is damaged


def cohort_content(out: Path, lines: Sequence[GroupLine], notes: tuple[str, ...]) -> CohortContent:
    """What the page shows.

    Args:
        out: the data set of derivatives, in which the page will lie.
        lines: of the group table.
        notes: why counts should not be compared as they stand.
    """
    results = [
        (n, line.files, read_provenance(line.files.table_sidecar))
        for n, line in enumerate(lines)
        if line.files
    ]
    # all pictures share one budget, so that the page of a large cohort can still be opened and mailed
    changes = _comparison_pages(out, {n: provenance for n, _, provenance in results})
    most = MOST_PICTURE_BYTES // max(len(results), 1)
    beside: dict[int, dict[str, Any]] = {}
    for n, files, provenance in results:
        pages = [Link(text="Report", href=_href(files.report, out))] if files.report.is_file() else []
        if files.viewer.is_file():
            pages.append(Link(text="Viewer", href=_href(files.viewer, out)))
        beside[n] = {
            "warnings": provenance.warnings,
            "links": (*pages, *changes.get(n, ())),
            "picture": _picture(files, provenance, most),
        }
    participants = len({line.row["participant_id"] for line in lines})
    many = "" if participants == 1 else "s"
    return CohortContent(
        title=f"{participants} participant{many}, {len(results)} result{'' if len(results) == 1 else 's'}",
        lines=tuple(_page_line(line.row, **beside.get(n, {})) for n, line in enumerate(lines)),
        notes=notes,
        version=cmb_jax.__version__,
    )


def _page_line(row: dict[str, str], **beside: Any) -> CohortLine:
    cells = {name: cell for name, cell in row.items() if cell != MISSING}
    counted = "cmb" in cells
    details = (
        f"acq-{cells['acquisition']}" if "acquisition" in cells else "",
        cells.get("images", "").replace("_", " "),
        f"{float(cells['field_strength_t']):g} T" if "field_strength_t" in cells else "",
    )
    return CohortLine(
        name=scan_name(row),
        details=", ".join(word for word in details if word),
        status=row["status"],
        reason=cells.get("reason", ""),
        counted=_count(row) if counted else None,
        zones=tuple((zone, _count(row, f"{column}_")) for zone, column in ZONE_COLUMNS.items())
        if counted
        else (),
        rejected=int(row["rejected"]) if counted else None,
        brain_ml=float(cells["brain_ml"]) if "brain_ml" in cells else None,
        **beside,
    )


def _count(row: dict[str, str], start: str = "") -> Count:
    definite, possible = (int(row[f"{start}{category}"]) for category in CATEGORIES)
    return Count(definite=definite, possible=possible)


def _picture(files: ResultFiles, provenance: Provenance, most_bytes: int) -> Picture | None:
    """The scan's picture with its microbleeds; None where an earlier version wrote none, or it is damaged."""
    try:
        with reading(files.overview):
            projection = Projection.from_json(read_bytes(files.overview), provenance.overview or {})
            kept = [row for row in read_rows(files.table) if row.status == "kept"]
            return marked_picture(shrunk(projection, most_bytes, files.overview), kept, files.stem)
    except UserError:
        return None


def _comparison_pages(out: Path, provenances: dict[int, Provenance]) -> dict[int, tuple[Link, ...]]:
    """Links to the pages that `cmb-jax compare` wrote below `out`, by the lines whose images they compare."""
    # matched by the images' hashes: names of folders and scans may have been changed since
    line_of = {digest: n for n, each in provenances.items() for _, digest in each.images}
    found: dict[int, list[Link]] = {}
    for record in sorted(out.glob("sub-*/**/comparison.json")):
        page = record.with_name("report.html")
        for n, link in _compared(record, line_of):
            if page.is_file():
                found.setdefault(n, []).append(dataclasses.replace(link, href=_href(page, out)))
    return {n: tuple(links) for n, links in found.items()}


def _compared(record: Path, line_of: dict[str, int]) -> Iterator[tuple[int, Link]]:
    # another program's file, or a damaged one: the scans are listed without the link
    with contextlib.suppress(UserError), reading(record):
        content = read_json_object(record)
        found: dict[str, int] = {status: int(content["counts"].get(status, 0)) for status in STATUSES}
        shown = [*STATUSES[:2], *(["uncertain"] if found["uncertain"] else [])]
        counts = ", ".join(f"{found[status]} {status}" for status in shown)
        for scan, words in (("followup", "since before"), ("baseline", "later")):
            digests = {each["sha256"] for each in content[scan]["inputs"]}
            for n in sorted({line_of[digest] for digest in digests if digest in line_of}):
                yield n, Link(text=f"{counts} {words}", href="")


def _href(path: Path, out: Path) -> str:
    return quote(path.relative_to(out).as_posix())


def write_methods(out: Path) -> None:
    """Write `out`/methods.md for all finished results below `out`; nothing if there are none.

    Raises:
        UserError: it cannot be written.
    """
    # results made with the same settings share a paragraph; a cohort made in one way needs no names of scans
    ways: dict[str, list[tuple[str, Provenance]]] = {}
    for name, provenance in _readable_results(out):
        how = [provenance.version, provenance.making, provenance.weights_bundled, provenance.calibrated]
        ways.setdefault(json.dumps(how, sort_keys=True), []).append((name, provenance))
    if ways:
        largest_first = sorted(ways.values(), key=lambda results: (-len(results), results[0][0]))
        text = methods_text([_methods_facts(results) for results in largest_first])
        atomic_write_text(out / METHODS, text, overwrite=True)


def _readable_results(out: Path) -> Iterator[tuple[str, Provenance]]:
    for folder in sorted(out.glob("sub-*")):
        for _, files in finished_results(out, folder.name.removeprefix("sub-")):
            try:
                yield files.stem, read_provenance(files.table_sidecar)
            except UserError:
                continue  # damaged: the group table names it


def _methods_facts(results: list[tuple[str, Provenance]]) -> MethodsFacts:
    """Facts for the paragraph on results that were all made with the same settings."""
    first = results[0][1]
    # scans without a phase may have a threshold of their own
    thresholds = {provenance.phase: provenance.threshold for _, provenance in results}
    return MethodsFacts(
        version=first.version,
        weights_name=",".join(Path(name).stem for name in first.weights_name.split(",")),
        weights_sha256=first.weights_sha256,
        threshold=thresholds.get(True, first.threshold),
        threshold_without_phase=thresholds.get(False),
        calibrated=first.calibrated,
        bundled=first.weights_bundled,
        phase=None if len(thresholds) > 1 else first.phase,
        options=(
            *(
                f"{words} {first.making[name]}"
                for name, (usual, words) in _USUAL_SETTINGS.items()
                if first.making[name] != usual
            ),
            *(f"{name} {value}" for name, value in first.making.items() if name not in _KNOWN_SETTINGS),
        ),
        own_regions=first.making["Regions"] != NETWORK,
        made_swi=any("swi" not in provenance.roles for _, provenance in results),
        mni=any(provenance.regions_trusted for _, provenance in results),
        scans=tuple(name for name, _ in results),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Where the group's files are, and what the table holds."""

    path: Path
    page: Path
    statuses: Counter[str]  # lines by status
    failures: tuple[str, ...]  # scan and reason
    mixed: tuple[str, ...]  # differences because of which counts should not be compared


def write_group(layout: BidsLayout, out: Path, participants: Sequence[str]) -> GroupSummary:
    """Write the table, its dictionary, the page and the methods text, over older ones.

    Args:
        layout: of the source data set.
        out: with the results of the participant level.
        participants: labels to list; if these are all, participants without a folder follow.

    Raises:
        UserError: a file cannot be written.
    """
    lines = [line for label in participants for line in _participant_lines(layout, out, label)]
    if tuple(participants) == layout.participants:
        lines += [
            GroupLine(row=_row_without_result((("sub", label),), Status.NO_FOLDER))
            for label in layout.without_folder
        ]
    rows = [line.row for line in lines]
    columns = list(COLUMNS)
    text = table_text(columns, ([row[name] for name in columns] for row in rows), delimiter="\t")
    path = out / GROUP_TABLE
    atomic_write_text(path, text, overwrite=True)
    write_json(path.with_suffix(".json"), COLUMNS)
    mixed = _mixed(row for row in rows if row["status"] == Status.DONE)
    atomic_write_text(out / GROUP_PAGE, render_cohort(cohort_content(out, lines, mixed)), overwrite=True)
    write_methods(out)
    return GroupSummary(
        path=path,
        page=out / GROUP_PAGE,
        statuses=Counter(row["status"] for row in rows),
        failures=tuple(
            f"{scan_name(row)}: {row['reason']}" for row in rows if row["status"] == Status.FAILED
        ),
        mixed=mixed,
    )


def _participant_lines(layout: BidsLayout, out: Path, label: str) -> Iterator[GroupLine]:
    """Lines of all scans and results, including results whose scan no longer exists."""
    results = finished_results(out, label)
    try:
        scans = layout.scans(label)
    except UserError as error:
        yield GroupLine(row=_row_without_result((("sub", label),), Status.FAILED, str(error)))
        return
    if not scans and not results:
        yield GroupLine(row=_row_without_result((("sub", label),), Status.NO_IMAGES))
    for name, files in results:
        try:
            yield GroupLine(row=_result_row(name, files), files=files)
        except UserError as error:
            reason = str(error).replace(f"{out}/", "")
            yield GroupLine(row=_row_without_result(name.entities, Status.FAILED, reason))
    finished = {(name.get("ses"), name.get("run"), name.get("chunk")) for name, _ in results}
    for scan in scans:
        log = failure_log(out, scan.name)
        if log.is_file():
            yield GroupLine(row=_row_without_result(scan.entities, read_status(log).value, read_reason(log)))
        elif (scan.session, scan.run, scan.chunk) not in finished:
            yield GroupLine(row=_row_without_result(scan.entities, Status.NOT_RUN))


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
