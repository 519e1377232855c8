"""Contrast-to-noise ratio of lesions on the simulated SWI."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.geometry import Grid

MIN_CNR = 3.0
"""A microbleed below this is no truth: nobody could see it. Its row and label are left out."""

_RING_MM = (1.0, 3.5)  # beyond the apparent radius
_WINDOW_MM = 9.0


@functools.partial(jax.jit, static_argnames=("grid",))
def contrast_to_noise(
    swi: jax.Array,
    tissue: jax.Array,
    sigma: jax.Array,
    centre_mm: jax.Array,
    apparent_mm: jax.Array,
    *,
    grid: Grid,
) -> jax.Array:
    """|mean of the surrounding tissue - mean of the core| over the noise of one channel, (N,).

    Core: voxels within half the apparent radius, the nearest voxel at least. Surroundings: `tissue` (brain
    without CSF and lesions) 1 to 3.5 mm beyond the apparent radius, or all of that shell where none is left.
    swi and tissue (X, Y, Z); centre_mm (N, 3) image frame; apparent_mm (N,) diameters.
    """
    spacing = jnp.asarray(grid.spacing_mm)
    size = [
        min(n, 2 * int(np.ceil(_WINDOW_MM / h)) + 1) for n, h in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    steps = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in size), indexing="ij"), axis=-1)

    def one(centre: jax.Array, diameter: jax.Array) -> jax.Array:
        position = (centre - jnp.asarray(grid.origin_mm)) / spacing
        start = jnp.round(position).astype(jnp.int32) - jnp.asarray(size) // 2
        start = jnp.clip(start, 0, jnp.asarray(grid.shape) - jnp.asarray(size))
        values = jax.lax.dynamic_slice(swi, start, size)
        solid = jax.lax.dynamic_slice(tissue, start, size)
        distance = jnp.linalg.norm((start + steps - position) * spacing, axis=-1)
        core = distance <= jnp.maximum(diameter / 4, jnp.min(distance) + 1e-4)
        shell = (distance >= diameter / 2 + _RING_MM[0]) & (distance <= diameter / 2 + _RING_MM[1])
        ring = shell & solid
        ring = jnp.where(jnp.any(ring), ring, shell)

        def mean(mask: jax.Array) -> jax.Array:
            return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)

        return jnp.abs(mean(ring) - mean(core)) / sigma

    return jax.lax.map(lambda pair: one(*pair), (centre_mm, apparent_mm))
