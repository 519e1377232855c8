"""Bodies and vessels drawn into volumes: tissue that they displace, field, and truth labels.

Small soft-edged bodies are drawn by scattering, all at once and with static shapes.
"""

import dataclasses

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.lesions import MAX_APPARENT_MM, Bodies
from cmb_jax.phantom.settings import TIERS
from cmb_jax.phantom.tissue import BRAIN_SIGNAL, Blood, TissueMaps
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.vessels import MAX_RADIUS_MM, MAX_THIN_MM, Vessels


def stamp_half_width(radius_mm: float, spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Half width in voxels of a stamp that holds a body of this radius and its soft edge."""
    x, y, z = (int(np.ceil(radius_mm / h + 0.5)) for h in spacing_mm)
    return (x, y, z)


def _offsets(half: tuple[int, int, int]) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij")
    return np.stack([a.reshape(-1) for a in axes], axis=1)


def _window(grid: Grid, points_mm: Array, half: tuple[int, int, int]) -> tuple[Array, Array]:
    """Voxels around each point: indices (N, K, 3) and vectors from the point in mm (N, K, 3)."""
    spacing, origin = jnp.asarray(grid.spacing_mm), jnp.asarray(grid.origin_mm)
    position = (points_mm - origin) / spacing
    index = jnp.round(position).astype(jnp.int32)[:, None] + jnp.asarray(_offsets(half), jnp.int32)
    return index, (index - position[:, None]) * spacing


def _scatter_max(volume: Array, index: Array, value: Array) -> Array:
    flat = index.reshape(-1, 3)
    inside = jnp.all(flat >= 0, axis=1)  # negative indices would wrap; too large ones are dropped
    x = jnp.where(inside, flat[:, 0], volume.shape[0])
    return volume.at[x, flat[:, 1], flat[:, 2]].max(value.reshape(-1), mode="drop")


def _normalized_distance(vector_mm: Array, radii_mm: Array) -> Array:
    """(N, K) distance from the center over the ellipsoid's radius in that direction."""
    return jnp.sqrt(jnp.sum((vector_mm / radii_mm[:, None]) ** 2, axis=-1) + 1e-12)


def draw_balls(
    volume: Array, grid: Grid, points_mm: Array, radii_mm: Array, amplitude: Array, half: tuple[int, int, int]
) -> Array:
    """Ellipsoids with an edge one voxel soft, by maximum. Their integral is amplitude * 4/3 pi a b c.

    points_mm (N, 3) image frame, radii_mm (N, 3), amplitude (N,) >= 0 (0 draws nothing).
    """
    # A soft edge changes the volume that is drawn: much for a body smaller than a voxel. The amplitude makes
    # up for it, so that the dipole moment, and with it the field outside, is that of the body.
    edge = float(np.mean(grid.spacing_mm))
    index, vector = _window(grid, points_mm, half)
    a = jnp.mean(radii_mm, axis=1)
    fraction = jnp.clip(0.5 - (_normalized_distance(vector, radii_mm) - 1.0) * a[:, None] / edge, 0.0, 1.0)
    large = a**2 / (a**2 + edge**2 / 4)  # volume of a ball over that of the soft one
    small = 4 * a**3 * edge / (a + edge / 2) ** 4
    return _scatter_max(
        volume, index, fraction * (amplitude * jnp.where(a > edge / 2, large, small))[:, None]
    )


def draw_tubes(
    volume: Array,
    grid: Grid,
    points_mm: Array,
    radius_mm: Array,
    amplitude: Array,
    half: tuple[int, int, int],
) -> Array:
    """Tubes as strings of overlapping soft balls, by maximum. Their integral is amplitude * pi a^2 a length.

    points_mm (N, 3) image frame, radius_mm (N,), amplitude (N,) >= 0 (0 draws nothing).
    """
    edge = float(np.mean(grid.spacing_mm))
    index, vector = _window(grid, points_mm, half)
    distance = jnp.sqrt(jnp.sum(vector**2, axis=-1))
    fraction = jnp.clip(0.5 - (distance - radius_mm[:, None]) / edge, 0.0, 1.0)
    a = radius_mm
    large = a**2 / (a**2 + edge**2 / 12)  # cross-section of a tube over that of the soft one
    small = 3 * a**2 * edge / (a + edge / 2) ** 3
    return _scatter_max(
        volume, index, fraction * (amplitude * jnp.where(a > edge / 2, large, small))[:, None]
    )


def draw_labels(
    volume: Array, grid: Grid, points_mm: Array, radii_mm: Array, label: Array, half: tuple[int, int, int]
) -> Array:
    """Hard-edged ellipsoids of integer labels, by maximum; each covers at least its nearest voxel.

    radii_mm (N, 3); label (N,) of the volume's type, 0 draws nothing.
    """
    index, vector = _window(grid, points_mm, half)
    inside = _normalized_distance(vector, radii_mm) <= 1.0
    # a body between voxel centers would have no voxel, and a truth without voxels cannot be found
    nearest = jnp.asarray(np.all(_offsets(half) == 0, axis=1))
    value = jnp.where(inside | nearest, label[:, None], 0).astype(volume.dtype)
    return _scatter_max(volume, index, value)


_WIDEST = max(tier.vein_radius for tier in TIERS.values())  # factor on the vessels' radii
_CHUNK = 8192  # points of a vessel drawn at a time, so that their stamps stay in the cache


def _draw_vessels(
    volume: jax.Array, grid: Grid, vessels: Vessels, amount: jax.Array, radius_mm: float
) -> jax.Array:
    """Tubes of `amount` (N,), in chunks."""
    half = stamp_half_width(radius_mm, grid.spacing_mm)
    count = -(-amount.shape[0] // _CHUNK)

    def chunked(array: jax.Array) -> jax.Array:
        pad = [(0, count * _CHUNK - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, pad).reshape(count, _CHUNK, *array.shape[1:])

    def add(drawn: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        points, radius, amplitude = part
        return draw_tubes(drawn, grid, points, radius, amplitude, half), None

    radius = jnp.maximum(chunked(vessels.radius_mm), 1e-3)
    parts = (chunked(vessels.points_mm), radius, chunked(amount))
    return jax.lax.scan(add, volume, parts)[0]


def add_vessels(
    maps: TissueMaps, vessels: tuple[Vessels, Vessels], venous: Blood, *, grid: Grid
) -> TissueMaps:
    """Tissue with the vessels, thin and others, that lie in it; venous: the blood of veins."""
    empty = jnp.zeros(grid.shape, jnp.float32)
    # Vessels displace tissue. How much of a voxel they fill follows from the susceptibility of their blood,
    # which is drawn first; arteries have none of it, so their share is drawn by itself.
    blood, flowing = maps.sinus * venous.chi_ppm, empty
    for group, radius in zip(vessels, (MAX_THIN_MM, MAX_RADIUS_MM), strict=True):
        amount = jnp.where(group.valid, group.chi_ppm, 0.0)
        blood = _draw_vessels(blood, grid, group, amount, radius * _WIDEST)
    arterial = vessels[1]
    present = jnp.where(arterial.valid & (arterial.chi_ppm == 0), 1.0, 0.0)
    flowing = _draw_vessels(flowing, grid, arterial, present, MAX_RADIUS_MM * _WIDEST)
    artery_signal = jnp.max(jnp.where(present > 0, arterial.signal, 0.0))
    filled = jnp.clip(blood / venous.chi_ppm, 0.0, 1.0)

    chi = maps.chi_ppm * (1 - filled) + blood
    r2_star = maps.r2_star * (1 - filled) + filled * venous.r2_star
    signal = maps.signal * (1 - filled) + venous.signal * filled
    signal = signal * (1 - flowing) + BRAIN_SIGNAL * artery_signal * flowing
    return dataclasses.replace(maps, chi_ppm=chi, r2_star=r2_star, signal=signal)


MIN_TUBE_LABEL_MM = 0.6  # radius: a thinner vein still darkens the voxel it runs through
MAX_FOCAL_MM = 14.0  # diameter of the largest cavernoma
ARTIFACT = 0.12  # a voxel that an artifact darkens by more than this share of the brain's signal is labeled


def instance_labels(bleeds: Bodies, apparent_mm: jax.Array, ids: jax.Array, *, grid: Grid) -> jax.Array:
    """Apparent extent of each microbleed as its id, uint16 (X, Y, Z); id 0 leaves one out."""
    return draw_labels(
        jnp.zeros(grid.shape, jnp.uint16),
        grid,
        bleeds.center_mm,
        apparent_radii(bleeds, apparent_mm),
        ids,
        stamp_half_width(MAX_APPARENT_MM / 2 * 1.3, grid.spacing_mm),
    )


def apparent_radii(bodies: Bodies, apparent_mm: jax.Array) -> jax.Array:
    """(N, 3) the bodies' radii scaled so that their geometric mean is half the apparent diameter (N,)."""
    return bodies.radii_mm * (apparent_mm / 2 / bodies.mean_radius_mm)[:, None]


def vessel_labels(mimics: jax.Array, vessels: Vessels, *, grid: Grid) -> jax.Array:
    """Vessels written over the mimics of the tissue, uint8 (X, Y, Z)."""
    in_plane = max(grid.spacing_mm[:2]) / 2
    radius = jnp.maximum(vessels.radius_mm, max(MIN_TUBE_LABEL_MM, in_plane))
    # a whole disc in the nearest slice: one that shrank toward the slice's face would cut a vein in two
    radii = jnp.stack([radius, radius, jnp.full_like(radius, 1e3)], axis=1)
    half = stamp_half_width(MAX_RADIUS_MM * _WIDEST, (grid.spacing_mm[0], grid.spacing_mm[1], 1e3))
    label = jnp.where(vessels.valid, vessels.kind, 0)
    return draw_labels(mimics, grid, vessels.points_mm, radii, label, (half[0], half[1], 0))


def focal_labels(mimics: jax.Array, bodies: Bodies, apparent_mm: jax.Array, *, grid: Grid) -> jax.Array:
    """Calcifications and cavernomas, apparent size, written over the others, uint8 (X, Y, Z)."""
    return draw_labels(
        mimics,
        grid,
        bodies.center_mm,
        apparent_radii(bodies, apparent_mm),
        jnp.where(bodies.valid, bodies.kind, 0),
        stamp_half_width(MAX_FOCAL_MM / 2 * 1.3, grid.spacing_mm),
    )


def artifact_labels(
    mimics: jax.Array, brain: jax.Array, free: jax.Array, ghost: jax.Array, ringing: jax.Array
) -> jax.Array:
    """Motion ghosts and Gibbs ringing where nothing else is, uint8 (X, Y, Z).

    ghost, ringing (X, Y, Z): how much darker each makes a voxel; brain, free (X, Y, Z) bool: solid tissue,
    and voxels without a microbleed.
    """
    at = brain & free & (mimics == 0)
    mimics = jnp.where(at & (ghost > ARTIFACT), int(MimicKind.MOTION_GHOST), mimics)
    at = at & (mimics == 0)
    return jnp.where(at & (ringing > ARTIFACT), int(MimicKind.GIBBS_RINGING), mimics).astype(jnp.uint8)
