"""What a NIfTI file claims to hold, checked against its size before any of it is loaded."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file

MAX_VOXELS = 2**29
"""Largest array that is loaded: 2 GiB as float32; a 512 x 512 x 256 series of 8 echoes just fits."""

_MAX_INFLATION = 1032  # no DEFLATE stream unpacks to more than this many times its size
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_ERRORS = (
    nib.spatialimages.HeaderDataError,
    nib.filebasedimages.ImageFileError,
    ValueError,
    KeyError,
    OverflowError,
)
_BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_HEADER_BYTES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NiftiFile:
    """One whole, consistent NIfTI file in memory; the array is not decoded yet."""

    image: nib.Nifti1Image  # array proxy over the bytes
    path: Path
    sha256: str  # of the file as it lies on disk


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; copy or convert it again")


def _senseless(path: Path, error: Exception) -> UserError:
    return _damaged(path, f"has a header that makes no sense ({' '.join(str(error).split())})")


def _inflate(path: Path, packed: bytes, limit: int) -> bytes:
    """Unpacks at most `limit` bytes of gzip members; checks the checksum of each that ends before that."""
    parts: list[bytes] = []
    length = 0
    while length < limit and packed[:2] == _GZIP_MAGIC:
        decoder = zlib.decompressobj(wbits=31)
        try:
            parts.append(decoder.decompress(packed, limit - length))
        except zlib.error as error:
            raise _damaged(path, f"the gzip stream is damaged ({error})") from error
        length += len(parts[-1])
        if length < limit and not decoder.eof:
            raise _damaged(path, "the gzip stream is truncated")
        packed = decoder.unused_data
    return b"".join(parts)


def _image_class(path: Path, start: bytes) -> type[nib.Nifti1Image]:
    for order in _BYTE_ORDERS:
        found = _HEADER_BYTES.get(int.from_bytes(start[:4], order))
        if found is not None:
            return found
    raise UserError(f"{path}: is not a NIfTI file, whatever its name says; give a .nii or .nii.gz image")


def _claim(path: Path, start: bytes) -> tuple[type[nib.Nifti1Image], int]:
    """The image's class, and the bytes that header and array take by the header's own word."""
    if len(start) < 348:
        raise _damaged(path, f"is only {len(start)} bytes long, shorter than a NIfTI header")
    image_class = _image_class(path, start)
    try:
        header = image_class.header_class(start[: image_class.header_class.sizeof_hdr], check=False)
        shape = tuple(int(length) for length in header.get_data_shape())
        item_bytes = header.get_data_dtype().itemsize
        offset = int(header["vox_offset"])
    except _HEADER_ERRORS as error:
        raise _senseless(path, error) from error
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise UserError(f"{path}: is half of an .hdr/.img pair or Analyze; convert it to one .nii.gz file")
    if not shape or min(shape) < 1:
        raise _damaged(path, f"its header gives the impossible shape {shape}")
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise UserError(
            f"{path}: its header claims {' x '.join(map(str, shape))} voxels "
            f"({voxels * item_bytes / 1e9:.1f} GB), more than the "
            f"{MAX_VOXELS // 10**6} million that are read; crop it, or repair a wrong header"
        )
    return image_class, max(offset, 0) + voxels * item_bytes


def open_nifti(path: Path) -> NiftiFile:
    """Reads a .nii or .nii.gz file (told apart by content, not by name) without decoding its array.

    Raises:
        UserError: missing or unreadable file, not NIfTI, truncated or damaged, or a header that claims more
            than the file can hold or than `MAX_VOXELS`; found before that memory is asked for.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one .nii or .nii.gz image (convert DICOM with dcm2niix)")
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(2**16)
            packed = start[:2] == _GZIP_MAGIC
            image_class, needed = _claim(path, _inflate(path, start, 540) if packed else start[:540])
            if needed > (size * _MAX_INFLATION if packed else size):
                raise _damaged(
                    path, f"is truncated: its {size} bytes cannot hold the {needed} that it claims"
                )
            # a gzip stream is never much longer than its content, so what follows is not read
            stored = start + stream.read(needed + needed // 500 + 2**20 if packed else needed)
        digest = sha256_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the name") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from error
    content = _inflate(path, stored, needed + 1) if packed else stored
    if len(content) < needed:
        raise _damaged(path, f"is truncated: it holds {len(content)} of the {needed} bytes that it claims")
    try:
        image = image_class.from_stream(io.BytesIO(content))
    except _HEADER_ERRORS as error:
        raise _senseless(path, error) from error
    return NiftiFile(image=image, path=path, sha256=digest)


_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def world_affine(file: NiftiFile) -> tuple[np.ndarray, list[str]]:
    """The affine (4, 4) of native voxel index to RAS mm, the sform before the qform, and warnings about it.

    Raises:
        UserError: the affine is singular or not finite.
    """
    header, path = file.image.header, file.path
    warnings = []
    affine = np.array(file.image.affine, np.float64)
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
        warnings.append("the unit of length is no known one; mm is taken")
    if _MM_PER_UNIT[unit] != 1.0:
        affine[:3] *= _MM_PER_UNIT[unit]
        warnings.append(f"lengths are stored in {unit}s and were converted to mm")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _damaged(path, "has a singular voxel-to-world transform")
    zooms = np.array(header["pixdim"][1:4], np.float64) * _MM_PER_UNIT[unit]
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(zooms - edges).max() > 0.01 * edges.max():
        warnings.append(
            f"the header contradicts itself: voxels of {_by_x(zooms)} mm by pixdim, {_by_x(edges)} mm by its "
            "transform; the transform was used"
        )
    sform, sform_code = header.get_sform(coded=True)
    try:
        qform, qform_code = header.get_qform(coded=True)
    except (nib.spatialimages.HeaderDataError, ValueError):
        qform, qform_code = None, 0
        warnings.append("the qform cannot be read and was not used")
    if not sform_code and not qform_code:
        warnings.append(
            "the header has neither qform nor sform, so orientation, left against right and "
            "position are guessed (radiological storage assumed)"
        )
    elif sform_code and qform_code:
        corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        corners[:, :3] *= np.array(file.image.shape[:3]) - 1
        apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max() * _MM_PER_UNIT[unit]
        if not apart <= 0.1:
            mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
            warnings.append(
                f"qform and sform disagree by up to {apart:.1f} mm"
                f"{' and about left against right' if mirrored else ''}; the sform was used"
            )
    return affine, warnings


def _by_x(numbers: np.ndarray) -> str:
    return " x ".join(f"{float(number):.3g}" for number in numbers)
