"""Shapes and fields of view of the region network's training samples, and sampling at their points.

Points are arrays (3, ...) of z, y, x in mm; the origin is the middle of the brain's bounding box. Pure
functions of a key, jitted with what uses them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmb_jax.data.region_grid import GRID_MM, GRID_SHAPE

FIELD_MM = 8.0  # grid of the warps


def uniform(key: jax.Array, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
    """Uniform numbers between low and high."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def smooth_noise(
    key: jax.Array, coarse: tuple[int, ...], fine: tuple[int, ...], channels: int = 1
) -> jax.Array:
    """(channels, *fine) noise: normal values on a coarse grid, interpolated."""
    noise = jax.random.normal(key, (channels, *coarse))
    return jax.image.resize(noise, (channels, *fine), "cubic")


def head_points(key: jax.Array, brain_mm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points of the grid's voxels in the posed head, and which of them lie in the field of view.

    Half of the views end in the neck or at the chin, a fifth cut the brain at the top or at the bottom (up to
    50 mm); the rest hold the whole head. The grid is centred on the visible brain, up to a shift.
    """
    low_key, cut_key, which_key, shift_key, kind_key = jax.random.split(key, 5)
    kind = jax.random.uniform(kind_key)
    cut = uniform(cut_key, 3.0, 50.0)
    cut_top = jax.random.bernoulli(which_key)
    low, high = brain_mm[0], brain_mm[1]
    neck = jnp.where(kind < 0.7, low - uniform(low_key, 0.0, 40.0), low - 200.0)
    bottom = jnp.where((kind < 0.2) & ~cut_top, low + cut, neck)
    top = jnp.where((kind < 0.2) & cut_top, high - cut, high + 200.0)
    centre_z = (jnp.maximum(bottom, low) + jnp.minimum(top, high)) / 2
    shift = uniform(shift_key, -1.0, 1.0, (3,)) * jnp.asarray([18.0, 12.0, 12.0])
    points = grid_mm() + shift.at[0].add(centre_z)[:, None, None, None]
    return points, (points[0] >= bottom) & (points[0] <= top)


def grid_mm() -> jax.Array:
    """(3, Z, Y, X) points of the region grid relative to its centre, mm."""
    axes = [(jnp.arange(n) - (n - 1) / 2) * GRID_MM for n in GRID_SHAPE]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


def pose(key: jax.Array, points: jax.Array) -> jax.Array:
    """Affine pose (rotation, scale, shear) of points (3, ...)."""
    angle_key, scale_key, shear_key = jax.random.split(key, 3)
    angles = uniform(angle_key, -1.0, 1.0, (3,)) * jnp.deg2rad(jnp.asarray([12.0, 12.0, 18.0]))
    rotation = _rotation(0, 1, angles[0]) @ _rotation(0, 2, angles[1]) @ _rotation(1, 2, angles[2])
    scale = 1 + uniform(scale_key, -0.12, 0.12, (3,))
    shear = jnp.eye(3) + jnp.triu(uniform(shear_key, -0.06, 0.06, (3, 3)), 1)
    return jnp.einsum("ij,j...->i...", rotation @ shear @ jnp.diag(scale), points)


def deform(key: jax.Array, points: jax.Array, ventricle_pull: jax.Array) -> jax.Array:
    """Affine pose, then a diffeomorphic warp, of the grid's points (3, Z, Y, X)."""
    pose_key, warp_key = jax.random.split(key)
    posed = pose(pose_key, points)
    # The warp is smooth: every second point is enough, and eight times as quick.
    blocks = posed.reshape(3, *(part for n in GRID_SHAPE for part in (n // 2, 2)))
    displacement = sample_linear(warp(warp_key, ventricle_pull), blocks.mean(axis=(2, 4, 6)) / FIELD_MM)
    return posed + jax.image.resize(displacement, posed.shape, "linear")


def _rotation(first: int, second: int, angle: jax.Array) -> jax.Array:
    """Rotation matrix in the plane of two axes."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    out = jnp.eye(3).at[first, first].set(cos).at[second, second].set(cos)
    return out.at[first, second].set(-sin).at[second, first].set(sin)


def warp(key: jax.Array, ventricle_pull: jax.Array) -> jax.Array:
    """Displacement (3, Z, Y, X) in mm on the field grid: a stationary velocity, scaled and squared."""
    broad_key, fine_key, amplitude_key, ventricle_key = jax.random.split(key, 4)
    shape = ventricle_pull.shape[1:]
    amplitude = uniform(amplitude_key, 0.0, 1.0, (2,)) * jnp.asarray([6.0, 2.5])
    velocity = amplitude[0] * smooth_noise(broad_key, (4, 5, 4), shape, 3)
    velocity += amplitude[1] * smooth_noise(fine_key, (9, 11, 10), shape, 3)
    velocity += uniform(ventricle_key, -1.0, 5.0) * ventricle_pull
    axes = [jnp.arange(n) - (n - 1) / 2 for n in shape]
    lattice = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))
    squarings = 4
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + sample_linear(displacement, lattice + displacement / FIELD_MM)
    return displacement


def sample_linear(volume: jax.Array, points: jax.Array) -> jax.Array:
    """Trilinear (C, ...) of (C, Z, Y, X) at points (3, ...) in voxels from its centre; edges repeat."""
    # Without this XLA computes the volume anew for each of the eight corners.
    volume, points = jax.lax.optimization_barrier((volume, points))
    size = volume.shape[1:]
    position = [jnp.clip(p + (n - 1) / 2, 0, n - 1) for p, n in zip(points, size, strict=True)]
    base = [jnp.minimum(p.astype(jnp.int32), n - 2) for p, n in zip(position, size, strict=True)]
    fz, fy, fx = (p - b for p, b in zip(position, base, strict=True))
    # Flat indices: a gather of scalars is several times faster on a CPU than one of short rows.
    step = (size[1] * size[2], size[2], 1)
    index = base[0] * step[0] + base[1] * step[1] + base[2]

    def interpolate(flat: jax.Array) -> jax.Array:
        def line(offset: int) -> jax.Array:
            return flat[index + offset] * (1 - fx) + flat[index + offset + 1] * fx

        def plane(offset: int) -> jax.Array:
            return line(offset) * (1 - fy) + line(offset + step[1]) * fy

        return plane(0) * (1 - fz) + plane(step[0]) * fz

    return jnp.stack([interpolate(channel.reshape(-1)) for channel in volume])


def sample_nearest(volume: jax.Array, points: jax.Array) -> jax.Array:
    """Nearest values (...) of (Z, Y, X) at points (3, ...) in voxels from its centre; 0 beyond its edges."""
    size = volume.shape
    z, y, x = (jnp.rint(p + (n - 1) / 2).astype(jnp.int32) for p, n in zip(points, size, strict=True))
    inside = (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
    index = (z * size[1] + y) * size[2] + x
    return jnp.where(inside, volume.reshape(-1)[jnp.where(inside, index, 0)], 0)
