"""NIfTI in and out. Inside, axes run to the Right, Anterior and Superior; files keep their own grid.

A volume is written on the grid of the file that it came from, or changed voxels go back into the very form
that a file stores them in: type, slope, header, range of the phase.
"""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes
from cmb_jax.io.header import (
    NiftiFile,
    check_is_volume,
    decoded,
    largest_distance,
    open_nifti,
    reduction_step,
    world_affine,
)
from cmb_jax.io.outside import reading
from cmb_jax.io.volume import NativeGrid, Volume

_RAS = axcodes2ornt("RAS")
_SAME_AFFINE_MM = 0.01  # at the far corner; headers keep float32 and rounded quaternions
_COMPRESSION = 4  # gzip level: a third of the time of 9 for a few per cent more bytes
_SLAB_VOXELS = 2**23
_WRAPPED = 1.01  # ends of wrapped phase over those of its turn, rounding included
_FORMAT_TEXTS = ("magic", "regular")  # belong to the format, not to the scan

Reduction = Literal["mean", "first"]
"""One voxel for a block: its mean, or its first voxel (of phase, whose mean says nothing at a wrap)."""


def read_volume(path: str | Path, *, complex_ok: bool = False, reduced: Reduction | None = None) -> Volume:
    """Read one NIfTI image: 3D, or with further axes of length 1.

    Args:
        path: a .nii or .nii.gz file.
        complex_ok: keep complex values (data is then complex64); otherwise they are refused.
        reduced: of an image of `header.LARGE_VOXELS` or more, axes of voxels below 0.3 mm are read in blocks
            of two, slab by slab; what is written `like` it lies on the file's own grid all the same.

    Returns:
        The volume, in RAS, scaled by slope and intercept, NaN and infinities replaced by 0, with warnings.

    Raises:
        UserError: see `cmb_jax.io.header.open_nifti`; also a 2D image, a series of volumes, color or complex
            values, nothing finite in it, or the same value everywhere.
    """
    file = open_nifti(Path(path))
    volumes = int(np.prod(file.image.shape[3:]))
    if volumes != 1:
        raise UserError(
            f"{path}: holds {volumes} volumes ({' x '.join(map(str, file.image.shape))}); give one 3D volume "
            "or split the series first"
        )
    affine, warnings = world_affine(file)
    step = reduction_step(file, affine) if reduced else (1, 1, 1)
    if reduced and step != (1, 1, 1):
        check_is_volume(file, least=2)
        size = " x ".join(map(str, file.image.shape[:3]))
        warnings.append(f"{size} voxels were read in blocks of {' x '.join(map(str, step))}")
        return _to_volume(file, _blocks(file, step, reduced), affine, warnings, step)
    return _to_volume(file, _decode(file, complex_ok), affine, warnings)


def read_echoes(path_or_paths: str | Path | Sequence[str | Path]) -> list[Volume]:
    """Read the echoes of one acquisition, in the order given.

    Args:
        path_or_paths: one 4D (or 3D) file, or one 3D file per echo.

    Returns:
        One volume per echo, all on one grid.

    Raises:
        UserError: as `read_volume`; no file at all; echoes on different grids.
    """
    if isinstance(path_or_paths, str | Path):
        file = open_nifti(Path(path_or_paths))
        array = _decode(file, complex_ok=False)
        affine, warnings = world_affine(file)
        array = array.reshape(*array.shape[:3], -1)
        return [_to_volume(file, array[..., echo], affine, warnings) for echo in range(array.shape[3])]
    if not path_or_paths:
        raise UserError("no echo was given; name one 4D file, or one file an echo")
    echoes = [read_volume(path) for path in path_or_paths]
    for echo in echoes[1:]:
        check_same_grid(echoes[0], echo)
    return echoes


def _blocks(file: NiftiFile, step: tuple[int, int, int], how: Reduction) -> np.ndarray:
    """The scaled array (I / step, J / step, K / step) float32, made of slabs along K."""
    shape = file.image.shape[:3]
    small = tuple(-(-size // by) for size, by in zip(shape, step, strict=True))
    result = np.empty(small, np.float32)
    # slabs end between blocks, so that none is split
    planes = max(1, _SLAB_VOXELS // (shape[0] * shape[1]) // step[2]) * step[2]
    for first in range(0, shape[2], planes):
        slab = decoded(file, np.float32, planes=slice(first, first + planes)).reshape(*shape[:2], -1)
        where = slice(first // step[2], -(-(first + slab.shape[2]) // step[2]))
        if how == "first":
            result[:, :, where] = slab[:: step[0], :: step[1], :: step[2]]
            continue
        # one axis after another; the last block of an axis may hold fewer voxels
        for axis, by in enumerate(step):
            starts = np.arange(0, slab.shape[axis], by)
            counts = np.diff(np.append(starts, slab.shape[axis])).astype(np.float32)
            counts = counts.reshape([-1 if each == axis else 1 for each in range(3)])
            slab = np.add.reduceat(slab, starts, axis=axis) / counts
        result[:, :, where] = slab
    return result


def _decode(file: NiftiFile, complex_ok: bool) -> np.ndarray:
    """The scaled array, float32 or complex64, at least 3D."""
    check_is_volume(file, least=2)
    kind = file.image.get_data_dtype().kind
    if kind == "c" and not complex_ok:
        raise UserError(f"{file.path}: holds complex values; give magnitude and phase as two images")
    return decoded(file, np.complex64 if kind == "c" else np.float32)


def _to_volume(
    file: NiftiFile,
    array: np.ndarray,
    affine: np.ndarray,
    warnings: list[str],
    step: tuple[int, int, int] = (1, 1, 1),
) -> Volume:
    """One volume (I, J, K [, 1...]) to RAS, with its voxels checked; `step`: blocks of voxels of the file."""
    path = file.path
    i, j, k = (int(size) for size in file.image.shape[:3])
    array = array.reshape(array.shape[:3])
    warnings = list(warnings)
    # zeros, not an error: padding and failed reconstruction leave NaN in single voxels of usable images
    finite = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(finite))
    if bad == array.size:
        raise UserError(f"{path}: no voxel holds a number (all NaN or infinite); export it again")
    if bad:
        array = np.where(finite, array, 0)
        warnings.append(f"{bad} voxels were NaN or infinite and count as 0")
    if np.all(array == array.flat[0]):
        raise UserError(
            f"{path}: every voxel is {array.flat[0]:g}, so there is nothing to see; export it again"
        )
    native = NativeGrid(shape=(i, j, k), affine=affine, orientation=io_orientation(affine), step=step)
    return Volume(
        data=np.ascontiguousarray(apply_orientation(array, native.orientation)),
        affine=affine @ _to_file(native),
        native=native,
        source=path,
        sha256=file.sha256,
        warnings=tuple(warnings),
    )


def to_native(data_xyz: np.ndarray, native: NativeGrid) -> np.ndarray:
    """An (X, Y, Z) array in RAS order back onto the file's own grid (I, J, K).

    Axes are permuted and flipped; where a voxel stands for a block of the file's, all of them get its value.
    """
    array = np.asarray(apply_orientation(data_xyz, ornt_transform(_RAS, native.orientation)))
    for axis, by in enumerate(native.step):
        if by > 1:
            array = np.repeat(array, by, axis=axis)
    return array[tuple(slice(size) for size in native.shape)]


def _to_file(native: NativeGrid) -> np.ndarray:
    """(4, 4) from a volume's voxel index (x, y, z) to that of its file (i, j, k), the middle of a block."""
    step = np.array(native.step, np.float64)
    blocks = np.diag([*step, 1.0])
    blocks[:3, 3] = (step - 1) / 2
    return np.asarray(blocks @ inv_ornt_aff(native.orientation, native.reduced_shape))


def native_index(points_xyz_index: np.ndarray, volume: Volume) -> np.ndarray:
    """Voxel indices (..., 3) of `volume` (integer = voxel center) as (i, j, k) of its file, float64."""
    return apply_affine(_to_file(volume.native), np.asarray(points_xyz_index, np.float64))


def check_same_grid(a: Volume, b: Volume) -> None:
    """Check that two volumes lie voxel on voxel.

    Raises:
        UserError: their shapes differ, or their affines by more than 0.01 mm at any corner.
    """
    names = f"{a.source or 'first volume'} and {b.source or 'second volume'}"
    remedy = "give two images of one acquisition, or resample one onto the other first"
    if a.shape != b.shape:
        raise UserError(f"{names}: shapes differ ({a.shape} and {b.shape} in RAS); {remedy}")
    apart = largest_distance(a.affine - b.affine, a.shape)
    if apart > _SAME_AFFINE_MM:
        raise UserError(f"{names}: they lie up to {apart:.2f} mm apart in space; {remedy}")


def _storage_type(data: np.ndarray, dtype: np.dtype | type | None) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    if data.dtype.kind == "b":
        return np.dtype(np.uint8)
    if data.dtype.kind in "iu":
        return np.dtype(np.int32) if data.dtype.itemsize > 4 else data.dtype
    return np.dtype(np.float32)


def write_volume(
    path: str | Path,
    data_xyz: np.ndarray,
    like: Volume,
    dtype: np.dtype | type | None = None,
    overwrite: bool = False,
) -> None:
    """Write an array onto the native grid of `like`, voxel for voxel, whole or not at all.

    The same array gives the same bytes. qform and sform both carry the native affine.

    Args:
        path: ends in .nii or .nii.gz.
        data_xyz: (X, Y, Z) in RAS order, the shape of `like`.
        like: the volume whose file's grid is used.
        dtype: type in the file; by default float32, uint8 for booleans, integers as they are (64 bit to 32).
        overwrite: replace an existing file.

    Raises:
        UserError: the file exists, or cannot be written.
        ValueError: wrong shape or name, or values that do not fit the type.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: NIfTI names end in .nii or .nii.gz")
    if data_xyz.shape != like.shape:
        raise ValueError(f"{path}: data {data_xyz.shape} is not on the grid {like.shape}")
    stored = _storage_type(data_xyz, dtype)
    array = to_native(data_xyz, like.native)
    if stored.kind in "iu":
        limits = np.iinfo(stored)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"{path}: values {array.min()} to {array.max()} do not fit {stored}")
        array = np.rint(array) if array.dtype.kind == "f" else array
    # without an affine here, so that nibabel sets no transforms of its own
    image = nib.Nifti1Image(array.astype(stored), None)
    image.header.set_xyzt_units("mm")
    image.set_sform(like.native.affine, code=1)
    image.set_qform(like.native.affine, code=1, strip_shears=True)
    content = _compressed(image) if path.name.endswith(".gz") else image.to_bytes()
    atomic_write_bytes(path, content, overwrite=overwrite)


def _compressed(image: nib.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0)  # no time stamp: same bytes each run


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
    if not unwrapped:
        wrapped = changed - width * np.floor((changed - low) / width)
        # an unchanged voxel at the upper end of the range stays there
        changed = np.where(changed == values, changed, wrapped)
    return _stored(file, raw, changed)


def write_stored(
    path: Path, raw: np.ndarray, like: NiftiFile, *, keep_identifiers: bool = False, overwrite: bool = False
) -> None:
    """Write stored numbers under the header of `like`: type, slope, both transforms. Same input, same bytes.

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
    # set explicitly, or the writer would choose a scale of its own
    image.header.set_slope_inter(*_scale(like))
    atomic_write_bytes(path, _compressed(image), overwrite=overwrite)


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
    # Voxels that did not change keep their number: a way there and back through slope and intercept could
    # round it to another.
    slope, inter = _scale(file)
    same = values == raw.astype(np.float64) * slope + inter
    numbers = (values - inter) / slope
    if raw.dtype.kind in "iu":
        limits = np.iinfo(raw.dtype)
        numbers = np.clip(np.rint(numbers), limits.min, limits.max)
    same |= ~np.isfinite(numbers)
    return np.where(same, raw, np.where(same, 0, numbers).astype(raw.dtype))
