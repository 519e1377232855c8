"""Truth on the acquired grid: regions, mimics, microbleed instances."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.geometry import CODE_CHANNEL, Grid, PackedAnatomy, Pose, nearest_pack, widen_lattice
from cmb_jax.phantom.lesions import MAX_APPARENT_MM, Bodies
from cmb_jax.phantom.planning import HeadMaps, blur
from cmb_jax.phantom.stamps import draw_labels, stamp_half_width
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.veins import MAX_RADIUS_MM, Veins

_IRON_CHANNELS = (
    Channel.PUTAMEN,
    Channel.PALLIDUM,
    Channel.RED_NUCLEUS,
    Channel.SUBSTANTIA_NIGRA,
    Channel.DENTATE,
)
_AIR_REACH_MM = 7.0
MIN_TUBE_LABEL_MM = 0.6  # radius: a thinner vein still darkens the voxel it runs through


def _near_air(head: HeadMaps, planning: Grid) -> jax.Array:
    """(X, Y, Z) on the planning grid: how much air lies within a few mm, beyond scalp and skull."""
    air = (head.channels[..., Channel.AIR] > 0.5).astype(jnp.float32)
    return blur(air, _AIR_REACH_MM / 2 / planning.spacing_mm[0])


@functools.partial(jax.jit, static_argnames=("lattice", "planning", "grid", "slabs"))
def tissue_labels(
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    *,
    lattice: Grid,
    planning: Grid,
    grid: Grid,
    slabs: int,
) -> tuple[jax.Array, jax.Array]:
    """Region codes and the mimics that tissue makes (sinuses, nuclei, air borders), uint8 (X, Y, Z) each."""
    displacement, wx = widen_lattice(pose.displacement, lattice, grid)
    air, ax = widen_lattice(_near_air(head, planning)[..., None], planning, grid)
    x_mm, y_mm, z_mm = (jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3))
    y_all, z_all = (a.reshape(-1) for a in jnp.meshgrid(y_mm, z_mm, indexing="ij"))

    def slab(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, weights, air_weights = part
        moved = jnp.tensordot(weights, displacement, axes=1).reshape(len(x), -1, 3)
        near_air = jnp.tensordot(air_weights, air, axes=1).reshape(-1)
        plane = jnp.stack([jnp.zeros_like(y_all), y_all, z_all], axis=1) @ pose.linear.T + pose.offset
        points = (x[:, None, None] * pose.linear[:, 0] + plane + moved).reshape(-1, 3)
        values = nearest_pack(anatomy, points)
        code = values[:, CODE_CHANNEL].astype(jnp.uint8)
        iron = jnp.sum(values[:, jnp.array(_IRON_CHANNELS)], axis=1) > 127
        sinus = values[:, Channel.VESSEL_PRIOR] > 127
        brain = region_of(code) != Region.OUTSIDE
        mimic = jnp.where(brain & (near_air > 0.02), int(MimicKind.AIR_TISSUE_BORDER), 0)
        mimic = jnp.where(iron, int(MimicKind.IRON_NUCLEUS), mimic)
        return code, jnp.where(sinus, int(MimicKind.SINUS), mimic).astype(jnp.uint8)

    parts = (x_mm.reshape(slabs, -1), wx.reshape(slabs, -1, wx.shape[1]), ax.reshape(slabs, -1, ax.shape[1]))
    code, mimic = (m.reshape(grid.shape) for m in jax.lax.map(slab, parts))
    return code, mimic


@functools.partial(jax.jit, static_argnames=("grid",), donate_argnums=(0,))
def mimic_labels(
    mimics: jax.Array,
    veins: Veins,
    calcifications: Bodies,
    calcification_apparent_mm: jax.Array,
    *,
    grid: Grid,
) -> jax.Array:
    """Veins and calcifications (apparent size) written over the mimics of the tissue, uint8 (X, Y, Z)."""
    in_plane = max(grid.spacing_mm[:2]) / 2
    radius = jnp.maximum(veins.radius_mm, max(MIN_TUBE_LABEL_MM, in_plane))
    radii = jnp.stack([radius, radius, jnp.full_like(radius, grid.spacing_mm[2] / 2)], axis=1)
    kind = jnp.where(veins.chi_ppm > 0, veins.kind, 0)
    half = stamp_half_width(MAX_RADIUS_MM, (grid.spacing_mm[0], grid.spacing_mm[1], 1e3))
    mimics = draw_labels(mimics, grid, veins.points_mm, radii, kind, (half[0], half[1], 0))
    return draw_labels(
        mimics,
        grid,
        calcifications.centre_mm,
        apparent_radii(calcifications, calcification_apparent_mm),
        jnp.where(calcifications.valid, calcifications.kind, 0),
        stamp_half_width(MAX_APPARENT_MM / 2 * 1.3, grid.spacing_mm),
    )


@functools.partial(jax.jit, static_argnames=("grid",))
def instance_labels(bleeds: Bodies, apparent_mm: jax.Array, ids: jax.Array, *, grid: Grid) -> jax.Array:
    """Apparent extent of each microbleed as its id, uint16 (X, Y, Z); id 0 leaves one out."""
    return draw_labels(
        jnp.zeros(grid.shape, jnp.uint16),
        grid,
        bleeds.centre_mm,
        apparent_radii(bleeds, apparent_mm),
        ids,
        stamp_half_width(MAX_APPARENT_MM / 2 * 1.3, grid.spacing_mm),
    )


def apparent_radii(bodies: Bodies, apparent_mm: jax.Array) -> jax.Array:
    """(N, 3) the bodies' radii scaled so that their geometric mean is half the apparent diameter (N,)."""
    mean = jnp.prod(bodies.radii_mm, axis=1) ** (1 / 3)
    return bodies.radii_mm * (apparent_mm / 2 / mean)[:, None]
