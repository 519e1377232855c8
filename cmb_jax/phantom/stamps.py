"""Small soft-edged bodies drawn into a volume by scattering, all at once and with static shapes."""

from __future__ import annotations

import numpy as np
from jax import Array
from jax import numpy as jnp

from cmb_jax.phantom.geometry import Grid


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


def _normalised_distance(vector_mm: Array, radii_mm: Array) -> Array:
    """(N, K) distance from the centre over the ellipsoid's radius in that direction."""
    return jnp.sqrt(jnp.sum((vector_mm / radii_mm[:, None]) ** 2, axis=-1) + 1e-12)


def draw_balls(
    volume: Array, grid: Grid, points_mm: Array, radii_mm: Array, amplitude: Array, half: tuple[int, int, int]
) -> Array:
    """Ellipsoids with an edge one voxel soft, by maximum. Their integral is amplitude * 4/3 pi a b c.

    points_mm (N, 3) image frame, radii_mm (N, 3), amplitude (N,) >= 0 (0 draws nothing).
    """
    edge = float(np.mean(grid.spacing_mm))
    index, vector = _window(grid, points_mm, half)
    a = jnp.mean(radii_mm, axis=1)
    fraction = jnp.clip(0.5 - (_normalised_distance(vector, radii_mm) - 1.0) * a[:, None] / edge, 0.0, 1.0)
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
    inside = _normalised_distance(vector, radii_mm) <= 1.0
    nearest = jnp.asarray(np.all(_offsets(half) == 0, axis=1))
    value = jnp.where(inside | nearest, label[:, None], 0).astype(volume.dtype)
    return _scatter_max(volume, index, value)
