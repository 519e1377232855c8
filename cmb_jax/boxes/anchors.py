"""The anchors of the proposal network: cubes in mm at the centre of every cell of its grid."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.boxes.geometry import boxes_from_centers

Triple = tuple[int, int, int]


def anchor_sizes(diameters_mm: Sequence[float], spacing_mm: Sequence[float]) -> np.ndarray:
    """Edge lengths (A, 3) float32 in voxels of cubes of the given edge lengths in mm.

    `spacing_mm` is the voxel size along (z, y, x).
    """
    diameters = np.asarray(diameters_mm, np.float64)
    return (diameters[:, None] / np.asarray(spacing_mm, np.float64)).astype(np.float32)


def axis_centers(cells: int, stride: int) -> jax.Array:
    """Centres (cells,) of a grid's cells along one axis, in edge coordinates of the working grid."""
    return (jnp.arange(cells, dtype=jnp.float32) + 0.5) * stride


def lattice_centers(grid_shape: Triple, stride: Triple) -> jax.Array:
    """Cell centres (Z, Y, X, 3) of a grid of `grid_shape` cells, in working-grid edge coordinates.

    `stride` is the number of working-grid voxels per cell along (z, y, x).
    """
    axes = [axis_centers(cells, step) for cells, step in zip(grid_shape, stride, strict=True)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def lattice_anchors(grid_shape: Triple, stride: Triple, sizes: jax.Array | np.ndarray) -> jax.Array:
    """Anchors (Z, Y, X, A, 6) of `sizes` (A, 3) voxels, centred in every cell."""
    centers = lattice_centers(grid_shape, stride)
    return boxes_from_centers(centers[..., None, :], jnp.asarray(sizes)[None, None, None])
