"""Voxels of a converted volume and pixels of the DICOM frames that it came from, one to one."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff

from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume

# dcm2niix takes the slice distance from the first two slices, whose positions may be rounded to 0.1 mm.
_SKEW = 0.1  # of a voxel, per voxel
_OFFSET = 0.5  # voxels, at the origin
_TOLD_MM = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMapping:
    """How the axes of a volume (X, Y, Z) lie in its stack (columns, rows, slices)."""

    orientation: (
        np.ndarray
    )  # (3, 2) nibabel orientation: for each axis of the volume, the stack's and its sign
    matrix: np.ndarray  # (4, 4) exact: (x, y, z) index -> (column, row, slice) index

    @property
    def slice_axis(self) -> int:
        """The axis of the volume along which the frames lie."""
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

    Nothing is assumed about what the converter permutes and flips: both affines say where voxels lie.

    Raises:
        UserError: the volume is not voxel for voxel what the headers say.
    """
    found = np.linalg.inv(_affine(stack)) @ volume.affine
    axes = np.argmax(np.abs(found[:3, :3]), axis=0)
    signs = np.sign(found[axes, range(3)])
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    matrix[axes, range(3)] = signs
    last = np.array(stack.shape) - 1
    flipped = axes[signs < 0]
    matrix[flipped, 3] = last[flipped]
    same_shape = sorted(axes) == [0, 1, 2] and tuple(np.array(stack.shape)[axes]) == volume.shape
    apart = np.abs(found - matrix)[:3]
    if not same_shape or apart[:, :3].max() > _SKEW or np.any(apart[:, 3] > _OFFSET + _SKEW * last):
        raise UserError(
            f"series {stack.key}: the converted volume does not lie where the DICOM headers say (tilted "
            "gantry or uneven slices?); convert it yourself and give --swi"
        )
    return FrameMapping(orientation=np.stack([axes, signs], axis=1), matrix=matrix)


def placed_by_headers(volume: Volume, stack: Stack) -> Volume:
    """The converted volume with the affine that follows from the positions of all frames.

    Raises:
        UserError: as `frame_mapping`.
    """
    affine = _affine(stack) @ frame_mapping(volume, stack).matrix
    corners = np.array([[*corner, 1.0] for corner in itertools.product((0, 1), repeat=3)])
    corners[:, :3] *= np.array(volume.shape) - 1
    moved = float(np.linalg.norm(corners @ (affine - volume.affine).T, axis=1).max())
    told = f"series {stack.key}: placed by the headers, up to {moved:.1f} mm from where dcm2niix put it"
    native = volume.native
    to_native = np.linalg.inv(inv_ornt_aff(native.orientation, native.shape))
    return dataclasses.replace(
        volume,
        affine=affine,
        native=dataclasses.replace(native, affine=affine @ to_native),
        warnings=(*volume.warnings, told) if moved > _TOLD_MM else volume.warnings,
    )


def _affine(stack: Stack) -> np.ndarray:
    if stack.affine is None:
        raise ValueError(f"stack {stack.key} is no volume: {stack.fault}")
    return stack.affine
