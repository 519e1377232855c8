"""A posed head on the grids of the image: tissue for the physics, labels for the truth, maps for planning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmb_jax.phantom.geometry import Grid, linear_at, widen_lattice
from cmb_jax.phantom.packed import PackedAnatomy
from cmb_jax.phantom.pose import Pose
from cmb_jax.phantom.tissue import HeadVolume


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
