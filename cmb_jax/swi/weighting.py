"""From magnitude and phase to a susceptibility-weighted image, its projection, and several echoes to one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cmb_jax.swi.filters import DEFAULT_WIDTH_MM, homodyne_phase

PHASE_MASK_POWER = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiImage:
    """A susceptibility-weighted image and the phase that it was made with."""

    swi: jax.Array  # (X, Y, Z), in the magnitude's unit
    filtered_phase: jax.Array  # (X, Y, Z) radians, high-passed, paramagnetic positive


def phase_mask(phase_rad: jax.Array, sign: int | jax.Array = 1) -> jax.Array:
    """Phase mask that falls from 1 at phase 0 to 0 at pi on the paramagnetic side (Haacke et al. 2004).

    Args:
        phase_rad: high-passed phase in radians, any shape.
        sign: +1 where paramagnetic tissue has positive phase, -1 where negative.

    Returns:
        The same shape, within [0, 1]; 1 on the diamagnetic side.
    """
    return jnp.clip(1.0 - sign * phase_rad / jnp.pi, min=0.0, max=1.0)


@jax.jit
def susceptibility_weighted(
    magnitude: jax.Array,
    phase_rad: jax.Array,
    spacing_mm: Sequence[float] | jax.Array,
    sign: int | jax.Array = 1,
    power: float | jax.Array = PHASE_MASK_POWER,
    width_mm: float | jax.Array = DEFAULT_WIDTH_MM,
) -> SwiImage:
    """Magnitude times the phase mask to a power, the fourth by custom.

    Haacke et al., Magn Reson Med 52:612 (2004).

    Args:
        magnitude: (X, Y, Z), any unit.
        phase_rad: (X, Y, Z) in radians, wrapped or not, as stored.
        spacing_mm: voxel edge lengths along (x, y, z) in mm.
        sign: +1 where the stored phase of paramagnetic tissue is positive, -1 where negative.
        power: how often the mask multiplies; 2 to 5 with vendors.
        width_mm: full width at half maximum of the homodyne low-pass in mm.

    Returns:
        The image and the high-passed phase; the latter already turned so that paramagnetic is positive
        (multiply by `sign` to have it as stored).
    """
    filtered = sign * homodyne_phase(phase_rad, magnitude, spacing_mm, width_mm)
    return SwiImage(swi=magnitude * phase_mask(filtered) ** power, filtered_phase=filtered)


@functools.partial(jax.jit, static_argnames=("slab_voxels", "axis"))
def minimum_intensity_projection(swi: jax.Array, slab_voxels: int, axis: int = 2) -> jax.Array:
    """Sliding minimum over a slab of slices; the volume keeps its shape.

    Args:
        swi: (X, Y, Z).
        slab_voxels: slices a slab, about 8 mm; an even slab reaches one slice further up than down.
        axis: the axis to project along.

    Returns:
        (X, Y, Z); near the ends the slab holds the slices that exist.
    """
    below = (slab_voxels - 1) // 2
    padding = [(0, 0)] * swi.ndim
    padding[axis] = (below, slab_voxels - 1 - below)
    window = [1] * swi.ndim
    window[axis] = slab_voxels
    return jax.lax.reduce_window(swi, jnp.inf, jax.lax.min, window, [1] * swi.ndim, padding)


@jax.jit
def combine_echoes(
    magnitudes: jax.Array, phases: jax.Array, te_ms: Sequence[float] | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Several echoes to one, weighed by how much each tells about susceptibility.

    Phase is linear in echo time with noise of 1 / magnitude: the least-squares slope weighs by
    magnitude^2 TE. The magnitude is the root of the TE-weighted mean square: an echo's sensitivity to R2*
    grows with its TE.

    Args:
        magnitudes: (E, X, Y, Z).
        phases: (E, X, Y, Z) in radians without wraps and without a common offset: high-passed phase.
        te_ms: (E,) echo times in ms.

    Returns:
        magnitude (X, Y, Z) in the unit of the echoes, and phase (X, Y, Z) in radians as at the longest echo.
    """
    te = jnp.asarray(te_ms, magnitudes.dtype).reshape(-1, 1, 1, 1)
    power = (magnitudes / jnp.maximum(jnp.max(magnitudes), jnp.finfo(magnitudes.dtype).tiny)) ** 2
    information = jnp.sum(power * te**2, axis=0)
    slope = jnp.sum(power * te * phases, axis=0) / jnp.where(information > 0, information, 1.0)
    magnitude = jnp.sqrt(jnp.sum(te * magnitudes**2, axis=0) / jnp.sum(te))
    return magnitude, slope * jnp.max(te)
