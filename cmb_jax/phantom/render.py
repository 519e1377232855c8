"""Vessels laid into the tissue that they displace, and the field of a head or a part of one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cmb_jax.phantom.contrast import BRAIN_SIGNAL, Blood
from cmb_jax.phantom.field import convolve_dipole, smooth_size
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.posing import TissueMaps
from cmb_jax.phantom.stamps import draw_tubes, stamp_half_width
from cmb_jax.phantom.tissue import CHI_AIR
from cmb_jax.phantom.vessels import MAX_RADIUS_MM, MAX_THIN_MM
from cmb_jax.phantom.walks import Vessels

PADDING = 1.2  # of the field's grid: what wraps round is smooth and far away
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

    radius = jnp.maximum(vessels.radius_mm, 1e-3)
    parts = (chunked(vessels.points_mm), jnp.maximum(chunked(radius), 1e-3), chunked(amount))
    return jax.lax.scan(add, volume, parts)[0]


def add_vessels(
    maps: TissueMaps,
    vessels: tuple[Vessels, Vessels],
    venous: Blood,
    widest: float,
    *,
    grid: Grid,
) -> TissueMaps:
    """Tissue with the vessels that lie in it.

    vessels: thin and others; venous: the blood of veins; widest: largest factor on the vessels' radii.
    """
    empty = jnp.zeros(grid.shape, jnp.float32)
    blood, flowing = maps.sinus * venous.chi_ppm, empty
    for group, radius in zip(vessels, (MAX_THIN_MM, MAX_RADIUS_MM), strict=True):
        amount = jnp.where(group.valid, group.chi_ppm, 0.0)
        blood = _draw_vessels(blood, grid, group, amount, radius * widest)
    arterial = vessels[1]
    present = jnp.where(arterial.valid & (arterial.chi_ppm == 0), 1.0, 0.0)
    flowing = _draw_vessels(flowing, grid, arterial, present, MAX_RADIUS_MM * widest)
    artery_signal = jnp.max(jnp.where(present > 0, arterial.signal, 0.0))
    filled = jnp.clip(blood / venous.chi_ppm, 0.0, 1.0)

    chi = maps.chi_ppm * (1 - filled) + blood
    r2_star = maps.r2_star * (1 - filled) + filled * venous.r2_star
    signal = maps.signal * (1 - filled) + venous.signal * filled
    signal = signal * (1 - flowing) + BRAIN_SIGNAL * artery_signal * flowing
    return dataclasses.replace(maps, chi_ppm=chi, r2_star=r2_star, signal=signal)


def part_field(chi_ppm: jax.Array, b0_direction: jax.Array, *, grid: Grid) -> jax.Array:
    """Field in ppm of a part of a head; beyond it all is soft tissue."""
    x, y, z = (smooth_size(n * PADDING) for n in grid.shape)
    return convolve_dipole(chi_ppm, b0_direction, spacing_mm=grid.spacing_mm, padded=(x, y, z))


def head_field(chi_ppm: jax.Array, b0_direction: jax.Array, *, grid: Grid) -> jax.Array:
    """Field in ppm. Air all round; below the grid the neck goes on, so that it does not end in a pole."""
    x, y, z = grid.shape
    below = smooth_size(z * PADDING) - z
    chi = jnp.pad(chi_ppm - CHI_AIR, ((0, 0), (0, 0), (below, 0)), mode="edge")
    padded = (smooth_size(x * PADDING), smooth_size(y * PADDING), z + below)
    field = convolve_dipole(chi, b0_direction, spacing_mm=grid.spacing_mm, padded=padded)
    return field[:, :, below:]
