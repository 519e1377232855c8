"""Whether a reader would see a lesion on the simulated SWI: the rule of what counts as a microbleed.

A lesion counts where a reader would see it, whatever the tier. That is judged by its detectability, the d'
of a matched filter that knows place and size: contrast over the spread of the surroundings, times the square
root of the number of voxels in its cross-section (white noise averages out over them). An ideal observer
needs a d' of 5 to name a spot for sure among the many places of a picture (Rose 1973, Vision: Human and
Electronic), and people use about half of the information that such an observer has (Burgess et al. 1981,
Science 214:93), which costs a factor sqrt(2): `MIN_DETECTABILITY` is 5 sqrt(2), about 7.

The matched filter takes the structure of the surroundings for noise. A reader does not: a black spot is seen
between sulci and near a cavity, where the surroundings vary. So noise alone sets the limit for a spot that is
darker by `OBVIOUS_CONTRAST` or more.

All other simulated microbleeds, those in a signal void and those at the border of what can be seen among
them, are ignored: neither truth nor negative.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.geometry import Grid

MIN_DETECTABILITY = 5.0 * math.sqrt(2.0)
"""d' from which a reader sees a lesion."""

MIN_CONTRAST = 0.05
"""Darker than its surroundings by less than this share of them, a spot is not seen however large it is."""

OBVIOUS_CONTRAST = 0.5
"""Darker by this share than its surroundings, a spot is seen whatever their structure."""

MIN_SURROUNDINGS = 0.4
"""Where the surroundings are darker than this share of the brain's median, near air-filled cavities, the
signal is lost: a dark spot in the dark is nobody's microbleed."""

_RING_MM = (1.0, 3.5)  # beyond the apparent radius
_WINDOW_MM = 9.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """How well each of N lesions shows."""

    cnr: jax.Array  # (N,) surroundings minus core over the noise of one channel; below 0: it is brighter
    contrast: jax.Array  # (N,) surroundings minus core over the surroundings
    surroundings: jax.Array  # (N,) median SWI around it
    detectability: jax.Array  # (N,) d' of the matched filter, see the head of this file
    against_noise: jax.Array  # (N,) d' if the surroundings were uniform


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
    """Contrast-to-noise ratio, surroundings and detectability of lesions.

    Core: voxels within half the apparent radius, the nearest voxel at least. Surroundings: `tissue` (brain
    without CSF and lesions) in the same slices, as a reader looks at them, 1 to 3.5 mm beyond the apparent
    radius, or all of that ring where none is left. Their level is the median and their spread 1.4826 times
    the median absolute deviation, at least the noise, so that a vessel or a lesion beside costs nothing. The
    cross-section is that of the apparent diameter in the slice, one voxel at least.

    swi and tissue (X, Y, Z); sigma () noise of one channel, in units of swi; centre_mm (N, 3) image frame;
    apparent_mm (N,) diameters.
    """
    spacing = jnp.asarray(grid.spacing_mm)
    size = [
        min(n, 2 * int(np.ceil(_WINDOW_MM / h)) + 1) for n, h in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    steps = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in size), indexing="ij"), axis=-1)
    in_slice_mm2 = grid.spacing_mm[0] * grid.spacing_mm[1]

    def one(centre: jax.Array, diameter: jax.Array) -> Visibility:
        position = (centre - jnp.asarray(grid.origin_mm)) / spacing
        start = jnp.round(position).astype(jnp.int32) - jnp.asarray(size) // 2
        start = jnp.clip(start, 0, jnp.asarray(grid.shape) - jnp.asarray(size))
        values = jax.lax.dynamic_slice(swi, start, size)
        solid = jax.lax.dynamic_slice(tissue, start, size)
        offset = (start + steps - position) * spacing
        distance = jnp.linalg.norm(offset, axis=-1)
        core = distance <= jnp.maximum(diameter / 4, jnp.min(distance) + 1e-4)
        through = jnp.abs(offset[..., 2])
        same_slices = through <= jnp.maximum(diameter / 4, jnp.min(through) + 1e-4)
        beyond = jnp.linalg.norm(offset[..., :2], axis=-1) - diameter / 2
        shell = same_slices & (beyond >= _RING_MM[0]) & (beyond <= _RING_MM[1])
        ring = shell & solid
        ring = jnp.where(jnp.any(ring), ring, shell)

        level = _median(values, ring)
        spread = jnp.maximum(1.4826 * _median(jnp.abs(values - level), ring), sigma)
        darker = level - jnp.sum(values * core) / jnp.maximum(jnp.sum(core), 1)
        voxels = jnp.maximum(jnp.pi * diameter**2 / 4 / in_slice_mm2, 1.0)
        return Visibility(
            cnr=darker / sigma,
            contrast=darker / jnp.maximum(level, 1e-12),
            surroundings=level,
            detectability=darker / spread * jnp.sqrt(voxels),
            against_noise=darker / sigma * jnp.sqrt(voxels),
        )

    return jax.lax.map(lambda pair: one(*pair), (centre_mm, apparent_mm))


def _median(values: jax.Array, where: jax.Array) -> jax.Array:
    """Median of the values at `where`, 0 if there are none."""
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(where, values, jnp.nan)))


def is_seen(seen: Visibility, typical: jax.Array) -> jax.Array:
    """(N,) whether a reader would see each lesion.

    typical: () median SWI of the brain, in the units that `seen` was measured in.
    """
    d_prime = jnp.where(seen.contrast >= OBVIOUS_CONTRAST, seen.against_noise, seen.detectability)
    return (
        (d_prime >= MIN_DETECTABILITY)
        & (seen.contrast >= MIN_CONTRAST)
        & (seen.surroundings >= MIN_SURROUNDINGS * typical)
    )
