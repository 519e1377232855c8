"""The fixed grid that the region network sees, and the resampling of a volume to it.

The grid is (Z, Y, X) = (96, 112, 96) voxels of 2 mm, that is 192 x 224 x 192 mm: a whole adult head with room
to spare. Its axes are the volume's own closest-RAS axes, so an oblique volume stays oblique and every
resampling is separable. Its center is the middle of the foreground's bounding box (`foreground_center`);
inference then centers it once more, on the brain that the first pass found.
"""

import jax
import jax.numpy as jnp
import numpy as np
from nibabel.affines import voxel_sizes

GRID_SHAPE = (96, 112, 96)  # (Z, Y, X)
GRID_MM = 2.0


def foreground_center(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Middle of the head in continuous voxel coordinates (x, y, z) of the volume.

    The foreground is what exceeds half the mean of the positive values. In plane it is the middle of its
    bounding box (0.5 % of the foreground trimmed at each end, against noise); along z the box is cut to the
    grid's 192 mm below its top, so that a neck in the field of view does not pull the center down.

    Args:
        data: (X, Y, Z) image, not negative where there is signal.
        affine: (4, 4), voxel index -> RAS mm; gives the spacing.
    """
    positive = data > 0
    if not positive.any():
        return (np.array(data.shape) - 1) / 2
    foreground = data > 0.5 * float(data[positive].mean())
    ends = np.empty((3, 2))
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        cumulative = np.cumsum(foreground.sum(axis=others, dtype=np.int64))
        ends[axis] = np.searchsorted(cumulative, cumulative[-1] * np.array([0.005, 0.995]))
    spacing_z = float(np.linalg.norm(affine[:3, 2]))
    ends[2, 0] = max(ends[2, 0], ends[2, 1] - GRID_SHAPE[0] * GRID_MM / spacing_z)
    return ends.mean(axis=1)


def grid_affine(affine: np.ndarray, center_index: np.ndarray) -> np.ndarray:
    """Affine (x, y, z index -> RAS mm) of the region grid along the volume's axes.

    Args:
        affine: (4, 4) of the volume.
        center_index: (3,) continuous voxel coordinates (x, y, z) of the volume at the grid's center.
    """
    directions = affine[:3, :3] / voxel_sizes(affine)
    center_mm = affine[:3, :3] @ center_index + affine[:3, 3]
    half = (np.array(GRID_SHAPE[::-1]) - 1) / 2
    grid = np.eye(4)
    grid[:3, :3] = directions * GRID_MM
    grid[:3, 3] = center_mm - grid[:3, :3] @ half
    return grid


def _axis_weights(length: int, spacing_mm: float, center_index: float, out_length: int) -> np.ndarray:
    """(out_length, length) tent weights: linear interpolation, or averaging where the volume is finer."""
    position_mm = (np.arange(out_length) - (out_length - 1) / 2) * GRID_MM
    index_mm = (np.arange(length) - center_index) * spacing_mm
    width = max(spacing_mm, GRID_MM)
    distance = np.abs(position_mm[:, None] - index_mm[None, :])
    weights = np.maximum(0.0, 1.0 - distance / width)
    total = weights.sum(axis=1, keepdims=True)
    inside = (position_mm >= index_mm[0] - spacing_mm / 2) & (position_mm <= index_mm[-1] + spacing_mm / 2)
    return np.where(inside[:, None] & (total > 0), weights / np.maximum(total, 1e-9), 0.0).astype(np.float32)


def to_grid(data: np.ndarray, affine: np.ndarray, center_index: np.ndarray) -> np.ndarray:
    """Resample a volume to the region grid; 0 outside its field of view.

    Args:
        data: (X, Y, Z) float32.
        affine: (4, 4), voxel index -> RAS mm.
        center_index: (3,) continuous voxel coordinates (x, y, z) at the grid's center.

    Returns:
        (96, 112, 96) float32, axes (Z, Y, X).
    """
    spacing = voxel_sizes(affine)
    out = np.asarray(data, np.float32)
    for axis in (0, 1, 2):
        weights = _axis_weights(
            data.shape[axis], float(spacing[axis]), float(center_index[axis]), GRID_SHAPE[2 - axis]
        )
        out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out.transpose(2, 1, 0))


def field_of_view(shape: tuple[int, int, int], affine: np.ndarray, center_index: np.ndarray) -> np.ndarray:
    """(96, 112, 96) bool: which voxels of the region grid lie inside the volume (X, Y, Z)."""
    spacing = voxel_sizes(affine)
    x, y, z = (
        _axis_weights(shape[a], float(spacing[a]), float(center_index[a]), GRID_SHAPE[2 - a]).any(axis=1)
        for a in (0, 1, 2)
    )
    return np.asarray(z)[:, None, None] & np.asarray(y)[None, :, None] & np.asarray(x)[None, None, :]


def normalize(image: jax.Array) -> jax.Array:
    """Scale an image (Z, Y, X) by the 99th percentile of its positive values; clipped to [0, 1.5].

    Every fourth voxel along each axis gives the percentile: exact enough, and no large sort.
    """
    image = jnp.maximum(image, 0.0)
    sample = image[::4, ::4, ::4]
    scale = jnp.nanpercentile(jnp.where(sample > 0, sample, jnp.nan), 99.0)
    return jnp.clip(image / jnp.where(scale > 0, scale, 1.0), max=1.5)
