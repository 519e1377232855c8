"""The one door for files that others wrote, or that may have been damaged since.

Everything that reads a file does so inside `reading`, which turns whatever goes wrong into one line for
people; tests/io/test_outside.py finds calls that do not. What the usual kinds of files need besides (sizes,
depth, numbers without bounds, archives that unpack to anything) is here as well: JSON, lines of tables,
arrays, text.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmb_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np  # imported where arrays are read: every command, and every message, passes this module

MAX_TEXT_BYTES = 2**26
"""Of a JSON file or a table: a hundred times what the largest cohort's table takes."""

MAX_ARRAYS_BYTES = 2**32
MAX_ROWS = 1_000_000
MAX_DEPTH = 64  # of JSON; what walks over it later recurses
_LARGEST_WHOLE = 2**63
_REMEDY = "copy or make it again"
_LONGEST_REASON = 200
_LONGEST_NAME = 300


class Unreadable(UserError):
    """A file that cannot be used. `reason` says why without naming the file: it may go into outputs."""

    def __init__(self, where: str | Path, reason: str, remedy: str):
        super().__init__(f"{shortened(str(where), _LONGEST_NAME)}: {reason}; {remedy}")
        self.reason = reason


def shortened(text: str, length: int = _LONGEST_REASON) -> str:
    """Text on one line, and cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def shown(value: object) -> str:
    """A value of a file as messages show it."""
    return shortened(repr(value), 60)


@contextlib.contextmanager
def reading(
    where: str | Path,
    remedy: str = _REMEDY,
    *,
    missing: str = "no such file; check the name",
    but: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Around all that reads a file and makes sense of it.

    Args:
        where: the file, as messages call it.
        remedy: what messages tell to do about a file that cannot be used.
        missing: what a message says if there is no such file.
        but: what the body raises for the caller to judge.

    Raises:
        UserError: as the body raised it; `Unreadable` for anything else that the body raised.
    """
    passed_on: tuple[type[Exception], ...] = (UserError, *but)
    try:
        yield
    except passed_on:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{shortened(str(where), _LONGEST_NAME)}: {missing}") from error
    except MemoryError as error:
        raise Unreadable(where, "takes more memory than there is", remedy) from error
    except OSError as error:
        raise Unreadable(
            where, f"cannot be read ({error.strerror or type(error).__name__})", remedy
        ) from error
    except RecursionError as error:
        raise Unreadable(where, "cannot be read (nested too deeply)", remedy) from error
    except Exception as error:  # a damaged file raises whatever its parser stumbles over
        raise Unreadable(where, f"cannot be read ({_reason(error)})", remedy) from error


def _reason(error: Exception) -> str:
    """An error in words; its type as well where the text says nothing by itself."""
    name, text = type(error).__name__, shortened(str(error))
    if isinstance(error, KeyError):
        return f"lacks {text}"
    if not text:
        return name
    plain = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
    return text if plain else f"{name}: {text}"


def check_is_file(path: Path, remedy: str) -> int:
    """The size in bytes of a plain file: a pipe or a device would block.

    Raises:
        UserError: a folder or something else that is no file.
        OSError: there is nothing, or it cannot be looked at.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable(path, "is a folder", remedy)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(path, "is not a plain file", remedy)
    return status.st_size


def read_bytes(path: Path, remedy: str = _REMEDY, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UserError."""
    with reading(path, remedy):
        size = check_is_file(Path(path), remedy)
        if size > limit:
            raise Unreadable(path, f"is {size / 1e6:.0f} MB long, more than such a file ever is", remedy)
        with open(path, "rb") as stream:
            return stream.read(limit)


def read_text(path: Path, remedy: str = _REMEDY, *, limit: int = MAX_TEXT_BYTES) -> str:
    """The content of a UTF-8 file, with or without a byte order mark. Raises UserError."""
    with reading(path, remedy):
        return read_bytes(path, remedy, limit=limit).decode("utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """JSON as Python values; whole numbers beyond 64 bits become floats, as all others are bounded.

    Raises:
        ValueError: no JSON, or nested more deeply than `MAX_DEPTH`.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level, depth = [content], 0
    while level:  # one level at a time, without recursion
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        nested = (
            part.values() if isinstance(part, dict) else part
            for part in level
            if isinstance(part, dict | list)
        )
        level = [value for values in nested for value in values if isinstance(value, dict | list)]
    return content


def _whole(text: str) -> int | float:
    value = float(text)  # infinite beyond the range of floats, and without the limits of int()
    return int(text) if abs(value) < _LARGEST_WHOLE else value


def read_json(path: Path, remedy: str = _REMEDY, *, limit: int = MAX_TEXT_BYTES) -> Any:
    """The content of a JSON file. Raises UserError; see `parse_json`."""
    text = read_text(path, remedy, limit=limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise Unreadable(path, f"is not readable JSON ({shortened(str(error))})", remedy) from error


def read_json_object(path: Path, remedy: str = _REMEDY, *, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError; see `parse_json`."""
    content = read_json(path, remedy, limit=limit)
    if not isinstance(content, dict):
        raise Unreadable(path, "holds no JSON object", remedy)
    return content


def parse_rows(text: str, delimiter: str) -> list[list[str]]:
    """The lines of a table as cells, blank lines at its end left out.

    Raises:
        ValueError: a cell that is too long, or too many lines.
    """
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text.rstrip(" \r\n"), newline=""), delimiter=delimiter):
            rows.append(row)
            if len(rows) > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS} lines")
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return rows


def read_arrays(path: Path, *, limit: int = MAX_ARRAYS_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; no Python object is ever made of one.

    Raises:
        UserError: damaged (the archive's checksums are compared), not .npz, or more than `limit` bytes.
    """
    import numpy as np

    with reading(path):
        check_is_file(Path(path), _REMEDY)
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise Unreadable(path, f"unpacks to more than {limit / 1e9:.0f} GB", _REMEDY)
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    _check_claim(member, entry.file_size)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def _check_claim(member: Any, size: int) -> None:
    """An array's header must claim what the archive holds: NumPy allocates what it claims, then reads."""
    import numpy as np

    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"an array of format version {version}")
    shape, _, dtype = read[version](member)
    if member.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("an array of another size than its header says")


def read_array(path: Path, remedy: str = _REMEDY, *, mapped: bool = False) -> np.ndarray:
    """The array of an .npy file, `mapped`: left on disk. Raises UserError."""
    import numpy as np

    with reading(path, remedy):
        size = check_is_file(Path(path), remedy)
        with open(path, "rb") as stream:
            _check_claim(stream, size)
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def a_number(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number of JSON within bounds, both included. Raises ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {shortened(ascii(value), 40)}, but it must be a number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}, but it must lie in {low:g} to {high:g}")
    return float(value)


def a_text(value: object, name: str, length: int = 4096) -> str:
    """A text of JSON. Raises ValueError that names it."""
    if not isinstance(value, str) or len(value) > length:
        raise ValueError(f"{name} is {shortened(ascii(value), 40)}, but it must be text")
    return value
