"""Spots of a finished scan that look like microbleeds and are none: how hard a subject is for a detector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.types import MimicKind

SPOT_MM = 5.0  # edge of the cube in which a spot is the darkest voxel
SURROUNDINGS_MM = 9.0  # edge of the cube that it is compared with
DARKER = 0.7  # a spot is darker than this share of its surroundings
CLEARER = 5.0  # and stands out by so many standard deviations of the texture and noise of the brain
_SMOOTHING_MM = 0.5  # sigma, against noise
NAMED_MM = 2.0  # a mimic's label within this distance gives the spot its name
_KEEP_OFF_MM = 4.0  # from microbleeds


def mimic_candidates(
    swi: np.ndarray,
    spacing_mm: tuple[float, float, float],
    region_code: np.ndarray,
    cmb_labels: np.ndarray,
    mimic_labels: np.ndarray,
) -> Mapping[MimicKind, int]:
    """Dark spots on mimics, by kind; `MimicKind.NONE` counts those on nothing that is labelled.

    A spot is a voxel of the brain, sulci included, that is the darkest within a cube of `SPOT_MM`, has less
    than `DARKER` of the mean signal of the brain in the cube of `SURROUNDINGS_MM` around that one, stands out
    by `CLEARER` standard deviations (robust: median absolute deviation from the local mean), and lies more
    than 4 mm from every microbleed. All arrays (X, Y, Z) on one grid.
    """
    spacing = np.array(spacing_mm)

    def voxels(edge_mm: float) -> tuple[int, ...]:
        return tuple(2 * int(n) + 1 for n in np.floor(edge_mm / 2 / spacing))

    brain = (region_of(region_code) > Region.OUTSIDE) & (region_of(region_code) != Region.VENTRICLE)
    image = swi.astype(np.float32)
    smooth = ndimage.gaussian_filter(image, _SMOOTHING_MM / spacing)
    darkest = smooth == ndimage.minimum_filter(smooth, voxels(SPOT_MM))
    near, far = voxels(SPOT_MM), voxels(SURROUNDINGS_MM)
    weight = brain.astype(np.float32)
    total = [ndimage.uniform_filter(image * weight, n) * np.prod(n) for n in (far, near)]
    count = [ndimage.uniform_filter(weight, n) * np.prod(n) for n in (far, near)]
    around = (total[0] - total[1]) / np.maximum(count[0] - count[1], 1.0)
    spread = 1.4826 * np.median(np.abs(smooth - around)[brain]) if brain.any() else 0.0
    dark = (smooth < DARKER * around) & (around - smooth > CLEARER * spread)
    spot = darkest & brain & dark & (count[0] - count[1] > 0.3 * np.prod(far))
    index = np.argwhere(spot)
    if (cmb_labels > 0).any():
        away = ndimage.distance_transform_edt(cmb_labels == 0, sampling=spacing_mm)
        index = index[away[tuple(index.T)] > _KEEP_OFF_MM]
    names = np.zeros(len(index), int)
    if (mimic_labels > 0).any():
        away, nearest = ndimage.distance_transform_edt(
            mimic_labels == 0, sampling=spacing_mm, return_indices=True
        )
        at = tuple(index.T)
        kinds = mimic_labels[tuple(axis[at] for axis in nearest)]
        names = np.where(away[at] <= NAMED_MM, kinds, 0)
    return {MimicKind(k): int(n) for k, n in zip(*np.unique(names, return_counts=True), strict=True)}
