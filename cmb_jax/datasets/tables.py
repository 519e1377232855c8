"""Tables of data sets: Excel and CSV files as plain rows, and matrices of MATLAB files.

Values only: formulas, macros and links are not executed. SciPy does not read the MATLAB files here, because
some damaged ones crash its whole process. Their layout is published as "MAT-File Format" (MathWorks): a
header of 128 bytes, then elements of a tag and data.
"""

import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import ParseError

import numpy as np
import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from cmb_jax.errors import UserError
from cmb_jax.io.outside import check_is_file, reading, shortened, shown
from cmb_jax.io.tables import read_columns

Cell = str | float | None
Row = tuple[Cell, ...]

_MAX_ROWS, _MAX_COLUMNS = 20_000, 300
_MAX_ELEMENTS, _MAX_OTHER_ELEMENTS = 800_000, 200_000
_MAX_UNPACKED = 2**26  # a workbook is a zip file; a tiny one may unpack to gigabytes
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
    RuntimeError,  # zipfile: an encrypted part, or an unknown compression
)


def read_csv(path: Path, required: tuple[str, ...], delimiter: str | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line, in lower case.

    Args:
        path: the file.
        required: names of columns that must exist.
        delimiter: between cells; None: comma or semicolon, whichever is more frequent in the first line.

    Raises:
        UserError: missing or unreadable file, no header line, missing columns, or a line of another length.
    """
    return read_columns(path, required=required, delimiter=delimiter, any_case=True).records()


def read_sheet(path: Path) -> list[Row]:
    """The rows of the first sheet of an .xlsx file, cells as text (trimmed), number or None (blank).

    Rows end at their last nonblank cell.

    Raises:
        UserError: missing, not a readable .xlsx file, or far larger than any table of lesions.
    """
    remedy = "is it a readable Excel workbook? save it as .xlsx"
    with reading(path, remedy, missing="no such file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about styles and extensions
        check_is_file(path, remedy)
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
    """Count the XML elements of each part before openpyxl makes objects of them, which are far larger."""
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
            width = min(sheet.max_column or _MAX_COLUMNS, _MAX_COLUMNS) + 1
            cells = sheet.iter_rows(max_row=_MAX_ROWS + 1, max_col=width, values_only=True)
            return [_row(row) for row in cells]
        finally:
            book.close()


def _row(values: tuple[object, ...]) -> Row:
    """Cells up to the last nonblank one."""
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
        UserError: it is not; the message names file, row (from 1) and column.
    """
    try:
        result = math.nan if value is None else float(value)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        said = "blank" if value is None else shown(value)
        raise UserError(f"{path}: row {row}: {name} is {said}, but it must be a number")
    return result


_MAX_MAT_BYTES = 2**24  # of the file, and of a compressed element once unpacked
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED, _INT32, _UINT32 = 14, 15, 5, 6
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers
_COMPLEX = 0x0800

_Order = Literal["little", "big"]
_Element = tuple[int, bytes]  # kind, data


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Real matrices (float64) of a MATLAB file of version 5 to 7, by name; absent names are left out.

    Raises:
        UserError: missing or damaged file, version 7.3 (HDF5) or 4, or a variable that is not a real matrix.
    """
    with reading(path, "is it a MATLAB file of version 5 to 7?", missing="no such file"):
        size = check_is_file(path, "give a MATLAB file")
        with open(path, "rb") as stream:
            content = stream.read(_MAX_MAT_BYTES + 1)
        if content.startswith(b"MATLAB 7.3") or _HDF5 in (content[:8], content[512:520]):
            raise UserError(
                f"{path}: is a MATLAB file of version 7.3; save it in MATLAB with save(..., '-v7')"
            )
        if size > _MAX_MAT_BYTES:
            raise UserError(f"{path}: is {size / 1e6:.0f} MB long; no table of lesions is that large")
        try:
            return _arrays(content, names)
        except (ValueError, zlib.error) as error:
            raise UserError(f"{path}: is not a readable MATLAB file of version 5 to 7 ({error})") from error


def _arrays(content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Raises ValueError or zlib.error if the content violates the format."""
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has no header")
    order: _Order = "little" if content[126:128] == b"IM" else "big"
    arrays = {}
    for kind, data in _elements(content[128:], order):
        if kind == _COMPRESSED:
            kind, data = _inflate(data, order)
        if kind == _MATRIX:
            name, value = _matrix(data, order, names)
            if value is not None:
                arrays[name] = value
    return arrays


def _elements(data: bytes, order: _Order) -> Iterator[_Element]:
    # A tag is 8 bytes: kind and length. Up to 4 bytes of data are packed into the tag itself, with the length
    # in the upper half of the first word. All others are padded to 8 bytes, except compressed ones.
    start = 0
    while start < len(data):
        if start + 8 > len(data):
            raise ValueError("it is truncated")
        kind = int.from_bytes(data[start : start + 4], order)
        if kind >> 16:  # up to 4 bytes, packed into the tag
            length, kind = kind >> 16, kind & 0xFFFF
            begin, end, following = start + 4, start + 4 + length, start + 8
            if length > 4:
                raise ValueError("a packed element is too long")
        else:
            length = int.from_bytes(data[start + 4 : start + 8], order)
            begin, end = start + 8, start + 8 + length
            following = end if kind == _COMPRESSED else end + -length % 8
        if end > len(data):
            raise ValueError("it is truncated")
        yield kind, data[begin:end]
        start = following


def _inflate(packed: bytes, order: _Order) -> _Element:
    decoder = zlib.decompressobj()
    data = decoder.decompress(packed, _MAX_MAT_BYTES)
    if not decoder.eof:
        raise ValueError("a compressed element is truncated or too large")
    element = next(_elements(data, order), None)
    if element is None:
        raise ValueError("a compressed element is empty")
    return element


def _matrix(data: bytes, order: _Order, names: tuple[str, ...]) -> tuple[str, np.ndarray | None]:
    """Name and value of a matrix; the value is None if the name is not among `names`."""
    parts = _elements(data, order)
    flags, sizes, label = (next(parts, (0, b"")) for _ in range(3))
    name = label[1].decode("latin-1")
    if name not in names:
        return name, None
    if flags[0] != _UINT32 or len(flags[1]) != 8 or sizes[0] != _INT32:
        raise ValueError(f"{name} has no array header")
    word = int.from_bytes(flags[1][:4], order)
    if word & 0xFF not in _NUMERIC_CLASSES or word & _COMPLEX:
        raise ValueError(f"{name} holds no plain numbers; it must be a real matrix")
    shape = tuple(int(n) for n in _numbers(sizes, order))
    values = _numbers(next(parts, (9, b"")), order)  # an empty matrix may lack its numbers
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{name} holds {len(values)} numbers, but its shape is {shape}")
    return name, values.astype(np.float64).reshape(shape, order="F")


def _numbers(element: _Element, order: _Order) -> np.ndarray:
    kind, data = element
    if kind not in _STORED:
        raise ValueError(f"numbers of the unknown type {kind}")
    dtype = np.dtype(_STORED[kind]).newbyteorder("<" if order == "little" else ">")
    if len(data) % dtype.itemsize:
        raise ValueError("it is truncated")
    return np.frombuffer(data, dtype)
