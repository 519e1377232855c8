"""From a scan to MNI space by the centers of its brain regions.

The affine takes the centers of the regions of a scan, left and right apart, to those of the head mni2009c
(MNI152NLin2009cAsym). No atlas is needed for it, only the table of centers beside this file, which
`tools/mni_accuracy.py --landmarks` writes from the anatomy pack.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode, region_of, side_of
from cmb_jax.io.tables import read_rows

SPACE = "MNI152NLin2009cAsym"
FEWEST = 20
"""Landmarks of 28; with fewer a map does not show the whole brain."""
LARGEST_RESIDUAL_MM = 8.0
"""Weighted root mean square; people differ by 2 to 4 mm."""
_VOLUME_RATIO = (0.35, 2.8)  # of a region to that of the template; beyond, it is cut or not what it is called
FILE = Path(__file__).with_name("mni_landmarks.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MniAffine:
    """The way from a scan to MNI space."""

    matrix: np.ndarray  # (4, 4) scan RAS mm -> MNI RAS mm
    landmarks: int
    residual_mm: float  # weighted root mean square over the landmarks

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (..., 3) in RAS mm of the scan -> MNI RAS mm."""
        return points_mm @ self.matrix[:3, :3].T + self.matrix[:3, 3]


Landmarks = dict[int, tuple[np.ndarray, float]]
"""Code of region and side: center (3,) in RAS mm, volume in mm3."""


def landmarks_of(code: np.ndarray, affine: np.ndarray) -> Landmarks:
    """Centers of all regions with a side in a map (X, Y, Z); sulcal CSF is not counted as a region."""
    counts = np.bincount(code.ravel(), minlength=256)
    named = [
        int(each)
        for each in np.flatnonzero(counts)
        if region_of(each) not in (Region.OUTSIDE, Region.SULCAL_CSF) and side_of(each) != Side.NONE
    ]
    centers = ndimage.center_of_mass(np.ones_like(code, np.uint8), code, named)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    return {
        each: (affine[:3, :3] @ np.array(center) + affine[:3, 3], float(counts[each]) * volume)
        for each, center in zip(named, centers, strict=True)
    }


def fit_mni(region_map: RegionMap) -> MniAffine | None:
    """The affine by least squares, each center weighted with the square root of its region's volume.

    None where the map is not trusted, too few regions are whole, or the centers do not fit.
    """
    if not region_map.trusted:
        return None
    there, template = landmarks_of(region_map.code, region_map.affine), template_landmarks()
    low, high = _VOLUME_RATIO
    used = [each for each in template if each in there and low < there[each][1] / template[each][1] < high]
    if len(used) < FEWEST:
        return None
    source = np.array([[*there[each][0], 1.0] for each in used])
    target = np.array([template[each][0] for each in used])
    weight = np.sqrt([template[each][1] for each in used])
    root = np.sqrt(weight)[:, None]
    solved = np.linalg.lstsq(source * root, target * root, rcond=None)[0]
    squares = np.sum((source @ solved - target) ** 2, axis=1)
    residual = float(np.sqrt(np.sum(weight * squares) / np.sum(weight)))
    matrix = np.eye(4)
    matrix[:3] = solved.T
    if residual > LARGEST_RESIDUAL_MM or np.linalg.det(matrix[:3, :3]) <= 0:
        return None
    return MniAffine(matrix=matrix, landmarks=len(used), residual_mm=residual)


@functools.cache
def template_landmarks() -> Landmarks:
    """Those of the head mni2009c."""
    return {
        int(encode(np.asarray(Region[region.upper()]), np.asarray(Side[side.upper()]))): (
            np.array([float(x), float(y), float(z)]),
            float(volume),
        )
        for region, side, x, y, z, volume in read_rows(FILE, ",")[1:]
    }


def landmarks_csv(landmarks: Landmarks) -> str:
    """The table that `template_landmarks` reads."""
    lines = ["region,side,x_mm,y_mm,z_mm,volume_mm3"]
    for each, (center, volume) in sorted(landmarks.items()):
        region, side = Region(region_of(each)).name.lower(), Side(side_of(each)).name.lower()
        lines.append(f"{region},{side},{center[0]:.2f},{center[1]:.2f},{center[2]:.2f},{volume:.0f}")
    return "\n".join(lines) + "\n"
