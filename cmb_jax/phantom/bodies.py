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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Ellipsoids in the image frame, padded; `valid` marks the real ones."""

    centre_mm: jax.Array  # (N, 3)
    radii_mm: jax.Array  # (N, 3)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at 3 T
    kind: jax.Array  # (N,) int32
    code: jax.Array  # (N,) uint8 region code at the centre
    valid: jax.Array  # (N,) bool

    @property
    def mean_radius_mm(self) -> jax.Array:
        """(N,) geometric mean of the radii."""
        return jnp.prod(self.radii_mm, axis=1) ** (1 / 3)


def phase_per_ppm(te_ms: jax.Array, b0_t: jax.Array) -> jax.Array:
    """Radians at the echo for a field of 1 ppm: 2 pi gammabar B0 TE."""
    return 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0


def blooming(te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent over true radius of a ball: max(1, (2 pi gammabar B0 TE dchi / (3 phi0))^(1/3)).

    Where the dipole's phase on the axis, (2/3) 2 pi gammabar B0 TE dchi (a / r)^3, falls to 2 phi0.
    """
    return jnp.maximum(1.0, (phase_per_ppm(te_ms, b0_t) * jnp.abs(chi_ppm) / (3.0 * PHI0_RAD)) ** (1.0 / 3.0))


def apparent_diameters(bodies: Bodies, te_ms: jax.Array, b0_t: jax.Array) -> jax.Array:
    """(N,) mm: with blooming, at most `MAX_APPARENT_MM` unless the body itself is larger."""
    true = 2 * bodies.mean_radius_mm
    return jnp.maximum(true, jnp.minimum(true * blooming(te_ms, b0_t, bodies.chi_ppm), MAX_APPARENT_MM))


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
