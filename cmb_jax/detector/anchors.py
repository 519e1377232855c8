"""Boxes and anchors: their arrays, overlaps, the anchors' grid, the box code.

Boxes are (z0, y0, x0, z1, y1, x1), half-open, in voxels. One whose far corner is not beyond its near corner
is empty: its volume and all its overlaps are 0. Anchors are cubes in mm at the center of every cell of the
proposal grid. The box code is that of R-CNN (Girshick et al. 2014, arXiv:1311.2524, appendix C) with a third
axis: center offset over anchor size, logarithm of the size ratio. B batch, N candidates, M truths, K kept.
"""

import dataclasses
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

Triple = tuple[int, int, int]
# A decoded box is at most 64 times larger or smaller than its anchor, so the exponential cannot overflow.
MAX_LOG_RATIO = math.log(64.0)
# Truths thinner than this many voxels are coded as if they had this size; keeps the logarithm finite.
MIN_SIZE = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """A fixed number of boxes, of which those with `valid` count."""

    boxes: jax.Array  # (..., K, 6) float32, (z0, y0, x0, z1, y1, x1) half-open, voxels of the working grid
    scores: jax.Array  # (..., K) float32 in 0..1
    valid: jax.Array  # (..., K) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Truths:
    """True boxes padded to a fixed number. Ignored ones are neither to be found nor background."""

    boxes: jax.Array  # (..., M, 6) float32, convention as above
    valid: jax.Array  # (..., M) bool: the box is not padding
    ignored: jax.Array | None = None  # (..., M) bool; None: all valid boxes count

    @property
    def counted(self) -> jax.Array:
        """(..., M) bool: valid and not ignored."""
        return self.valid if self.ignored is None else self.valid & ~self.ignored


def box_sizes(boxes: jax.Array) -> jax.Array:
    """Edge lengths (..., 3) in voxels of boxes (..., 6); never negative."""
    return jnp.maximum(boxes[..., 3:] - boxes[..., :3], 0)


def box_centers(boxes: jax.Array) -> jax.Array:
    """Centers (..., 3) in edge coordinates (the center of voxel i is i + 0.5) of boxes (..., 6)."""
    return 0.5 * (boxes[..., :3] + boxes[..., 3:])


def boxes_from_centers(centers: jax.Array, sizes: jax.Array) -> jax.Array:
    """Boxes (..., 6) from centers (..., 3) and edge lengths (..., 3), broadcast against each other."""
    centers, sizes = jnp.broadcast_arrays(centers, sizes)
    return jnp.concatenate([centers - 0.5 * sizes, centers + 0.5 * sizes], axis=-1)


def volume(boxes: jax.Array) -> jax.Array:
    """Volumes (...,) in voxels of boxes (..., 6)."""
    return product_of_axes(box_sizes(boxes))


def product_of_axes(sizes: jax.Array) -> jax.Array:
    """Product over a last axis of length 3; written out so that the order of roundings is fixed."""
    return sizes[..., 0] * sizes[..., 1] * sizes[..., 2]


def safe_iou(intersection: jax.Array, volume_a: jax.Array, volume_b: jax.Array) -> jax.Array:
    """Intersection over union, 0 where the union is empty; shapes broadcast."""
    union = volume_a + volume_b - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every box of `a` (N, 6) with every box of `b` (M, 6): (N, M) in 0..1."""
    chex.assert_shape([a, b], (None, 6))
    # One axis at a time: no (N, M, 3) array, so that the whole expression becomes one loop over (N, M).
    edge_z, edge_y, edge_x = (
        jnp.maximum(
            jnp.minimum(a[:, None, axis + 3], b[None, :, axis + 3])
            - jnp.maximum(a[:, None, axis], b[None, :, axis]),
            0,
        )
        for axis in range(3)
    )
    return safe_iou(edge_z * edge_y * edge_x, volume(a)[:, None], volume(b)[None, :])


def anchor_sizes(diameters_mm: Sequence[float], spacing_mm: Sequence[float]) -> np.ndarray:
    """Edge lengths (A, 3) float32 in voxels of cubes of the given edge lengths in mm.

    `spacing_mm` is the voxel size along (z, y, x).
    """
    diameters = np.asarray(diameters_mm, np.float64)
    return (diameters[:, None] / np.asarray(spacing_mm, np.float64)).astype(np.float32)


def axis_centers(cells: int, stride: int) -> jax.Array:
    """Centers (cells,) of a grid's cells along one axis, in edge coordinates of the working grid."""
    return (jnp.arange(cells, dtype=jnp.float32) + 0.5) * stride


def encode_boxes(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Code (..., 6) of boxes (..., 6) relative to anchors (..., 6) of positive size; always finite."""
    anchor_size = box_sizes(anchors)
    offset = (box_centers(boxes) - box_centers(anchors)) / anchor_size
    log_ratio = jnp.log(jnp.maximum(box_sizes(boxes), MIN_SIZE) / anchor_size)
    return jnp.concatenate([offset, log_ratio], axis=-1)


def decode_boxes(anchors: jax.Array, deltas: jax.Array) -> jax.Array:
    """Boxes (..., 6) from anchors (..., 6) and their codes (..., 6); inverse of `encode_boxes`.

    Log size ratios are clipped to +-MAX_LOG_RATIO.
    """
    anchor_size = box_sizes(anchors)
    center = box_centers(anchors) + deltas[..., :3] * anchor_size
    ratio = jnp.exp(jnp.clip(deltas[..., 3:], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return boxes_from_centers(center, ratio * anchor_size)
