"""A posed head on the grids of the image: tissue, labels, and coarse maps for planning.

Tissue serves the physics and labels are the truth. On the coarse maps lesions and vessels are placed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid, linear_at, widen_lattice
from cmb_jax.phantom.packed import PackedAnatomy, mni_of, sample_pack
from cmb_jax.phantom.pose import Pose
from cmb_jax.phantom.tissue import HeadVolume, shrink_cortex


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TissueMaps:
    """(X, Y, Z) on the simulation grid."""

    chi_ppm: jax.Array  # against soft tissue: air is +9.4
    r2_star: jax.Array  # 1/s
    signal: jax.Array  # without relaxation
    sinus: jax.Array  # fraction of the venous blood of sinuses


def for_each_plane(pose: Pose, function: Callable[[jax.Array], Any], *, lattice: Grid, grid: Grid) -> Any:
    """function(pack points (Y * Z, 3)) of every x plane of a grid, stacked to (X, Y * Z, ...)."""
    displacement, wx = widen_lattice(pose.displacement, lattice, grid)
    x_mm, y_mm, z_mm = (jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3))
    y, z = (a.reshape(-1) for a in jnp.meshgrid(y_mm, z_mm, indexing="ij"))
    plane = y[:, None] * pose.linear[:, 1] + z[:, None] * pose.linear[:, 2] + pose.offset

    def one(part: tuple[jax.Array, jax.Array]) -> Any:
        x, weights = part
        moved = jnp.tensordot(weights, displacement, axes=1).reshape(-1, 3)
        return function(x * pose.linear[:, 0] + plane + moved)

    return jax.lax.map(one, (x_mm, wx))


def tissue_maps(
    anatomy: PackedAnatomy, volume: HeadVolume, pose: Pose, *, lattice: Grid, grid: Grid
) -> TissueMaps:
    """The subject's tissue on the simulation grid, linear between the pack's voxels."""

    def sample(points: jax.Array) -> jax.Array:
        index = points @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]
        return linear_at(volume.values, index)

    values = for_each_plane(pose, sample, lattice=lattice, grid=grid).reshape(*grid.shape, 4)
    return TissueMaps(*(values[..., c] for c in range(4)))


def label_maps(
    anatomy: PackedAnatomy, volume: HeadVolume, pose: Pose, *, lattice: Grid, grid: Grid
) -> tuple[jax.Array, jax.Array]:
    """Region codes and the mimics that tissue makes on the acquired grid, uint8 (X, Y, Z) each; nearest."""
    nx, ny, nz = volume.code.shape
    both = volume.code.astype(jnp.uint16) + (volume.mimic.astype(jnp.uint16) << 8)
    rows = both.reshape(-1)

    def sample(points: jax.Array) -> jax.Array:
        index = jnp.round(points @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]).astype(jnp.int32)
        index = jnp.clip(index, 0, jnp.array([nx - 1, ny - 1, nz - 1]))
        return rows[(index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]]

    labels = for_each_plane(pose, sample, lattice=lattice, grid=grid).reshape(grid.shape)
    return (labels & 0xFF).astype(jnp.uint8), (labels >> 8).astype(jnp.uint8)


PLANNING_SPACING_MM = 2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadMaps:
    """A posed head on the planning grid."""

    channels: jax.Array  # (X, Y, Z, bytes of a packed voxel) in 0..1, the cortex shrunk by atrophy
    region: jax.Array  # (X, Y, Z) int32 Region
    mni_mm: jax.Array  # (X, Y, Z, 3) where each voxel lies in MNI space


def sample_head(
    anatomy: PackedAnatomy, points_mm: jax.Array, atrophy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Channels (P, C), the cortex shrunk, and region codes (P,) at pack points (P, 3)."""
    channels, code = sample_pack(anatomy, points_mm)
    return channels.at[:, : Channel.AIR + 1].set(shrink_cortex(channels, atrophy)), code


def head_maps(
    anatomy: PackedAnatomy, pose: Pose, atrophy: jax.Array, *, lattice: Grid, grid: Grid
) -> HeadMaps:
    """Sample the posed pack on the planning grid."""

    def plane(points: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        channels, code = sample_head(anatomy, points, atrophy)
        return channels, (code % 16).astype(jnp.int32), mni_of(anatomy, points)

    channels, region, mni = for_each_plane(pose, plane, lattice=lattice, grid=grid)
    return HeadMaps(
        channels.reshape(*grid.shape, -1), region.reshape(grid.shape), mni.reshape(*grid.shape, 3)
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
    # sums of planes first: one running sum in single precision over a million voxels would drift
    planes = jnp.cumsum(jnp.sum(weight, axis=(1, 2)))
    draw = jax.random.uniform(k_voxel, (2, count))
    x = jnp.searchsorted(planes, draw[0] * planes[-1], side="right")
    x = jnp.clip(x, 0, weight.shape[0] - 1)
    within = jnp.cumsum(weight.reshape(weight.shape[0], -1), axis=1)
    rest = jax.vmap(lambda row, u: jnp.searchsorted(row, u * row[-1], side="right"))(within[x], draw[1])
    rest = jnp.clip(rest, 0, within.shape[1] - 1)
    index = jnp.stack([x, rest // weight.shape[2], rest % weight.shape[2]], axis=1)
    index = index + jax.random.uniform(k_place, (count, 3), minval=-0.5, maxval=0.5)
    return jnp.asarray(grid.origin_mm) + index * jnp.asarray(grid.spacing_mm)


def interpolate(volume: jax.Array, grid: Grid, points_mm: jax.Array) -> jax.Array:
    """Linear interpolation of (X, Y, Z, C) at points (P, 3) -> (P, C); edge values beyond the grid."""
    return linear_at(volume, (points_mm - jnp.asarray(grid.origin_mm)) / jnp.asarray(grid.spacing_mm))


def gradient(volume: jax.Array) -> jax.Array:
    """Central differences (X, Y, Z) -> (X, Y, Z, 3), a voxel."""
    return jnp.stack(jnp.gradient(volume), axis=-1)


def in_regions(region: jax.Array, *regions: Region) -> jax.Array:
    """Boolean mask of the voxels that bear one of the labels."""
    return jnp.isin(region, jnp.asarray([int(r) for r in regions]))


def tissue_mask(channels: jax.Array) -> jax.Array:
    """Where gray and white matter fill at least four fifths: channels (..., C) -> bool (...)."""
    solid = channels[..., Channel.GRAY_MATTER] + channels[..., Channel.WHITE_MATTER]
    return solid >= 0.8
