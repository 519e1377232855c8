"""Changed voxels back into the form in which a file stores them: type, slope, header, range of the phase."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.header import NiftiFile
from cmb_jax.io.outside import reading

_COMPRESSION = 4
_WRAPPED = 1.01  # ends of wrapped phase over those of its turn, rounding included
_FORMAT_TEXTS = ("magic", "regular")  # belong to the format, not to the scan


def scaled_magnitude(file: NiftiFile, gain: np.ndarray) -> np.ndarray:
    """The stored numbers of a magnitude image times `gain`.

    Args:
        file: the magnitude as read.
        gain: (I, J, K, E) on the file's own grid; E is 1 for a 3D file.

    Returns:
        Array of the file's shape and type, without slope and intercept; what `gain` 1 leaves is bit for bit
        the input.
    """
    raw, values = _values(file)
    return _stored(file, raw, values * gain.reshape(raw.shape))


def shifted_phase(file: NiftiFile, shift: np.ndarray, turn: tuple[float, float]) -> np.ndarray:
    """The stored numbers of a phase image with `shift` added and wrapped into the range that they are in.

    Args:
        file: the phase as read.
        shift: (I, J, K, E) radians on the file's own grid.
        turn: the stored values that one turn lies between. Values beyond them (unwrapped) are not wrapped.

    Returns:
        Array of the file's shape and type, without slope and intercept.
    """
    raw, values = _values(file)
    low, width = turn[0], turn[1] - turn[0]
    unit = width / (2 * math.pi)
    finite = values[np.isfinite(values)]
    beyond = (_WRAPPED - 1) * width / 2
    unwrapped = finite.min() < low - beyond or finite.max() > turn[1] + beyond
    changed = values + unit * shift.reshape(raw.shape)
    if bool(np.all(values == np.rint(values))):
        changed = np.rint(changed)  # integers stay integers, also in a file of floats
    # what was at the upper end and has not changed stays there
    if not unwrapped:
        turned = changed - width * np.floor((changed - low) / width)
        changed = np.where(changed == values, changed, turned)
    return _stored(file, raw, changed)


def write_stored(
    path: Path, raw: np.ndarray, like: NiftiFile, *, keep_identifiers: bool = False, overwrite: bool = False
) -> None:
    """Writes stored numbers under the header of `like`: type, slope, both transforms. Same input, same bytes.

    Args:
        path: ends in .nii.gz.
        raw: (I, J, K [, E]), as stored.
        like: file whose header is used.
        keep_identifiers: keep its free texts and extensions too, where converters put names and dates.
        overwrite: replace a file that exists.

    Raises:
        UserError: the file exists or cannot be written.
    """
    header = like.image.header.copy() if keep_identifiers else without_texts(like.image.header)
    image = type(like.image)(raw, None, header)
    # told explicitly, or the writer would choose a scale of its own
    image.header.set_slope_inter(*_scale(like))
    content = image.to_bytes()
    compressed = gzip.compress(content, _COMPRESSION, mtime=0)
    atomic_write_bytes(path, compressed, overwrite=overwrite)


def stored_values(file: NiftiFile) -> np.ndarray:
    """The array (I, J, K [, E]) as it is stored, without slope and intercept."""
    with reading(file.path, "its voxels cannot be decoded: convert it again"):
        return np.asarray(_proxy(file).get_unscaled())


def without_texts(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A copy of a header without free texts (descrip, aux_file, db_name, intent_name, ...) and extensions."""
    bare = header.copy()
    for name in bare.template_dtype.names:
        if bare.template_dtype[name].kind == "S" and name not in _FORMAT_TEXTS:
            bare[name] = b""
    bare.extensions.clear()
    return bare


def _proxy(file: NiftiFile) -> ArrayProxy:
    proxy = file.image.dataobj
    assert isinstance(proxy, ArrayProxy)  # as every image that was read from a file
    return proxy


def _scale(file: NiftiFile) -> tuple[float, float]:
    proxy = _proxy(file)
    return float(proxy.slope), float(proxy.inter)


def _values(file: NiftiFile) -> tuple[np.ndarray, np.ndarray]:
    raw = stored_values(file)
    slope, inter = _scale(file)
    return raw, raw.astype(np.float64) * slope + inter


def _stored(file: NiftiFile, raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    slope, inter = _scale(file)
    same = values == raw.astype(np.float64) * slope + inter
    numbers = (values - inter) / slope
    if raw.dtype.kind in "iu":
        limits = np.iinfo(raw.dtype)
        numbers = np.clip(np.rint(numbers), limits.min, limits.max)
    same |= ~np.isfinite(numbers)
    return np.where(same, raw, np.where(same, 0, numbers).astype(raw.dtype))
