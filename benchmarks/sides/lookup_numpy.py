"""Lookup of places in a region map as NumPy does it: all places of one sample point at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.lookup_jax import VOXEL_MM
from cmb_jax.anatomy.lookup import MIN_INSIDE_FRACTION, REACH_OFFSETS_MM, SPHERE_OFFSETS
from cmb_jax.anatomy.regions import NUM_REGIONS, ZONE_OF_REGION, Region

FLUID = (Region.VENTRICLE, Region.SULCAL_CSF)


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Votes of the sphere, then the nearest fluid and the nearest other zone; without the sinuses."""
    shape = inputs.triple(options["shape"])
    points, diameters = inputs.places(options["points"], tuple(VOXEL_MM * size for size in shape))
    region_map = inputs.regions(shape)
    return Prepared(
        run=lambda: look_up(points / np.float32(VOXEL_MM), diameters / np.float32(2 * VOXEL_MM), region_map),
        result=lambda place: float(place[0].sum() + 16 * place[1].sum() + 64 * place[2].sum()),
    )


def look_up(index: np.ndarray, radius: np.ndarray, region_map: np.ndarray) -> tuple[np.ndarray, ...]:
    """Region, side, keep, distance of fluid and of another zone (N,), from voxel positions and radii."""
    everyone = np.arange(len(index))
    votes = np.zeros((len(index), 4 * NUM_REGIONS), np.uint8)  # by code
    for offset in SPHERE_OFFSETS:
        votes[everyone, sample(region_map, index + radius[:, None] * offset)] += 1
    by_side = votes.reshape(len(index), 4, NUM_REGIONS)
    of_region = by_side.sum(axis=1)
    tissue = np.where(ZONE_OF_REGION > 0, of_region, 0)
    inside = tissue.sum(axis=1) / len(SPHERE_OFFSETS)
    other = np.where(ZONE_OF_REGION > 0, 0, of_region).argmax(axis=1)
    in_zone = np.stack([np.where(zone == ZONE_OF_REGION, tissue, 0) for zone in (1, 2, 3)])
    of_most = in_zone[in_zone.sum(axis=2).argmax(axis=0), everyone]  # the zone first
    region = np.where(inside > 0, of_most.argmax(axis=1), other)
    side = np.where(region == Region.OUTSIDE, 0, by_side[everyone, :, region].argmax(axis=1))
    zone = ZONE_OF_REGION[region]
    fluid_mm, border_mm = np.full((2, len(index)), np.inf, np.float32)
    for offset in REACH_OFFSETS_MM:
        near = sample(region_map, index + offset / np.float32(VOXEL_MM)) % NUM_REGIONS
        near_zone = ZONE_OF_REGION[near]
        distance = np.linalg.norm(offset)
        fluid_mm = np.where(np.isin(near, FLUID), np.minimum(fluid_mm, distance), fluid_mm)
        elsewhere = (near_zone != 0) & (near_zone != zone) & (zone != 0)
        border_mm = np.where(elsewhere, np.minimum(border_mm, distance), border_mm)
    return region, side, inside >= MIN_INSIDE_FRACTION, fluid_mm, border_mm


def sample(region_map: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Codes (N,) of the voxels nearest to voxel positions (N, 3); 0 off the grid."""
    voxel = np.floor(index + 0.5).astype(np.int64)
    inside = np.all((voxel >= 0) & (voxel < region_map.shape), axis=1)
    return np.where(inside, region_map[tuple(np.where(inside[:, None], voxel, 0).T)], 0)
