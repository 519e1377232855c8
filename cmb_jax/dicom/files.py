"""DICOM files as they lie on disk, also those whose preamble and DICM mark were cut off (PS3.10 7.1)."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import InvalidDicomError

from cmb_jax.io.outside import reading

_MARK, _PREAMBLE = b"DICM", bytes(128)
_MARKED, _REMEDY = 132, "copy it again"
_LARGE_READ = 2**16
_FIRST_GROUPS = (0x0002, 0x0008)  # of file meta information, or of a data set without it
_VALUE_REPRESENTATION = (b"UL", b"OB", b"CS", b"UI", b"DA", b"LO", b"SH")


class _Bounded(io.BufferedReader):
    """A file of which no more is read than there is: else a damaged length asks for that much memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_whole(path: Path) -> BinaryIO:
    """The file from its preamble on, put before it where it is missing.

    Raises:
        InvalidDicomError: nothing at the file's start is DICOM.
        UserError: it cannot be read.
    """
    with reading(path, _REMEDY, but=(InvalidDicomError,)):
        stream = _Bounded(io.FileIO(path))
        start = stream.read(_MARKED)
        if start[len(_PREAMBLE) :] == _MARK:
            stream.seek(0)
            return stream
        with stream:
            if start[: len(_MARK)] != _MARK and not _starts_with_element(start):
                raise InvalidDicomError(f"{path.name} does not begin as DICOM does")
            rest = start + stream.read()
        return io.BytesIO(_PREAMBLE + (b"" if rest.startswith(_MARK) else _MARK) + rest)


def has_mark(path: Path) -> bool:
    """Whether the file has its preamble and mark. Raises UserError."""
    with reading(path, _REMEDY), open(path, "rb") as stream:
        return stream.read(_MARKED)[len(_PREAMBLE) :] == _MARK


def _starts_with_element(start: bytes) -> bool:
    """Whether an element of a first group stands there, in explicit or implicit little endian."""
    if len(start) < 12 or int.from_bytes(start[:2], "little") not in _FIRST_GROUPS:
        return False
    length = int.from_bytes(start[4:8], "little")
    return start[4:6] in _VALUE_REPRESENTATION or length <= 64
