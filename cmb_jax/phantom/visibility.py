"""Whether a lesion can be seen on the simulated SWI."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.geometry import Grid

MIN_CNR = 3.0
"""A microbleed below this is no truth: nobody could see it. Its row and label are left out."""

MIN_SURROUNDINGS = 0.4
"""Nor is one whose surroundings are darker than this share of the brain's median: there, near air-filled
cavities, the signal is lost, and a dark spot in the dark is nobody's microbleed."""

MIN_DISTINCTNESS = 2.0
"""Nor one whose contrast is less than this many standard deviations of its surroundings: between the rings
of an air-tissue artefact a dark spot is one of many."""

_RING_MM = (1.0, 3.5)  # beyond the apparent radius
_WINDOW_MM = 9.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """How well each of N lesions shows."""

    cnr: jax.Array  # (N,) |surroundings - core| over the noise of one channel
    surroundings: jax.Array  # (N,) mean SWI around it
    distinctness: jax.Array  # (N,) |surroundings - core| over the standard deviation of the surroundings


@functools.partial(jax.jit, static_argnames=("grid",))
def visibility(
    swi: jax.Array,
    tissue: jax.Array,
    sigma: jax.Array,
    centre_mm: jax.Array,
    apparent_mm: jax.Array,
    *,
    grid: Grid,
) -> Visibility:
    """Contrast-to-noise ratio and surroundings of lesions.

    Core: voxels within half the apparent radius, the nearest voxel at least. Surroundings: `tissue` (brain
    without CSF and lesions) 1 to 3.5 mm beyond the apparent radius, or all of that shell where none is left.
    swi and tissue (X, Y, Z); centre_mm (N, 3) image frame; apparent_mm (N,) diameters.
    """
    spacing = jnp.asarray(grid.spacing_mm)
    size = [
        min(n, 2 * int(np.ceil(_WINDOW_MM / h)) + 1) for n, h in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    steps = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in size), indexing="ij"), axis=-1)

    def one(centre: jax.Array, diameter: jax.Array) -> Visibility:
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

        level = jnp.sum(values * ring) / jnp.maximum(jnp.sum(ring), 1)
        contrast = jnp.abs(level - jnp.sum(values * core) / jnp.maximum(jnp.sum(core), 1))
        spread = jnp.sqrt(jnp.sum((values - level) ** 2 * ring) / jnp.maximum(jnp.sum(ring), 1))
        return Visibility(
            cnr=contrast / sigma, surroundings=level, distinctness=contrast / jnp.maximum(spread, 1e-6)
        )

    return jax.lax.map(lambda pair: one(*pair), (centre_mm, apparent_mm))
