"""Focal bodies of a susceptibility of their own: ellipsoids with a true and an apparent size."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.packed import PackedAnatomy, codes_at
from cmb_jax.phantom.pose import Pose, to_pack
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T

MAX_APPARENT_MM = 10.0
MAX_CHI_PPM = 2.5
PHI0_RAD = 1.5  # a voxel's phase counts as seen from here on
SHARP_MM = 1.8  # what blooms to more than this across has its border where the phase gets steep


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Ellipsoids in the image frame, padded; `valid` marks the real ones."""

    center_mm: jax.Array  # (N, 3)
    radii_mm: jax.Array  # (N, 3)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at 3 T
    kind: jax.Array  # (N,) int32
    code: jax.Array  # (N,) uint8 region code at the center
    valid: jax.Array  # (N,) bool

    @property
    def mean_radius_mm(self) -> jax.Array:
        """(N,) geometric mean of the radii."""
        return jnp.prod(self.radii_mm, axis=1) ** (1 / 3)


def phase_per_ppm(te_ms: jax.Array, b0_t: jax.Array) -> jax.Array:
    """Radians at the echo for a field of 1 ppm: 2 pi gammabar B0 TE."""
    return 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0


def blooming(te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent over true radius of a small ball: max(1, (2 pi gammabar B0 TE dchi / (3 phi0))^(1/3)).

    Where the dipole's phase on the axis, (2/3) 2 pi gammabar B0 TE dchi (a / r)^3, falls to 2 phi0.
    """
    return jnp.maximum(1.0, (phase_per_ppm(te_ms, b0_t) * jnp.abs(chi_ppm) / (3.0 * PHI0_RAD)) ** (1.0 / 3.0))


def seen_mm(true_mm: jax.Array, te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent diameters of balls of true diameters in mm: full width of the void at half its depth.

    That of a small ball is its own times `blooming`. One that would then be d mm across, more than
    `SHARP_MM`, ends where the spins of a voxel point apart: where its phase, chi a^3 / r^3, changes by a
    fixed amount per millimeter, chi a^3 / r^4. It is (SHARP_MM d^3)^(1/4) across. At most `MAX_APPARENT_MM`
    unless the body itself is larger.
    """
    bloomed = true_mm * blooming(te_ms, b0_t, chi_ppm)
    steep = (SHARP_MM * bloomed**3) ** 0.25
    return jnp.maximum(true_mm, jnp.minimum(jnp.minimum(bloomed, steep), MAX_APPARENT_MM))


def bloomed_mm(apparent_mm: jax.Array | float) -> jax.Array:
    """True diameter times `blooming` of what is to look `apparent_mm` across: the inverse of `seen_mm`."""
    return jnp.maximum(apparent_mm, (apparent_mm**4 / SHARP_MM) ** (1 / 3))


def apparent_diameters(bodies: Bodies, te_ms: jax.Array, b0_t: jax.Array) -> jax.Array:
    """(N,) mm: `seen_mm` of the balls of the bodies' volumes."""
    return seen_mm(2 * bodies.mean_radius_mm, te_ms, b0_t, bodies.chi_ppm)


def log_normal(key: jax.Array, shape: tuple[int, ...], median: float, sigma: float, low, high) -> jax.Array:
    """Clipped log-normal draws."""
    return jnp.clip(median * jnp.exp(sigma * jax.random.normal(key, shape)), low, high)


def ellipsoids(key: jax.Array, radius_mm: jax.Array, spread: float) -> jax.Array:
    """(N, 3) radii of randomly squeezed balls of the same volume as those of radius (N,)."""
    squeeze = jnp.clip(spread * jax.random.normal(key, (*radius_mm.shape, 3)), -2 * spread, 2 * spread)
    return radius_mm[:, None] * jnp.exp(squeeze - jnp.mean(squeeze, axis=1, keepdims=True))


def region_codes(anatomy: PackedAnatomy, pose: Pose, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """(P,) uint8 region code at image points (P, 3)."""
    return codes_at(anatomy, to_pack(pose, lattice, points_mm))
