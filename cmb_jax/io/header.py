"""What a NIfTI file claims to hold, checked against its size and the memory before any of it is loaded."""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.io.outside import check_is_file, read_text, reading

MAX_VOXELS = 2**29
"""Largest array that is loaded: 2 GiB as float32; a 512 x 512 x 256 series of 8 echoes just fits."""

LARGE_VOXELS = 2**27
"""From so many voxels on, `nifti.read_volume` reads a finer image than the detector sees in blocks."""

_FINE_MM = 0.301  # edges up to this are halved: the working grid has 0.5 mm
_SLACK_BYTES = 2**12  # that may follow the array: padding, or what a program keeps there
_MAX_INFLATION = 1032  # no DEFLATE stream unpacks to more than this many times its size
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_ERRORS = (
    nib.spatialimages.HeaderDataError,
    nib.filebasedimages.ImageFileError,
    ValueError,
    KeyError,
    OverflowError,
)
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


def _start(path: Path, packed: bytes, length: int) -> bytes:
    """The first bytes of a gzip stream, unchecked: just to learn what the header claims."""
    content = b""
    while len(content) < length and packed[:2] == _GZIP_MAGIC:
        decoder = zlib.decompressobj(wbits=31)
        try:
            content += decoder.decompress(packed, length - len(content))
        except zlib.error as error:
            raise _damaged(path, f"the gzip stream is damaged ({error})") from error
        packed = decoder.unused_data
    return content


def _inflate(path: Path, packed: bytes, limit: int) -> bytes:
    """Unpacks all gzip members to their ends, so that every checksum and length is checked.

    Args:
        path: for messages.
        packed: the whole file.
        limit: bytes that the content may take.

    Raises:
        UserError: a damaged or truncated member, or more content than `limit`.
    """
    # A gzip file may have several members, one after another. Each is unpacked to its end, where its checksum
    # stands, but never further than one byte beyond the limit.
    parts: list[bytes] = []
    left = limit + 1
    rest = memoryview(packed)
    while bytes(rest[:2]) == _GZIP_MAGIC:
        decoder = zlib.decompressobj(wbits=31)
        try:
            parts.append(decoder.decompress(rest, left))
        except zlib.error as error:
            raise _damaged(path, f"the gzip stream is damaged ({error})") from error
        left -= len(parts[-1])
        if left <= 0:
            raise _longer(path)
        if not decoder.eof:
            raise _damaged(path, "the gzip stream is truncated")
        rest = rest[len(rest) - len(decoder.unused_data) :]
    if bytes(rest).strip(b"\0"):  # zeros are the padding of tapes and of some file systems
        raise _damaged(path, "other bytes follow its gzip stream")
    return b"".join(parts)


def _longer(path: Path) -> UserError:
    return _damaged(path, "holds more than its header says: its header or its content is damaged")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Claim:
    image_class: type[nib.Nifti1Image]
    needed: int  # bytes of header and array, unpacked
    size: int  # of the file
    packed: bool


def _claim(path: Path, start: bytes, size: int, packed: bool) -> _Claim:
    """What a header says of itself; `start` are the first bytes of the content."""
    if len(start) < 348:
        raise _damaged(path, f"is only {len(start)} bytes long, shorter than a NIfTI header")
    # the first number is the header's own length, in the byte order of the file
    lengths = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    image_class = next((found for length, found in _HEADER_BYTES.items() if length in lengths), None)
    if image_class is None:
        raise UserError(f"{path}: is not a NIfTI file, whatever its name says; give a .nii or .nii.gz image")
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
    needed = max(offset, 0) + voxels * item_bytes
    # No memory is asked for yet: what a header claims is first held against what the file could hold at most.
    if needed > (size * _MAX_INFLATION if packed else size):
        raise _damaged(path, f"is truncated: its {size} bytes cannot hold the {needed} that it claims")
    return _Claim(image_class=image_class, needed=needed, size=size, packed=packed)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, _Claim]]:
    """The file at its beginning, and what its header claims, which its size must allow."""
    with reading(path, "give one .nii or .nii.gz image, or copy or convert it again"):
        check_is_file(path, "give one .nii or .nii.gz image (convert DICOM with dcm2niix)")
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(2**16)
            packed = start[:2] == _GZIP_MAGIC
            claim = _claim(path, _start(path, start, 540) if packed else start[:540], size, packed)
            stream.seek(0)
            yield stream, claim


def open_nifti(path: Path) -> NiftiFile:
    """Reads a .nii or .nii.gz file (told apart by content, not by name) without decoding its array.

    The file is read whole, and the checksums of a gzip stream are always compared.

    Raises:
        UserError: missing or unreadable file, not NIfTI, truncated or damaged, or a header that claims more
            than the file can hold or than `MAX_VOXELS`; found before that memory is asked for. Also a header
            that claims clearly less than the file holds.
    """
    path = Path(path)
    with _opened(path) as (stream, claim):
        # A header of a few bytes can claim terabytes, and a gzip stream can unpack to a thousand times its
        # size: the claim, which the file's size must allow, bounds what is read and unpacked. A gzip stream
        # is never much longer than its content.
        most = claim.needed + _SLACK_BYTES + ((claim.needed // 500 + 2**20) if claim.packed else 0)
        if claim.size > most:
            raise _longer(path)
        stored = stream.read(most + 1)
        digest = hashlib.sha256(stored).hexdigest()
        content = _inflate(path, stored, claim.needed + _SLACK_BYTES) if claim.packed else stored
        del stored
        if len(content) < claim.needed:
            raise _damaged(
                path, f"is truncated: it holds {len(content)} of the {claim.needed} bytes that it claims"
            )
        return NiftiFile(image=_image(path, claim.image_class, content), path=path, sha256=digest)


def open_header(path: Path) -> NiftiFile:
    """The header alone, checked against the file's size: its array cannot be decoded, and has no hash.

    Raises:
        UserError: as `open_nifti`, but for damage behind the header.
    """
    path = Path(path)
    with _opened(path) as (stream, claim):
        start = stream.read(2**16)
        start = _start(path, start, 2**16) if claim.packed else start
        image = _image(path, claim.image_class, start)
        return NiftiFile(image=image, path=path, sha256="")


def _image(path: Path, image_class: type[nib.Nifti1Image], content: bytes) -> nib.Nifti1Image:
    # it tells people what it repairs in headers
    with reading(path, but=_HEADER_ERRORS), nib.imageglobals.LoggingOutputSuppressor():
        try:
            return image_class.from_stream(io.BytesIO(content))
        except _HEADER_ERRORS as error:
            raise _senseless(path, error) from error


def check_is_volume(file: NiftiFile, least: int = 1) -> None:
    """Raises UserError for an image of fewer than three axes, each of `least` voxels or more."""
    shape = file.image.shape
    if len(shape) < 3 or min(shape[:3]) < least:
        raise UserError(
            f"{file.path}: is not a volume but {' x '.join(map(str, shape))} voxels; give a 3D image, "
            "stacked from all its slices"
        )


def decoded(
    file: NiftiFile, dtype: np.typing.DTypeLike | None = None, *, planes: slice | None = None
) -> np.ndarray:
    """The voxels (I, J, K [, ...]) of a volume, slope and intercept applied.

    Args:
        file: an image.
        dtype: to have them in; None: as stored, or float64 where there is a slope.
        planes: along K, of a 3D image; None: all.

    Raises:
        UserError: 2D, colors, or voxels that cannot be decoded.
    """
    path, image = file.path, file.image
    check_is_volume(file)
    if image.get_data_dtype().fields is not None:
        raise UserError(f"{path}: holds colors, not intensities; give the original image")
    with reading(path, "its voxels cannot be decoded: convert it again"), np.errstate(all="ignore"):
        return np.asarray(image.dataobj if planes is None else image.dataobj[:, :, planes], dtype)


_SMALLEST_VOXEL_MM, _LARGEST_VOXEL_MM = 0.005, 100.0
_LARGEST_EXTENT_MM = 2000.0
_FARTHEST_MM = 1e6
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def world_affine(file: NiftiFile) -> tuple[np.ndarray, list[str]]:
    """The affine (4, 4) of native voxel index to RAS mm, the sform before the qform, and warnings about it.

    Raises:
        UserError: no volume; an affine that is singular, not finite, or of a size that no scan has.
    """
    check_is_volume(file)
    header, shape, warnings = file.image.header, file.image.shape[:3], []
    with reading(file.path, "repair its header, or convert it again"), np.errstate(all="ignore"):
        try:
            unit = header.get_xyzt_units()[0]
        except KeyError:
            unit = "unknown"
            warnings.append("the unit of length is unknown; mm is assumed")
        scale = _MM_PER_UNIT[unit]
        if scale != 1.0:
            warnings.append(f"lengths are stored in {unit}s and were converted to mm")
        affine = np.array(file.image.affine, np.float64)
        affine[:3] *= scale
        edges = _checked_edges(file.path, affine, shape)
        if np.array_equal(affine, np.eye(4)):
            warnings.append(
                "the header looks like a placeholder: no position, and no voxel size but 1 mm; if it is "
                "wrong, so are sizes, zones and counts"
            )
        zooms = np.array(header["pixdim"][1:4], np.float64) * scale
        if np.abs(zooms - edges).max() > 0.01 * edges.max():
            warnings.append(
                f"the header contradicts itself: voxels of {_by_x(zooms)} mm by pixdim, {_by_x(edges)} mm by "
                "its transform; the transform was used"
            )
        return affine, warnings + _doubts_about_transforms(header, shape, scale)


def _checked_edges(path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel edges (3,) in mm of a transform that a scan of a head can have; UserError for any other."""
    if not np.isfinite(affine).all() or np.abs(affine[:3]).max() > _FARTHEST_MM:
        raise _damaged(path, "has a voxel-to-world transform that no scanner gives")
    edges = voxel_sizes(affine)
    if edges.min() == 0 or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-6:
        raise _damaged(path, "has a singular voxel-to-world transform")
    extent = edges * shape
    if (
        edges.min() < _SMALLEST_VOXEL_MM
        or edges.max() > _LARGEST_VOXEL_MM
        or extent.max() > _LARGEST_EXTENT_MM
    ):
        size = " x ".join(f"{edge:g}" for edge in edges)
        raise NotAnalysableError(
            f"{path}: its header gives voxels of {size} mm, {extent.max() / 10:.0f} cm in all, which no scan "
            "of a head has; repair the voxel size (is it in other units than mm?)"
        )
    return edges


def _doubts_about_transforms(header: nib.Nifti1Header, shape: tuple[int, ...], scale: float) -> list[str]:
    """Warnings where sform and qform are missing or disagree; `scale` turns their lengths into mm."""
    sform, sform_code = header.get_sform(coded=True)
    warnings: list[str] = []
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
        apart = largest_distance(sform - qform, shape) * scale
        if not apart <= 0.1:
            mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
            warnings.append(
                f"qform and sform disagree by up to {apart:.1f} mm"
                f"{' and about left against right' if mirrored else ''}; the sform was used"
            )
    return warnings


def largest_distance(difference: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart two affines, given their difference (4, 4), put a corner of a volume at the most."""
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm(corners @ difference.T, axis=1).max())


def _by_x(numbers: np.ndarray) -> str:
    return " x ".join(f"{float(number):.3g}" for number in numbers)


def reduction_step(file: NiftiFile, affine: np.ndarray) -> tuple[int, int, int]:
    """Voxels of the file along (i, j, k) that are read as one, where `read_volume` may reduce an image."""
    if np.prod(file.image.shape[:3], dtype=np.int64) < LARGE_VOXELS:
        return (1, 1, 1)
    i, j, k = (2 if edge <= _FINE_MM else 1 for edge in voxel_sizes(affine))
    return (i, j, k)


_AT_REST = 1.0e9  # bytes: program and network
# Bytes of a voxel that is worked on: SWI, phase and radians, mask, region, and while the phase is filtered
# three complex images and their parts.
_PER_VOXEL = 85.0
_WHILE_READ = 2  # times the content of a file: it lies packed beside it
_MEMORY_FILES = (  # what a container may take, and what it has
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_bytes() -> float:
    """Memory that this process can still have; infinite where the system does not say."""
    found = [math.inf]
    for line in _system_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            found.append(float(line.split()[1]) * 1024)
    for limit, used in _MEMORY_FILES:
        numbers = [line for path in (limit, used) for line in _system_lines(path)]
        if len(numbers) == 2 and all(number.strip().isdigit() for number in numbers):
            found.append(float(numbers[0]) - float(numbers[1]))
    return min(found)


def check_fits(swi: Path, phase: Path | None = None) -> None:
    """Refuse a scan that would not fit into memory, before it is read.

    Args:
        swi: the image that is searched.
        phase: on the same grid.

    Raises:
        UserError: it takes more than there is; also as `open_header`.
    """
    needed = _AT_REST + max(_needed_bytes(path) for path in (swi, phase) if path)
    available = available_bytes()
    if needed > available:
        raise UserError(
            f"{swi}: is so large that it takes about {needed / 1e9:.1f} GB of memory, but "
            f"{available / 1e9:.1f} GB are free; close other programs, crop it to the head, or resample it "
            "to 0.5 mm"
        )


def _needed_bytes(path: Path) -> float:
    """While a file is read, or while its voxels are worked on, whichever are more."""
    file = open_header(path)
    affine, _ = world_affine(file)
    voxels = math.prod(file.image.shape)
    step = math.prod(reduction_step(file, affine))
    content = voxels * file.image.get_data_dtype().itemsize
    return max(_WHILE_READ * content, _PER_VOXEL * voxels / step)


def _system_lines(path: Path) -> list[str]:
    """What the system says in a file of its own; nothing where it does not."""
    try:
        return read_text(path).splitlines()
    except UserError:
        return []
