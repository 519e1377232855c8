"""A subject's head: position, size and shape.

A pose maps image points to pack points: q = center + L p + t + u(p), with u the displacement of a stationary
velocity field (Arsigny et al. 2006), hence a diffeomorphism.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cmb_jax.phantom.geometry import (
    Grid,
    grid_points,
    interpolate_lattice,
    linear_at,
    rotation_matrix,
    smooth_noise,
)
from cmb_jax.phantom.packed import COARSE_MM, PackedAnatomy

SQUARINGS = 6
_WARP_CORRELATION_MM = 20.0  # sigma of the random velocity
_MAX_DILATION_MM = 3.5  # how far a ventricle's wall is pushed outwards at the most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pose:
    """Image point p -> pack point offset + linear p + u(p)."""

    linear: jax.Array  # (3, 3)
    offset: jax.Array  # (3,) mm, pack frame
    displacement: jax.Array  # (*lattice.shape, 3) mm


def integrate_velocity(velocity: jax.Array, lattice: Grid) -> jax.Array:
    """Displacement of the flow at time 1 of a stationary velocity (*lattice.shape, 3) in mm."""
    axes = [jnp.arange(n, dtype=jnp.float32) for n in lattice.shape]
    index = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    spacing = jnp.asarray(lattice.spacing_mm)

    def square(_: int, u: jax.Array) -> jax.Array:
        return u + linear_at(u, index + u.reshape(-1, 3) / spacing).reshape(u.shape)

    return jax.lax.fori_loop(0, SQUARINGS, square, velocity / 2**SQUARINGS)


def _towards_ventricles(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """(P, 3) pack points -> vectors up the gradient of the smoothed lateral ventricles, at most about 1 long.

    Image points beside a ventricle that are moved along it land inside: the ventricle looks wider.
    """
    ahead, behind = (
        jnp.stack(
            [
                linear_at(anatomy.ventricle, (points_mm + step - anatomy.coarse_origin_mm) / COARSE_MM)[:, 0]
                for step in COARSE_MM * sign * jnp.eye(3)
            ],
            axis=1,
        )
        for sign in (1.0, -1.0)
    )
    steep = (ahead - behind) / 2
    return steep / 0.2


def random_pose(
    key: jax.Array, anatomy: PackedAnatomy, atrophy: jax.Array, center_mm: jax.Array, *, lattice: Grid
) -> Pose:
    """Rotation of a few degrees, scale +-7 % an axis, shift of a few mm, smooth warp, wider ventricles.

    `center_mm` (3,): the pack point that lies in the middle of the image before the shift; `atrophy` () 0..1.
    """
    k_rotation, k_scale, k_shift, k_warp, k_size, k_dilation = jax.random.split(key, 6)
    rotation = rotation_matrix(jax.random.normal(k_rotation, (3,)) * jnp.deg2rad(3.0))
    linear = rotation * (1 / jax.random.uniform(k_scale, (3,), minval=0.93, maxval=1.07))
    offset = center_mm + jnp.clip(jax.random.normal(k_shift, (3,)), -2, 2) * jnp.array([2.0, 3.0, 2.0])

    size = jax.random.uniform(k_size, (), minval=1.0, maxval=2.2)
    sigma = _WARP_CORRELATION_MM / lattice.spacing_mm[0]
    velocity = size * smooth_noise(k_warp, (*lattice.shape, 3), sigma=sigma)
    points = grid_points(lattice).reshape(-1, 3) @ linear.T + offset
    push = _MAX_DILATION_MM * atrophy * jax.random.uniform(k_dilation, (), minval=0.3)
    velocity = velocity + push * _towards_ventricles(anatomy, points).reshape(velocity.shape)
    return Pose(linear, offset, integrate_velocity(velocity, lattice))


def to_pack(pose: Pose, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """Image points (P, 3) -> pack points (P, 3)."""
    moved = interpolate_lattice(pose.displacement, lattice, points_mm)
    return points_mm @ pose.linear.T + pose.offset + moved


def from_pack(pose: Pose, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """Pack points (P, 3) -> image points (P, 3), by fixed-point iteration."""
    inverse = jnp.linalg.inv(pose.linear)

    def step(_: int, p: jax.Array) -> jax.Array:
        moved = interpolate_lattice(pose.displacement, lattice, p)
        return (points_mm - pose.offset - moved) @ inverse.T

    return jax.lax.fori_loop(0, 16, step, (points_mm - pose.offset) @ inverse.T)
