"""Workbooks: the review spreadsheet, and what Microbleed-review-viewer exports.

Readers fill in verdicts in the spreadsheet. Its sheet and columns are those that Microbleed-review-viewer
reads by default (its examples/README.md, 2025), plus columns that it ignores.

That viewer exports a sheet `findings` with the columns case_id, origin (Source or Manual), ras_l, ras_p,
ras_s (RAS mm as imported) and, for each reader, "NAME · verify" (1, 0 or empty), "NAME · mimic" and
"NAME · final_l", "final_p", "final_s".
"""

import io
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from openpyxl.cell import Cell as SheetCell
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.datavalidation import DataValidation
from openpyxl.worksheet.worksheet import Worksheet

from cmb_jax.core.detection import COLUMNS, DetectionRow
from cmb_jax.datasets.tables import Cell, Row, number, read_sheet
from cmb_jax.errors import UserError
from cmb_jax.report.summary import location_text
from cmb_jax.review.result import Result, positions_mm
from cmb_jax.review.verdicts import MIMIC_KINDS, Mark, Verdict, parse_verdict

SHEET = "MCH-microhemorrage"  # the viewer's spelling
ID, SUBJECT, VERDICT, MIMIC, DIAMETER = "id", "subjectid", "verdict", "mimic", "diameter_mm"
POSITION = ("RAS L-R L", "RAS P-A A", "RAS I-S S")
VERIFY = "verify (yes=1)"
_COLUMNS: dict[str, int] = {  # name: width
    **{ID: 5, SUBJECT: 24, VERDICT: 13, MIMIC: 22, "comments": 30},
    **dict.fromkeys(POSITION, 11),
    **{column.name: column.sheet_width for column in COLUMNS if column.sheet_width},
    **{"zone": 14, "atlasregions": 30, "slicecount": 10, "readers": 10, VERIFY: 13},
}
_TO_FILL = PatternFill("solid", fgColor="FFF7D6")
_SPARE_ROWS = 50  # below the candidates, formatted for lesions that a reader adds
_HELP = (
    "Research use only; not a diagnosis.",
    "One row per candidate; kept ones are what the program reports, rejected ones say why they are not.",
    f"Fill in {VERDICT}: {', '.join(Verdict)}. Empty means not read.",
    f"{MIMIC} may say what a mimic is: {', '.join(MIMIC_KINDS)}.",
    "Correct a center by its three RAS coordinates (mm), by at most 10 mm.",
    f"Add a lesion below the last row: coordinates and {VERDICT}, no {ID}.",
    f"{VERIFY} is for Microbleed-review-viewer; 1 and 0 there count where {VERDICT} is empty.",
    f"Do not change {ID} and {SUBJECT}. Comments stay in this file.",
)
_EXPORT_POSITION = ("ras_l", "ras_p", "ras_s")
_EXPORT_COLUMNS = ("case_id", "origin", *_EXPORT_POSITION)
_SEPARATOR = " · "
_EXPORT_VERIFY = f"{_SEPARATOR}verify"
_SAME_PLACE_MM = 0.05  # the viewer exports the coordinates that it imported, perhaps rounded


def spreadsheet(result: Result) -> bytes:
    """The workbook as bytes: kept candidates first, verdicts empty."""
    book = Workbook()
    book.properties.creator = "cmb-jax"
    sheet: Worksheet = book.worksheets[0]
    sheet.title = SHEET
    rows = sorted(result.rows, key=lambda row: (row.status != "kept", row.id))
    lines = [_values(row, result.subject) for row in rows]
    for column, (name, width) in enumerate(_COLUMNS.items(), start=1):
        cell = sheet.cell(1, column)
        _write(cell, name)
        cell.font, cell.alignment = Font(bold=True), Alignment(wrap_text=True, vertical="top")
        sheet.column_dimensions[get_column_letter(column)].width = width
        for row_number, values in enumerate(lines, start=2):
            _write(sheet.cell(row_number, column), values[name])
        if name in (VERDICT, MIMIC):
            _add_choices(sheet, column, name, len(rows) + _SPARE_ROWS + 1)
    sheet.freeze_panes = "C2"
    guide: Worksheet = book.create_sheet("how to review")
    guide.column_dimensions["A"].width = 110
    for line, text in enumerate(_HELP, start=1):
        _write(guide.cell(line, 1), text)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _values(row: DetectionRow, subject: str) -> dict[str, Cell | int]:
    return {
        **{ID: row.id, SUBJECT: subject, VERDICT: None, MIMIC: None, "comments": None, VERIFY: None},
        **dict(zip(POSITION, (row.x_mm, row.y_mm, row.z_mm), strict=True)),
        **{column.name: getattr(row, column.name) for column in COLUMNS if column.sheet_width},
        **{"zone": row.zone, "slicecount": row.k, "readers": "cmb-jax"},
        "atlasregions": location_text(row, trusted=True),
    }


def _write(cell: SheetCell, value: Cell | int) -> None:
    """Set the value; text that looks like a formula stays text, even after a reader edits the cell."""
    cell.value = value
    if isinstance(value, str):
        cell.data_type = "s"
        cell.quotePrefix = True


def _add_choices(sheet: Worksheet, column: int, name: str, last: int) -> None:
    words = list(Verdict) if name == VERDICT else MIMIC_KINDS
    rule = DataValidation(
        type="list", formula1=f'"{",".join(words)}"', allow_blank=True, showErrorMessage=True
    )
    rule.errorTitle, rule.error = "Not a choice", f"Choose one of: {', '.join(words)}"
    letter = get_column_letter(column)
    rule.add(f"{letter}2:{letter}{last}")
    sheet.add_data_validation(rule)
    for line in range(2, last + 1):
        sheet.cell(line, column).fill = _TO_FILL


def is_spreadsheet_of_ours(path: Path) -> bool:
    """Whether the first row of the first sheet names our columns.

    Raises:
        UserError: see `read_sheet`.
    """
    header = (read_sheet(path) or [()])[0]
    return {ID, SUBJECT, VERDICT, *POSITION} <= set(header)


def read_spreadsheet(path: Path, result: Result) -> list[Mark]:
    """The rows as marks; a row without id is a lesion that the reader added.

    Raises:
        UserError: see `read_sheet`; a row of another subject, a word that is not a verdict, a coordinate that
            is not a number, an added lesion without verdict.
    """
    header, *rows = read_sheet(path)
    names = [str(name) for name in header]
    marks = []
    for line, cells in enumerate(rows, start=2):
        if cells:
            padded: Row = (*cells, *[None] * (len(names) - len(cells)))
            marks.append(_mark(dict(zip(names, padded, strict=False)), path, line, result.subject))
    return marks


def _mark(row: dict[str, Cell], path: Path, line: int, subject: str) -> Mark:
    where = f"{path}: row {line}"
    candidate = None
    if row[ID] is not None:
        value = number(row[ID], path, line, ID)
        candidate = int(value)
        if candidate != value:
            raise UserError(f"{where}: {ID} is {value:g}, but must be a whole number as exported")
    stated = text_of(row[SUBJECT])
    if stated not in ("", subject) or (candidate is not None and not stated):
        raise UserError(
            f"{where}: {SUBJECT} is {stated!r}, but the result is of {subject!r}; "
            "give the file of this scan (or the --subject that it was exported with)"
        )
    verdict, mimic = parse_verdict(text_of(row[VERDICT]), text_of(row.get(MIMIC)), where)
    # Microbleed-review-viewer writes VERIFY: it counts if our own column is empty, and must not contradict it
    verified = text_of(row.get(VERIFY))
    if verified not in ("", "0", "1"):
        raise UserError(f"{where}: {VERIFY} is {verified!r}; allowed: 1, 0, or empty")
    if verified and verdict is None:
        verdict = Verdict.MICROBLEED if verified == "1" else Verdict.MIMIC
    elif verified and (verified == "1") != (verdict is Verdict.MICROBLEED):
        raise UserError(f"{where}: {VERDICT} is {verdict} but {VERIFY} is {verified}; correct one of them")
    if candidate is None and verdict is None:
        raise UserError(f"{where}: a lesion was added without a verdict; allowed: {', '.join(Verdict)}")
    x, y, z = (number(row[name], path, line, name) for name in POSITION)
    diameter = None
    if candidate is None and row.get(DIAMETER) is not None:
        diameter = number(row[DIAMETER], path, line, DIAMETER)
        if diameter <= 0:
            raise UserError(f"{where}: {DIAMETER} is {diameter:g}; it must be above 0 mm, or empty")
    return Mark(
        candidate=candidate,
        verdict=verdict,
        mimic=mimic,
        position_mm=(x, y, z),
        diameter_mm=diameter,
        where=where,
    )


def text_of(cell: Cell) -> str:
    """A cell as text; whole numbers without a point."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return "" if cell is None else str(cell)


def read_viewer_export(path: Path, result: Result) -> list[list[Mark]]:
    """The marks of each reader, in the order of their names, from the rows of this result's subject.

    Findings are matched to candidates by the position that was imported: row numbers mean nothing once
    workbooks of several scans have been joined.

    Raises:
        UserError: see `read_sheet`; another kind of workbook, no row of the subject, no reader, a finding
            that is not at a candidate's position, an invalid verdict.
    """
    header, *rows = read_sheet(path) or [()]
    names = [text_of(name) for name in header]
    readers = sorted(name.removesuffix(_EXPORT_VERIFY) for name in names if name.endswith(_EXPORT_VERIFY))
    if not set(_EXPORT_COLUMNS) <= set(names) or not readers:
        raise UserError(
            f"{path}: is neither the spreadsheet of cmb-jax review export nor an export of "
            "Microbleed-review-viewer (first sheet, first row)"
        )
    found: list[list[Mark]] = [[] for _ in readers]
    seen = False
    for line, cells in enumerate(rows, start=2):
        row = dict(zip(names, (*cells, *[None] * (len(names) - len(cells))), strict=False))
        if text_of(row["case_id"]) != result.subject:
            continue
        seen = True
        candidate = _imported_candidate(row, path, line, result)
        for marks, reader in zip(found, readers, strict=True):
            mark = _finding(row, reader, candidate, path, line)
            if mark is not None:
                marks.append(mark)
    if not seen:
        raise UserError(
            f"{path}: no row has the case_id {result.subject!r}; give the export of this scan "
            "(or the --subject that it was exported with)"
        )
    return found


def _imported_candidate(row: dict[str, Cell], path: Path, line: int, result: Result) -> int | None:
    """Id of the candidate at the imported position; None for a finding that a reader added."""
    if text_of(row["origin"]).casefold() == "manual":
        return None
    place = [number(row[name], path, line, name) for name in _EXPORT_POSITION]
    apart = np.linalg.norm(positions_mm(result.rows) - place, axis=1)
    if not len(apart) or apart.min() > _SAME_PLACE_MM:
        shown = ", ".join(f"{value:g}" for value in place)
        raise UserError(
            f"{path}: row {line}: no candidate of {result.folder} lies at ({shown}); "
            "was the workbook exported from another run?"
        )
    return result.rows[int(apart.argmin())].id


def _finding(row: dict[str, Cell], reader: str, candidate: int | None, path: Path, line: int) -> Mark | None:
    where = f"{path}: row {line}"
    verify = text_of(row[f"{reader}{_EXPORT_VERIFY}"])
    if verify not in ("", "0", "1"):
        raise UserError(f"{where}: verify is {verify!r}; allowed: 1, 0, or empty")
    if not verify:
        return None
    kind = text_of(row.get(f"{reader}{_SEPARATOR}mimic")).casefold()
    final = [row.get(f"{reader}{_SEPARATOR}final_{axis}") for axis in "lps"]
    placed = [row[name] for name in _EXPORT_POSITION] if None in final else final
    x, y, z = (number(value, path, line, name) for value, name in zip(placed, _EXPORT_POSITION, strict=True))
    return Mark(
        candidate=candidate,
        verdict=Verdict.MICROBLEED if verify == "1" else Verdict.MIMIC,
        mimic=kind if verify == "0" and kind in MIMIC_KINDS else "",
        position_mm=(x, y, z),
        where=where,
    )
