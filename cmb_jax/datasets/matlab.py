"""Numbers from MATLAB files of version 5: arrays only, no objects."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from scipy import io as scipy_io

from cmb_jax.errors import UserError

_MAX_BYTES = 2**24
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MAT_ERRORS = (
    scipy_io.matlab.MatReadError,
    NotImplementedError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    OSError,
    MemoryError,
    struct.error,
    zlib.error,
)


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numeric arrays (float64) by name; a name that the file lacks is missing from the result.

    Raises:
        UserError: missing or damaged file, one of version 7.3 (HDF5), or a name that holds no real numbers.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(520)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"MATLAB 7.3") or _HDF5 in (start[:8], start[512:520]):
        raise UserError(f"{path}: is a MATLAB file of version 7.3; save it in MATLAB with save(..., '-v7')")
    if size > _MAX_BYTES:
        raise UserError(f"{path}: is {size / 1e6:.0f} MB long; no table of lesions is that large")
    try:
        found = scipy_io.loadmat(str(path), variable_names=list(names), appendmat=False)
    except _MAT_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is not a readable MATLAB file ({reason})") from error
    arrays = {}
    for name in names:
        if name not in found:
            continue
        value = found[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb":
            raise UserError(f"{path}: {name} holds no plain numbers; it must be a matrix")
        arrays[name] = np.asarray(value, np.float64)
    return arrays
