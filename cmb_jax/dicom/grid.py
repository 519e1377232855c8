"""Voxels of a converted volume and pixels of the DICOM frames that it came from, one to one."""

from __future__ import annotations

import dataclasses

import numpy as np
from nibabel.orientations import apply_orientation

from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume

_TOLERANCE = 0.02  # voxels, at any corner: NIfTI keeps the affine as float32, headers rounded positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMapping:
    """How the axes of a volume (X, Y, Z) lie in its stack (columns, rows, slices)."""

    orientation: (
        np.ndarray
    )  # (3, 2) nibabel orientation: axis of the stack and direction for each of the volume's

    @property
    def slice_axis(self) -> int:
        """The axis of the volume along which the frames lie."""
        return int(np.flatnonzero(self.orientation[:, 0] == 2)[0])

    def to_frames(self, volume_xyz: np.ndarray) -> np.ndarray:
        """An array on the volume's grid as (frames, rows, columns), frames in the order of the stack."""
        return np.ascontiguousarray(apply_orientation(volume_xyz, self.orientation).transpose(2, 1, 0))


def frame_mapping(volume: Volume, stack: Stack) -> FrameMapping:
    """The mapping from a converted volume to the frames of its stack.

    Nothing is assumed about what the converter flips: both affines say where voxels lie, and they must agree.

    Raises:
        UserError: the volume is not voxel for voxel what the headers say.
    """
    if stack.affine is None:
        raise ValueError(f"stack {stack.key} is no volume: {stack.fault}")
    matrix = np.linalg.inv(stack.affine) @ volume.affine  # (x, y, z) -> (column, row, slice)
    axes = np.argmax(np.abs(matrix[:3, :3]), axis=0)
    signs = np.sign(matrix[axes, range(3)])
    exact = np.zeros((4, 4))
    exact[3, 3] = 1.0
    exact[axes, range(3)] = signs
    for axis, sign in zip(axes, signs, strict=True):
        exact[axis, 3] = 0.0 if sign > 0 else stack.shape[axis] - 1
    corner = np.array([*volume.shape, 1.0])
    fits = sorted(axes) == [0, 1, 2] and tuple(np.array(stack.shape)[axes]) == volume.shape
    if not fits or np.abs((matrix - exact) * corner).max() > _TOLERANCE:
        raise UserError(
            f"series {stack.key}: the converted volume does not lie where the DICOM headers say (tilted "
            "gantry or uneven slices?); convert it yourself and give --swi"
        )
    return FrameMapping(orientation=np.stack([axes, signs], axis=1))
