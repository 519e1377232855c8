"""Truth on the acquired grid: microbleed instances, and what else may look like one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmb_jax.phantom.bodies import MAX_APPARENT_MM, Bodies
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.stamps import draw_labels, stamp_half_width
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.vessels import MAX_RADIUS_MM
from cmb_jax.phantom.walks import Vessels

MIN_TUBE_LABEL_MM = 0.6  # radius: a thinner vein still darkens the voxel it runs through
MAX_FOCAL_MM = 14.0  # diameter of the largest cavernoma
ARTEFACT = 0.12  # a voxel that an artefact darkens by more than this share of the brain's signal is labelled


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
    return bodies.radii_mm * (apparent_mm / 2 / bodies.mean_radius_mm)[:, None]


def vessel_labels(mimics: jax.Array, vessels: Vessels, widest: float, *, grid: Grid) -> jax.Array:
    """Vessels written over the mimics of the tissue, uint8 (X, Y, Z). `widest`: factor on their radii."""
    in_plane = max(grid.spacing_mm[:2]) / 2
    radius = jnp.maximum(vessels.radius_mm, max(MIN_TUBE_LABEL_MM, in_plane))
    # a whole disc in the nearest slice: one that shrank towards the slice's face would cut a vein in two
    radii = jnp.stack([radius, radius, jnp.full_like(radius, 1e3)], axis=1)
    half = stamp_half_width(MAX_RADIUS_MM * widest, (grid.spacing_mm[0], grid.spacing_mm[1], 1e3))
    label = jnp.where(vessels.valid, vessels.kind, 0)
    return draw_labels(mimics, grid, vessels.points_mm, radii, label, (half[0], half[1], 0))


def focal_labels(mimics: jax.Array, bodies: Bodies, apparent_mm: jax.Array, *, grid: Grid) -> jax.Array:
    """Calcifications and cavernomas, apparent size, written over the others, uint8 (X, Y, Z)."""
    return draw_labels(
        mimics,
        grid,
        bodies.centre_mm,
        apparent_radii(bodies, apparent_mm),
        jnp.where(bodies.valid, bodies.kind, 0),
        stamp_half_width(MAX_FOCAL_MM / 2 * 1.3, grid.spacing_mm),
    )


def artefact_labels(
    mimics: jax.Array, brain: jax.Array, free: jax.Array, ghost: jax.Array, ringing: jax.Array
) -> jax.Array:
    """Motion ghosts and Gibbs ringing where nothing else is, uint8 (X, Y, Z).

    ghost, ringing (X, Y, Z): how much darker each makes a voxel; brain, free (X, Y, Z) bool: solid tissue,
    and voxels without a microbleed.
    """
    at = brain & free & (mimics == 0)
    mimics = jnp.where(at & (ghost > ARTEFACT), int(MimicKind.MOTION_GHOST), mimics)
    at = at & (mimics == 0)
    return jnp.where(at & (ringing > ARTEFACT), int(MimicKind.GIBBS_RINGING), mimics).astype(jnp.uint8)
