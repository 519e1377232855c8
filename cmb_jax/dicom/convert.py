"""Converts one stack of DICOM frames to one volume by dcm2niix, and checks it against the headers.

Converters use the slice distance of two slices, and one slope for a whole series. Headers give position and
slope of every frame, so the volume's affine and values are taken from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import dcm2niix
import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom import dcmread

from cmb_jax.dicom.folder import has_mark, open_whole
from cmb_jax.dicom.stacks import SAME_ECHO_MS, Stack
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.outside import Unreadable, read_json_object, reading
from cmb_jax.io.volume import Volume

_SUFFIXES = {"_ph": "PHASE", "_real": "REAL", "_imaginary": "IMAGINARY"}  # of dcm2niix's file names
# -g i: ignore the defaults file; -p n: the standard slope and intercept instead of Philips's private ones;
# -ba y: nothing about the patient in the sidecar
_OPTIONS = ("-g", "i", "-p", "n", "-z", "n", "-b", "y", "-ba", "y", "-f", "volume")

# generous, because dcm2niix uses the distance of the first two slices, which may be rounded to 0.1 mm
_SKEW = 0.1  # of a voxel, per voxel
_OFFSET = 0.5  # voxels, at the origin
_REPORTED_MM = 0.1
_TOLERANCE = 1e-4  # relative to a frame's largest value; float32 rounds


def convert(stack: Stack) -> Volume:
    """The volume of a stack, with affine and values from the headers.

    Its `source` is a neutral name of the stack; its `sha256` is the hash of the ordered hashes of all files.

    Raises:
        UserError: dcm2niix fails, gives no or several volumes, or a volume that lies elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="cmb_jax_dicom_") as temporary:
        inputs, outputs = Path(temporary, "in"), Path(temporary, "out")
        inputs.mkdir()
        outputs.mkdir()
        for number, instance in enumerate(stack.instances):
            # numbered, so that names with identifiers are passed to no other program
            _hand_over(instance.path, inputs / f"{number:06d}.dcm")
        # classic objects were chosen one by one; of a multi-frame object the volumes must stay apart
        merge = "n" if stack.instance.multi_frame else "y"
        arguments = [*_OPTIONS, "-m", merge, "-o", str(outputs), str(inputs)]
        done = dcm2niix.main(arguments, capture_output=True, encoding="utf-8", errors="replace")
        images = [path for path in sorted(outputs.glob("*.nii")) if _is_of(path, stack)]
        if len(images) != 1:
            errors = [line for line in done.stdout.splitlines() if line.startswith(("Error", "Warning"))]
            what = errors[-1] if errors else f"exit code {done.returncode}"
            raise UserError(
                f"series {stack.key}: dcm2niix made {len(images)} volumes of it instead of one ({what}); "
                "convert it yourself and give --swi"
            )
        volume = read_volume(images[0])
    digest = hashlib.sha256("".join(sha256_file(i.path) for i in stack.instances).encode()).hexdigest()
    checked = _valued_by_headers(_placed_by_headers(volume, stack), stack)
    return dataclasses.replace(checked, source=Path(stack_name(stack)), sha256=digest)


def stack_name(stack: Stack) -> str:
    """A name without identifiers: the series number and the number of images."""
    return f"series {stack.key} ({len(stack.frames)} images)"


def _is_of(path: Path, stack: Stack) -> bool:
    """Whether a converted file has the stack's component and echo; a multi-frame object may give several."""
    if not stack.instance.multi_frame:
        return True
    component = next((name for suffix, name in _SUFFIXES.items() if path.stem.endswith(suffix)), "MAGNITUDE")
    if component != (stack.first.component or "MAGNITUDE"):
        return False
    sidecar = path.with_suffix(".json")
    stated = read_json_object(sidecar).get("EchoTime") if sidecar.is_file() else None
    echo = stack.first.echo_ms
    return stated is None or echo is None or abs(1000 * stated - echo) <= SAME_ECHO_MS


def _hand_over(source: Path, target: Path) -> None:
    """Link or copy the file to `target`, adding the preamble and the mark that dcm2niix requires."""
    if not has_mark(source):
        with reading(source), open_whole(source) as whole:
            dcmread(whole, force=True).save_as(target, enforce_file_format=True)
        return
    try:
        os.symlink(source.resolve(), target)
    except OSError:  # a system without symbolic links
        shutil.copyfile(source, target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMapping:
    """The stack axis (column, row, slice) and the sign of each volume axis (X, Y, Z)."""

    orientation: np.ndarray  # (3, 2) nibabel's: for each axis of the volume, the stack's axis and its sign
    matrix: np.ndarray  # (4, 4) exact: (x, y, z) index -> (column, row, slice) index

    @property
    def slice_axis(self) -> int:
        """The axis of the volume that runs through the frames."""
        return int(np.flatnonzero(self.orientation[:, 0] == 2)[0])

    def to_frames(self, volume_xyz: np.ndarray) -> np.ndarray:
        """An array on the volume's grid as (frames, rows, columns), frames in the order of the stack."""
        return np.ascontiguousarray(apply_orientation(volume_xyz, self.orientation).transpose(2, 1, 0))

    def from_frames(self, frames: np.ndarray) -> np.ndarray:
        """The inverse of `to_frames`."""
        back = np.empty((3, 2))
        for axis, (target, sign) in enumerate(self.orientation):
            back[int(target)] = axis, sign
        return np.ascontiguousarray(apply_orientation(frames.transpose(2, 1, 0), back))


def frame_mapping(volume: Volume, stack: Stack) -> FrameMapping:
    """The mapping from a converted volume to the frames of its stack.

    It follows from both affines; nothing is assumed about how the converter permutes and flips axes.

    Raises:
        UserError: the volume does not match the headers voxel for voxel.
    """
    # A converter may only permute and flip axes, so the exact mapping is the nearest matrix of that form. A
    # small distance from it is rounding of positions; a large one means that the volume lies elsewhere.
    found = np.linalg.inv(_affine(stack)) @ volume.affine
    axes = np.argmax(np.abs(found[:3, :3]), axis=0)
    signs = np.sign(found[axes, range(3)])
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    matrix[axes, range(3)] = signs
    # a flipped axis starts at the stack's last index
    last = np.array(stack.shape) - 1
    flipped = axes[signs < 0]
    matrix[flipped, 3] = last[flipped]
    # errors of direction accumulate along an axis: the longer it is, the more the origin may be off
    same_shape = sorted(axes) == [0, 1, 2] and tuple(np.array(stack.shape)[axes]) == volume.shape
    apart = np.abs(found - matrix)[:3]
    if not same_shape or apart[:, :3].max() > _SKEW or np.any(apart[:, 3] > _OFFSET + _SKEW * last):
        raise UserError(
            f"series {stack.key}: the converted volume does not lie where the DICOM headers say (tilted "
            "gantry or uneven slices?); convert it yourself and give --swi"
        )
    return FrameMapping(orientation=np.stack([axes, signs], axis=1), matrix=matrix)


def _affine(stack: Stack) -> np.ndarray:
    if stack.affine is None:
        raise ValueError(f"stack {stack.key} is not a volume: {stack.fault}")
    return stack.affine


def _placed_by_headers(volume: Volume, stack: Stack) -> Volume:
    """The converted volume with the affine from the positions of all frames."""
    affine = _affine(stack) @ frame_mapping(volume, stack).matrix
    corners = np.array(list(itertools.product(*((0, n - 1) for n in volume.shape))))
    moved = apply_affine(affine, corners) - apply_affine(volume.affine, corners)
    moved_mm = float(np.linalg.norm(moved, axis=1).max())
    native = volume.native
    to_native = np.linalg.inv(inv_ornt_aff(native.orientation, native.shape))
    warning = f"series {stack.key}: placed by the headers, up to {moved_mm:.1f} mm from where dcm2niix put it"
    return dataclasses.replace(
        volume,
        affine=affine,
        native=dataclasses.replace(native, affine=affine @ to_native),
        warnings=(*volume.warnings, warning) if moved_mm > _REPORTED_MM else volume.warnings,
    )


def _valued_by_headers(volume: Volume, stack: Stack) -> Volume:
    """The volume with the values slope * pixel + intercept of each frame, and a warning if dcm2niix's differ.

    If pydicom cannot decompress a frame, the converted values stay, with a warning.
    """
    mapping = frame_mapping(volume, stack)
    converted = mapping.to_frames(volume.data)
    changed, expected = 0, np.empty_like(converted)
    cache: dict[Path, np.ndarray] = {}
    for index, frame in enumerate(stack.frames):
        try:
            pixels = _pixels(frame.instance.path, cache)[frame.number]
        except Unreadable as error:  # a missing codec, or damaged data
            warning = f"series {stack.key}: values were not compared with the headers: {error.reason}"
            return dataclasses.replace(volume, warnings=(*volume.warnings, warning))
        expected[index] = pixels * frame.slope + frame.intercept
        apart = np.abs(expected[index] - converted[index]).max()
        changed += bool(apart > _TOLERANCE * max(1e-30, float(np.abs(expected[index]).max())))
    if not changed:
        return volume
    warning = (
        f"series {stack.key}: dcm2niix gave {changed} of {len(stack.frames)} slices other values than slope "
        "and intercept in their headers do; those of the headers were taken"
    )
    data = mapping.from_frames(expected)
    return dataclasses.replace(volume, data=data, warnings=(*volume.warnings, warning))


def _pixels(path: Path, cache: dict[Path, np.ndarray]) -> np.ndarray:
    """Stored pixels (frames, rows, columns); the last file is cached, for objects with many frames."""
    if path not in cache:
        cache.clear()
        with reading(path), open_whole(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = dcmread(stream, force=True).pixel_array
            cache[path] = array if array.ndim == 3 else array[None]
    return cache[path]
