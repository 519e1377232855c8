"""Changing the grid by whole factors: pooling, repetition, and moving space to channels and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Triple = tuple[int, int, int]


def max_pool(x: jax.Array, factors: Triple = (2, 2, 2)) -> jax.Array:
    """Largest value of each block of voxels.

    Args:
        x: (B, Z, Y, X, C), sizes multiples of the factors.
        factors: block edges along z, y, x.

    Returns:
        (B, Z / fz, Y / fy, X / fx, C).

    Raises:
        ValueError: a size is not a multiple of its factor.
    """
    _blocks(x, factors)  # refuses sizes that do not fit
    for axis, factor in enumerate(factors, start=1):
        parts = [jax.lax.slice_in_dim(x, part, None, factor, axis) for part in range(factor)]
        # A choice between two and not `max`: the gradient of max compares each input with the result once
        # more, and a compiler that recomputes one of them in another rounding finds none equal (0 / 0).
        x = functools.reduce(lambda a, b: jnp.where(a >= b, a, b), parts)
    return x


def upsample_nearest(x: jax.Array, factors: Triple = (2, 2, 2)) -> jax.Array:
    """Repeat each voxel along each axis: (B, Z, Y, X, C) -> (B, Z fz, Y fy, X fx, C)."""
    batch, *grid, channels = x.shape
    fz, fy, fx = factors
    z, y, x_size = grid
    blocks = jnp.broadcast_to(x[:, :, None, :, None, :, None, :], (batch, z, fz, y, fy, x_size, fx, channels))
    return blocks.reshape(batch, z * fz, y * fy, x_size * fx, channels)


def space_to_depth(x: jax.Array, factors: Triple) -> jax.Array:
    """Move each block of voxels into the channels; within a block the order is z, y, x, channel.

    Args:
        x: (B, Z, Y, X, C), sizes multiples of the factors.
        factors: block edges along z, y, x.

    Returns:
        (B, Z / fz, Y / fy, X / fx, fz * fy * fx * C).

    Raises:
        ValueError: a size is not a multiple of its factor.
    """
    blocks = _blocks(x, factors)
    batch, z, fz, y, fy, x_size, fx, channels = blocks.shape
    return blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, z, y, x_size, fz * fy * fx * channels)


def depth_to_space(x: jax.Array, factors: Triple) -> jax.Array:
    """Undo `space_to_depth`: (B, Z, Y, X, fz * fy * fx * C) -> (B, Z fz, Y fy, X fx, C).

    Raises:
        ValueError: the channels are not a multiple of fz * fy * fx.
    """
    batch, z, y, x_size, depth = x.shape
    fz, fy, fx = factors
    if depth % (fz * fy * fx):
        raise ValueError(f"depth_to_space needs channels in multiples of {fz * fy * fx}, got {depth}")
    channels = depth // (fz * fy * fx)
    blocks = x.reshape(batch, z, y, x_size, fz, fy, fx, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(batch, z * fz, y * fy, x_size * fx, channels)


def _blocks(x: jax.Array, factors: Triple) -> jax.Array:
    batch, *grid, channels = x.shape
    if any(size % factor for size, factor in zip(grid, factors, strict=True)):
        raise ValueError(f"the grid {tuple(grid)} is not a multiple of {factors}")
    split = [part for size, factor in zip(grid, factors, strict=True) for part in (size // factor, factor)]
    return x.reshape(batch, *split, channels)
