"""CSV and TSV: read with errors that name file, line and column, and written."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.outside import parse_rows, read_text, reading, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table whose first line names the columns."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return column in self.columns

    def text(self, column: str) -> tuple[str, ...]:
        """A column as it is written."""
        index = self.columns.index(column)
        return tuple(row[index] for row in self.rows)

    def records(self) -> list[dict[str, str]]:
        """Each row by the names of the columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def numbers(self, column: str, minimum: float = -math.inf) -> np.ndarray:
        """A column (n,) as float64.

        Raises:
            UserError: a value is not a finite number, or is below the minimum.
        """
        cells = enumerate(self.text(column))
        return np.array([self._number(row, column, text, minimum) for row, text in cells], np.float64)

    def whole_numbers(self, column: str) -> list[int]:
        """A column of whole numbers.

        Raises:
            UserError: a value is none, or has more than nine digits.
        """
        values = self.numbers(column)
        for row, value in enumerate(values):
            if value != round(value) or abs(value) >= 1e9:
                raise UserError(
                    f"{self.path}: line {row + 2}: {column} is {value:g}, but it must be a whole number"
                )
        return [int(value) for value in values]

    def optional_numbers(self, column: str, minimum: float = -math.inf) -> np.ndarray:
        """A column (n,) as float64, NaN where nothing (or n/a, as in BIDS) stands or without such a column.

        Raises:
            UserError: another value is not a finite number, or is below the minimum.
        """
        cells = self.text(column) if self.has(column) else ("",) * len(self)
        return np.array(
            [
                math.nan if text in ("", "n/a") else self._number(row, column, text, minimum)
                for row, text in enumerate(cells)
            ],
            np.float64,
        )

    def _number(self, row: int, column: str, text: str, minimum: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum:
            wanted = "a number" if minimum == -math.inf else f"a number from {minimum:g} on"
            raise UserError(
                f"{self.path}: line {row + 2}: {column} is {shown(text)}, but it must be {wanted}"
            )
        return value


def table_text(
    columns: Sequence[str], rows: Iterable[Iterable[object]], *, delimiter: str = ",", nothing: str = ""
) -> str:
    """A table as text, the names of its columns first; `nothing` stands where a cell is None or empty."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([nothing if cell in ("", None) else cell for cell in row] for row in rows)
    return text.getvalue()


def read_rows(path: Path, delimiter: str | None, remedy: str = "give a CSV file") -> list[list[str]]:
    """The lines of a table as cells; `delimiter` None: comma or semicolon, as the first line has more of.

    Raises:
        UserError: missing, unreadable or far too large.
    """
    with reading(path, remedy):
        text = read_text(path, remedy)
        if delimiter is None:
            first = text.partition("\n")[0]
            delimiter = ";" if first.count(";") > first.count(",") else ","
        return parse_rows(text, delimiter)


def read_columns(
    path: Path, *, required: Sequence[str], delimiter: str | None = ",", any_case: bool = False
) -> TextTable:
    """Read a table; empty lines are skipped only at its end.

    Args:
        path: the file.
        required: columns that must be there.
        delimiter: between the cells; None: comma or semicolon, whichever the first line has more of.
        any_case: the names of the columns may have capitals, and are read as small letters.

    Raises:
        UserError: missing or unreadable file, no header line, missing columns, or a line that is too short
            or too long.
    """
    lines = read_rows(path, delimiter)
    if not lines:
        raise UserError(f"{path}: is empty; its first line must name the columns {', '.join(required)}")
    columns = tuple(name.strip().casefold() if any_case else name.strip() for name in lines[0])
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; the first line must name the columns")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise UserError(f"{path}: line {number} has {len(line)} values for {len(columns)} columns")
    return TextTable(
        path=path, columns=columns, rows=tuple(tuple(value.strip() for value in line) for line in lines[1:])
    )
