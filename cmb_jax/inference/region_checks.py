"""Cleaning of the region network's labels, and the checks that decide whether a map is trusted.

All arrays are (Z, Y, X) on the region grid (2 mm, x to the right).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Side, Zone
from cmb_jax.data.region_grid import GRID_MM

BRAIN_CM3 = (700.0, 2400.0)  # intracranial volumes of adults, with room to spare
SMALLEST_ZONE_CM3 = {Zone.LOBAR: 300.0, Zone.DEEP: 40.0, Zone.INFRATENTORIAL: 50.0}
SIDE_SHARE = (0.4, 0.6)  # of the brain that may lie on the right
LARGEST_CUT_CM2 = 50.0  # a centimetre of the vertex or of the cerebellum may be missing

# Headers that err turn a head by half a turn or mirror it: axes (Z, Y, X) to flip, and what the head then is.
TURNS: dict[str, tuple[int, ...]] = {"upside down": (0,), "back to front": (1,), "turned over": (0, 1)}
# How much surer of an image the network must be than of the same turned: of what is no head it is not.
LEAST_MARGIN = 0.006

_VOXEL_CM3 = GRID_MM**3 / 1000
_FACE_CM2 = GRID_MM**2 / 100
_FACES = (("bottom", "top"), ("back", "front"), ("left", "right"))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected part of a mask (ties: the first); all False when the mask is empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask, bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def clean_labels(
    region: np.ndarray, inner: np.ndarray, side_logit: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One brain without holes, and one connected half for each side.

    Args:
        region: region with the highest logit.
        inner: region with the highest logit, OUTSIDE left out; fills the holes.
        side_logit: positive = right.
        view: bool, inside the field of view.

    Returns:
        region and side, int arrays; both 0 outside the brain.
    """
    found = (region != Region.OUTSIDE) & view
    # Opening cuts thin bridges to the eyes and the neck; what touches the opened brain comes back.
    core = largest_component(ndimage.binary_opening(found))
    brain = ndimage.binary_dilation(core) & found
    brain = ndimage.binary_fill_holes(brain) & view
    cleaned = np.where(brain, np.where(region == Region.OUTSIDE, inner, region), Region.OUTSIDE)
    return cleaned, split_sides(side_logit, brain)


def split_sides(side_logit: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Side of every brain voxel: the sign of the smoothed logit, islands given to the other side."""
    weight = ndimage.gaussian_filter(brain.astype(np.float32), 2.0)
    smooth = ndimage.gaussian_filter(np.where(brain, np.clip(side_logit, -8, 8), 0.0).astype(np.float32), 2.0)
    right = brain & (smooth / np.maximum(weight, 1e-6) > 0)
    left = brain & ~right
    right_island = right & ~largest_component(right)
    left_island = left & ~largest_component(left)
    right = (right & ~right_island) | left_island
    return np.where(right, Side.RIGHT, np.where(brain, Side.LEFT, Side.NONE))


def trust_messages(region: np.ndarray, side: np.ndarray, view: np.ndarray) -> tuple[str, ...]:
    """Why the zones of this map should not be reported, one line each; empty when they may be.

    Args:
        region: cleaned regions.
        side: cleaned sides.
        view: bool, inside the field of view (a box).
    """
    brain = region != Region.OUTSIDE
    volume = float(brain.sum() * _VOXEL_CM3)
    messages = []
    if not BRAIN_CM3[0] <= volume <= BRAIN_CM3[1]:
        messages.append(
            f"The brain found measures {volume:.0f} cm3; "
            f"{BRAIN_CM3[0]:.0f} to {BRAIN_CM3[1]:.0f} are plausible."
        )
    for face, area in _cut_areas(brain, view).items():
        if area > LARGEST_CUT_CM2:
            messages.append(
                f"The field of view is partial: it cuts the brain at the {face} "
                f"({area:.0f} cm2 lie on its border)."
            )
    for zone, smallest in SMALLEST_ZONE_CM3.items():
        size = float((ZONE_OF_REGION[region] == zone).sum() * _VOXEL_CM3)
        if size < smallest:
            messages.append(
                f"Only {size:.0f} cm3 of the {zone.name.lower()} zone were found; "
                f"at least {smallest:.0f} are expected."
            )
    if volume > 0:
        share = float((side == Side.RIGHT).sum() / brain.sum())
        if not SIDE_SHARE[0] <= share <= SIDE_SHARE[1]:
            messages.append(
                f"{100 * share:.0f} % of the brain were labelled right; the two sides should be about equal."
            )
        elif _mean_x(side == Side.RIGHT) < _mean_x(side == Side.LEFT):
            messages.append("Left and right were found on the wrong sides of each other.")
    return tuple(messages)


def doubt_messages(confidence: float, turned: Mapping[str, float]) -> tuple[str, ...]:
    """Why an image or its header is doubted, one line each; empty when neither is.

    Args:
        confidence: of the network in the brain that it found, 0 to 1.
        turned: the same for the image turned as in `TURNS`.
    """
    best = max(turned, key=lambda name: turned[name])
    margin = confidence - turned[best]
    if margin >= LEAST_MARGIN:
        return ()
    if margin <= -LEAST_MARGIN:
        return (f"The head seems to be {best}: check the orientation in the image's header.",)
    return ("This does not look like a head: the region network knows it as well turned as it is.",)


def _cut_areas(brain: np.ndarray, view: np.ndarray) -> dict[str, float]:
    """Area (cm2) of the brain on each face of the field of view."""
    areas = {}
    for axis, names in enumerate(_FACES):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(view.any(axis=others))
        if inside.size:
            for name, index in zip(names, inside[[0, -1]], strict=True):
                areas[name] = float(np.take(brain, index, axis=axis).sum() * _FACE_CM2)
    return areas


def _mean_x(mask: np.ndarray) -> float:
    return float(np.nonzero(mask)[2].mean())


def intensity_mask(image: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Tissue by Otsu's threshold (1979) on the smoothed image; where there is no air, all that is not dark.

    Args:
        image: intensities, 0 outside the field of view.
        view: bool, inside the field of view.
    """
    weight = ndimage.gaussian_filter(view.astype(np.float32), 1.0)
    smooth = ndimage.gaussian_filter(np.where(view, image, 0).astype(np.float32), 1.0) / np.maximum(
        weight, 1e-6
    )
    values = smooth[view]
    if values.size == 0 or values.max() <= 0:
        return np.zeros_like(view)
    counts, edges = np.histogram(values, 128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    total, first = below[-1], np.cumsum(counts * centres)
    above = total - below
    mean_below = first / np.maximum(below, 1)
    mean_above = (first[-1] - first) / np.maximum(above, 1)
    best = int(np.argmax(below * above * (mean_above - mean_below) ** 2))
    # Two classes that differ by less are two tissues, or tissue and veins, not tissue and air.
    has_background = mean_below[best] < 0.35 * mean_above[best]
    threshold = edges[best + 1] if has_background else 0.25 * float(np.median(values))
    return ndimage.binary_fill_holes(largest_component((smooth > threshold) & view)) & view
