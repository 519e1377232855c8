"""How dark an image is at stated centers: tells a wrong voxel convention, which no header can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REACH_VOXELS = 6
_MIN_CENTERS = 5  # fewer say nothing about a convention
_MIN_GAIN = 1.0  # standard deviations by which another reading must be darker


def darkness(data: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Local mean less the value at each center, over the local standard deviation.

    Args:
        data: (X, Y, Z) image on which microbleeds are dark.
        index: (n, 3) voxel indices of it; rounded.

    Returns:
        (n,) float64; the surroundings are the cube of 13 voxels. NaN outside the volume and in flat places.
    """
    result = np.full(len(index), np.nan)
    for row, center in enumerate(np.rint(index).astype(int)):
        if np.any(center < 0) or np.any(center >= data.shape):
            continue
        window = data[tuple(slice(max(0, c - REACH_VOXELS), c + REACH_VOXELS + 1) for c in center)]
        spread = float(window.std())
        if spread > 0:
            result[row] = (float(window.mean()) - float(data[tuple(center)])) / spread
    return result


def median(values: Sequence[float] | np.ndarray) -> float:
    """Median of what is a number; NaN if nothing is."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.median(numbers)) if len(numbers) else float("nan")


def convention_doubt(as_named: np.ndarray, counted_from_0: np.ndarray) -> str | None:
    """A line if the centers are clearly darker when the table is taken to count from 0, else None."""
    both = np.isfinite(as_named) & np.isfinite(counted_from_0)
    gain = median(counted_from_0) - median(as_named)
    if both.sum() < _MIN_CENTERS or not gain >= _MIN_GAIN:
        return None
    return (
        f"the image is {median(as_named):.1f} local standard deviations darker at the centers, but "
        f"{median(counted_from_0):.1f} when they are read 0-based: look at the contact sheet"
    )
