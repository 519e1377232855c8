"""Tables from Excel and CSV files as plain rows. Values only: no formula, macro or link is run."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from pathlib import Path
from xml.etree.ElementTree import ParseError

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from cmb_jax.errors import UserError
from cmb_jax.io.outside import check_is_file, reading, shortened, shown
from cmb_jax.io.tables import read_columns

Cell = str | float | None
Row = tuple[Cell, ...]

_MAX_ROWS, _MAX_COLUMNS = 20_000, 300
_MAX_ELEMENTS, _MAX_OTHER_ELEMENTS = 800_000, 200_000
_MAX_UNPACKED = 2**26  # a workbook is a zip file, and a small one may unpack to anything
_WORKBOOK_ERRORS = (
    zipfile.BadZipFile,
    InvalidFileException,
    ParseError,
    zlib.error,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    RuntimeError,  # zipfile: an encrypted part, or a kind of compression that it cannot read
)


def read_sheet(path: Path) -> list[Row]:
    """The rows of the first sheet of an .xlsx file, cells as text (trimmed), number or None (blank).

    Rows end at their last cell that is not blank.

    Raises:
        UserError: missing, not a readable .xlsx file, or far larger than any table of lesions.
    """
    todo = "is it a readable Excel workbook? save it as .xlsx"
    with reading(path, todo, missing="no such file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # styles and extensions that are of no interest here
        check_is_file(path, todo)
        try:
            _check_parts(path)
            rows = _cells(path)
        except _WORKBOOK_ERRORS as error:
            reason = shortened(str(error)) or type(error).__name__
            raise UserError(
                f"{path}: is not a readable Excel workbook ({reason}); save it as .xlsx"
            ) from error
    if len(rows) > _MAX_ROWS or any(len(row) > _MAX_COLUMNS for row in rows):
        raise UserError(f"{path}: has more than {_MAX_ROWS} rows or {_MAX_COLUMNS} columns")
    return rows


def _check_parts(path: Path) -> None:
    """The elements of each part are counted before a parser makes objects of them."""
    with reading(path, but=_WORKBOOK_ERRORS), zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_UNPACKED:
            raise UserError(f"{path}: unpacks to {unpacked / 1e6:.0f} MB; no table of lesions is that large")
        for entry in archive.infolist():
            elements = 0
            with archive.open(entry) as part:
                while block := part.read(2**20):
                    elements += block.count(b"<")
            if elements > (_MAX_ELEMENTS if "sheet" in entry.filename.casefold() else _MAX_OTHER_ELEMENTS):
                raise UserError(
                    f"{path}: {shortened(entry.filename, 60)} has {elements} elements; no table of lesions "
                    "has so many: save only the table"
                )


def _cells(path: Path) -> list[Row]:
    with reading(path, but=_WORKBOOK_ERRORS):
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            wide = min(sheet.max_column or _MAX_COLUMNS, _MAX_COLUMNS) + 1
            cells = sheet.iter_rows(max_row=_MAX_ROWS + 1, max_col=wide, values_only=True)
            return [_row(row) for row in cells]
        finally:
            book.close()


def _row(values: tuple[object, ...]) -> Row:
    """Cells up to the last that is not blank."""
    cells = [_cell(value) for value in values]
    while cells and cells[-1] is None:
        cells.pop()
    return tuple(cells)


def _cell(value: object) -> Cell:
    if value is None or isinstance(value, bool):
        return None if value is None else str(value)
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else None
    return str(value).strip() or None  # the tables fill unused cells with blanks


def number(value: Cell, path: Path, row: int, name: str) -> float:
    """A cell as a finite number.

    Raises:
        UserError: it holds none; file, row (from 1) and column are named.
    """
    try:
        result = math.nan if value is None else float(value)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        said = "blank" if value is None else shown(value)
        raise UserError(f"{path}: row {row}: {name} is {said}, but it must be a number")
    return result


def read_csv(path: Path, required: tuple[str, ...], delimiter: str | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line, in small letters.

    Args:
        path: the file.
        required: columns that must be there.
        delimiter: between the cells; None: comma or semicolon, whichever the first line has more of.

    Raises:
        UserError: missing or unreadable file, no header line, missing columns, or a line of another length.
    """
    return read_columns(path, required=required, delimiter=delimiter, any_case=True).records()
