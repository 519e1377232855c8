"""Numbers from MATLAB files of version 5 to 7: real matrices only, no objects, cells or structs.

Read here and not by SciPy, whose reader ends the whole process on some damaged files. The layout is the one
published as "MAT-File Format" (MathWorks): a header of 128 bytes, then elements of a tag and data.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.outside import check_is_file, reading

_MAX_BYTES = 2**24  # of the file, and of what a compressed element unpacks to
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED, _INT32, _UINT32 = 14, 15, 5, 6
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers
_COMPLEX = 0x0800


@dataclasses.dataclass(frozen=True)
class _Element:
    kind: int
    data: bytes


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numeric arrays (float64) by name; a name that the file lacks is missing from the result.

    Raises:
        UserError: missing or damaged file, one of version 7.3 (HDF5) or 4, or a name that holds no real
            numbers.
    """
    with reading(path, "is it a MATLAB file of version 5 to 7?", missing="no such file"):
        size = check_is_file(path, "give a MATLAB file")
        with open(path, "rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        return _read(path, content, size, names)


def _read(path: Path, content: bytes, size: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    if content.startswith(b"MATLAB 7.3") or _HDF5 in (content[:8], content[512:520]):
        raise UserError(f"{path}: is a MATLAB file of version 7.3; save it in MATLAB with save(..., '-v7')")
    if size > _MAX_BYTES:
        raise UserError(f"{path}: is {size / 1e6:.0f} MB long; no table of lesions is that large")
    try:
        return _arrays(content, names)
    except (ValueError, zlib.error) as error:
        raise UserError(f"{path}: is not a readable MATLAB file of version 5 to 7 ({error})") from error


def _arrays(content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Raises ValueError or zlib.error on anything that is not as the format says."""
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has no header")
    order: Literal["little", "big"] = "little" if content[126:128] == b"IM" else "big"
    arrays = {}
    for element in _elements(content[128:], order):
        if element.kind == _COMPRESSED:
            element = _inflate(element.data, order)
        if element.kind == _MATRIX:
            name, value = _matrix(element.data, order, names)
            if value is not None:
                arrays[name] = value
    return arrays


def _elements(data: bytes, order: Literal["little", "big"]) -> Iterator[_Element]:
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
        yield _Element(kind, data[begin:end])
        start = following


def _inflate(packed: bytes, order: Literal["little", "big"]) -> _Element:
    decoder = zlib.decompressobj()
    data = decoder.decompress(packed, _MAX_BYTES)
    if not decoder.eof:
        raise ValueError("a compressed element is truncated or too large")
    element = next(_elements(data, order), None)
    if element is None:
        raise ValueError("a compressed element is empty")
    return element


def _matrix(
    data: bytes, order: Literal["little", "big"], names: tuple[str, ...]
) -> tuple[str, np.ndarray | None]:
    """Name and value of a matrix; None for one that is not asked for."""
    parts = _elements(data, order)
    flags, shape_part, name_part = (next(parts, _Element(0, b"")) for _ in range(3))
    name = name_part.data.decode("latin-1")
    if name not in names:
        return name, None
    if flags.kind != _UINT32 or len(flags.data) != 8 or shape_part.kind != _INT32:
        raise ValueError(f"{name} has no array header")
    word = int.from_bytes(flags.data[:4], order)
    if word & 0xFF not in _NUMERIC_CLASSES or word & _COMPLEX:
        raise ValueError(f"{name} holds no plain numbers; it must be a real matrix")
    shape = tuple(int(n) for n in _numbers(shape_part, order))
    stored = next(parts, _Element(9, b""))  # an empty matrix may lack its numbers
    values = _numbers(stored, order)
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{name} holds {len(values)} numbers, but its shape is {shape}")
    return name, values.astype(np.float64).reshape(shape, order="F")


def _numbers(element: _Element, order: Literal["little", "big"]) -> np.ndarray:
    if element.kind not in _STORED:
        raise ValueError(f"numbers of the unknown type {element.kind}")
    dtype = np.dtype(_STORED[element.kind]).newbyteorder("<" if order == "little" else ">")
    if len(element.data) % dtype.itemsize:
        raise ValueError("it is truncated")
    return np.frombuffer(element.data, dtype)
