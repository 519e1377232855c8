"""Sizes, centres and overlaps of boxes (z0, y0, x0, z1, y1, x1), half-open, in voxels.

A box whose far corner is not beyond its near corner is empty: its volume and all its overlaps are 0.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def box_sizes(boxes: jax.Array) -> jax.Array:
    """Edge lengths (..., 3) in voxels of boxes (..., 6); never negative."""
    return jnp.maximum(boxes[..., 3:] - boxes[..., :3], 0)


def box_centers(boxes: jax.Array) -> jax.Array:
    """Centres (..., 3) in edge coordinates (the centre of voxel i is i + 0.5) of boxes (..., 6)."""
    return 0.5 * (boxes[..., :3] + boxes[..., 3:])


def boxes_from_centers(centers: jax.Array, sizes: jax.Array) -> jax.Array:
    """Boxes (..., 6) from centres (..., 3) and edge lengths (..., 3), broadcast against each other."""
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
