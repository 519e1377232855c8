"""Coarse maps of a posed head on which lesions and veins are placed."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid, PackedAnatomy, Pose, sample_pack, widen_lattice

PLANNING_SPACING_MM = 2.0


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class HeadMaps:
    """A posed head on the planning grid."""

    channels: jax.Array  # (X, Y, Z, C) in 0..1
    region: jax.Array  # (X, Y, Z) int32 Region
    pack_mm: jax.Array  # (X, Y, Z, 3) where each voxel lies in the pack


@functools.partial(jax.jit, static_argnames=("lattice", "grid"))
def head_maps(anatomy: PackedAnatomy, pose: Pose, *, lattice: Grid, grid: Grid) -> HeadMaps:
    """Sample the posed pack on the planning grid."""
    displacement, wx = widen_lattice(pose.displacement, lattice, grid)
    axes = [jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3)]
    y, z = (a.reshape(-1) for a in jnp.meshgrid(axes[1], axes[2], indexing="ij"))

    def plane(part: tuple[jax.Array, jax.Array]):
        x, weights = part
        moved = jnp.tensordot(weights, displacement, axes=1).reshape(-1, 3)
        points = jnp.stack([jnp.full_like(y, x), y, z], axis=1) @ pose.linear.T + pose.offset + moved
        channels, code = sample_pack(anatomy, points)
        return channels, (code % 16).astype(jnp.int32), points

    channels, region, points = jax.lax.map(plane, (axes[0], wx))
    return HeadMaps(
        channels.reshape(*grid.shape, -1), region.reshape(grid.shape), points.reshape(*grid.shape, 3)
    )


def blur(volume: jax.Array, sigma_voxels: float) -> jax.Array:
    """Gaussian smoothing of (X, Y, Z), with zeros beyond the edges."""
    for axis in range(3):
        d = jnp.arange(volume.shape[axis])
        kernel = jnp.exp(-0.5 * ((d[:, None] - d) / sigma_voxels) ** 2) / (sigma_voxels * np.sqrt(2 * np.pi))
        volume = jnp.moveaxis(jnp.tensordot(kernel, volume, axes=(1, axis)), 0, axis)
    return volume


def draw_voxels(key: jax.Array, weight: jax.Array, grid: Grid, count: int) -> jax.Array:
    """`count` points (count, 3) in mm, drawn with probability `weight` (X, Y, Z), uniform within a voxel."""
    k_voxel, k_place = jax.random.split(key)
    cumulative = jnp.cumsum(weight.reshape(-1).astype(jnp.float32))
    draw = jax.random.uniform(k_voxel, (count,)) * cumulative[-1]
    flat = jnp.clip(jnp.searchsorted(cumulative, draw, side="right"), 0, weight.size - 1)
    index = jnp.stack(jnp.unravel_index(flat, weight.shape), axis=1)
    index = index + jax.random.uniform(k_place, (count, 3), minval=-0.5, maxval=0.5)
    return jnp.asarray(grid.origin_mm) + index * jnp.asarray(grid.spacing_mm)


def interpolate(volume: jax.Array, grid: Grid, points_mm: jax.Array) -> jax.Array:
    """Linear interpolation of (X, Y, Z, C) at points (P, 3) -> (P, C); edge values beyond the grid."""
    index = (points_mm - jnp.asarray(grid.origin_mm)) / jnp.asarray(grid.spacing_mm)
    index = jnp.clip(index, 0.0, jnp.asarray(grid.shape) - 1.0)
    low = jnp.minimum(jnp.floor(index).astype(jnp.int32), jnp.asarray(grid.shape) - 2)
    fraction = (index - low)[:, None]
    corners = jnp.asarray(list(np.ndindex(2, 2, 2)), jnp.int32)
    weight = jnp.prod(jnp.where(corners == 1, fraction, 1 - fraction), axis=-1)
    at = low[:, None] + corners
    return jnp.einsum("pk,pkc->pc", weight, volume[at[..., 0], at[..., 1], at[..., 2]])


def gradient(volume: jax.Array) -> jax.Array:
    """Central differences (X, Y, Z) -> (X, Y, Z, 3), a voxel."""
    return jnp.stack(jnp.gradient(volume), axis=-1)


def in_regions(region: jax.Array, *regions: Region) -> jax.Array:
    """Boolean mask of the voxels that bear one of the labels."""
    return jnp.isin(region, jnp.asarray([int(r) for r in regions]))


def tissue_mask(channels: jax.Array) -> jax.Array:
    """Where grey and white matter fill at least four fifths: channels (..., C) -> bool (...)."""
    solid = channels[..., Channel.GREY_MATTER] + channels[..., Channel.WHITE_MATTER]
    return solid >= 0.8
