"""Changing the grid by whole factors: pooling, repetition, and moving space to channels and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

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
    return _max_pool(x, factors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, factors: Triple) -> jax.Array:
    return _largest(x, factors)[0]


def _largest(x: jax.Array, factors: Triple) -> tuple[jax.Array, jax.Array]:
    """Largest value of each block and its int8 number in the block; of equal ones the first."""
    # Axis by axis on strided slices, so that no block is ever gathered. A voxel's number in its block counts
    # z fastest: z + fz * (y + fy * x). Strictly greater keeps the first of equal values.
    number = jnp.zeros(x.shape, jnp.int8)
    weight = 1
    for axis, factor in enumerate(factors, start=1):
        best, which = (lax.slice_in_dim(array, 0, None, factor, axis) for array in (x, number))
        for part in range(1, factor):
            value, before = (lax.slice_in_dim(array, part, None, factor, axis) for array in (x, number))
            better = value > best
            best = jnp.where(better, value, best)
            which = jnp.where(better, before + jnp.int8(part * weight), which)
        x, number = best, which
        weight *= factor
    return x, number


def _max_pool_forward(x: jax.Array, factors: Triple) -> tuple[jax.Array, jax.Array]:
    return _largest(x, factors)


def _max_pool_backward(factors: Triple, number: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    """Hand the gradient to the chosen voxel.

    The choice is kept and not found again by comparing values: a compiler that recomputes one of them in
    another rounding would find none equal. It is also faster on CPU than differentiating the maximum.
    """
    number_in_block = jnp.int8(0)  # of every voxel, counted as in `_largest`
    weight = 1
    for axis, factor in enumerate(factors):
        size = g.shape[1 + axis] * factor
        place = jnp.arange(size, dtype=jnp.int32) % factor * weight
        number_in_block = number_in_block + place.astype(jnp.int8).reshape(
            [-1 if i == axis else 1 for i in range(3)] + [1]
        )
        weight *= factor
    chosen = upsample_nearest(number, factors) == number_in_block
    return (jnp.where(chosen, upsample_nearest(g, factors), 0),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def upsample_nearest(x: jax.Array, factors: Triple = (2, 2, 2)) -> jax.Array:
    """Repeat each voxel along each axis: (B, Z, Y, X, C) -> (B, Z fz, Y fy, X fx, C)."""
    batch, *grid, channels = x.shape
    fz, fy, fx = factors
    z, y, x_size = grid
    blocks = jnp.broadcast_to(x[:, :, None, :, None, :, None, :], (batch, z, fz, y, fy, x_size, fx, channels))
    return blocks.reshape(batch, z * fz, y * fy, x_size * fx, channels)


def sum_blocks(x: jax.Array, factors: Triple = (2, 2, 2)) -> jax.Array:
    """Sum each block of voxels, the transpose of `upsample_nearest`: (B, Z, Y, X, C) -> (B, Z / fz, ...).

    Raises:
        ValueError: a size is not a multiple of its factor.
    """
    return _blocks(x, factors).sum(axis=(2, 4, 6))


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
