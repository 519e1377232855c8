"""Windows over a volume too large for one pass; the result does not depend on how it was cut.

Every window reaches beyond its core by the network's receptive field, or ends where the volume ends, so that
each core cell is computed from the very voxels that a pass over the whole volume would use.

Lengths are rounded up to buckets, so that the network is compiled for few shapes however many the scans are.
Near the far faces the network sees the padding; how much there is depends on the volume's shape alone, so
that every way to predict a scan gives the same.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

Triple = tuple[int, int, int]

BUCKET_CELLS = 4
"""Cells of the coarsest level from one bucket to the next: 32 mm for a total stride of 8 mm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """One pass of the network, in voxels (z, y, x) of the padded working grid."""

    start: Triple  # first voxel read
    core_low: Triple  # first voxel whose result counts
    core_high: Triple  # one past the last voxel whose result counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Windows of one common shape whose cores partition the padded volume."""

    padded_shape: Triple  # multiple of `BUCKET_CELLS` total strides
    window_shape: Triple
    windows: tuple[Window, ...]


def round_up(size: int, multiple: int) -> int:
    """Smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def _axis_windows(size: int, window: int, halo: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, core low, core high) of the windows along one axis."""
    if size <= window:
        return [(0, 0, size)]
    core = window - 2 * halo
    count = -(-(size - 2 * halo) // core)
    # windows spread evenly on the stride's lattice; the first and last touch the volume's faces
    starts = [
        min(round_up(round(i * (size - window) / (count - 1)), stride), size - window) for i in range(count)
    ]
    edges = [0]
    for left, right in itertools.pairwise(starts):
        # the cut lies between the right's first exact voxel and the left's last one
        first, last = right + halo, left + window - halo
        edges.append((first + last) // 2 // stride * stride if last - first >= stride else first)
    edges.append(size)
    return [(start, edges[i], edges[i + 1]) for i, start in enumerate(starts)]


def plan_tiles(shape: Triple, tile_shape: Triple, halo: Triple, stride: Triple) -> TilePlan:
    """Cover a volume of `shape` voxels by windows of at most `tile_shape`.

    A volume that fits a tile is one window even where its padding does not.

    Args:
      shape: volume (z, y, x) in voxels.
      tile_shape: largest window, halo included.
      halo: reach of the network in voxels, a multiple of `stride`.
      stride: voxels per cell of the network's coarsest level.

    Raises:
      ValueError: if a volume needs cutting and `tile_shape` is not larger than two halos and one stride.
    """
    padded, window_shape, axes = [], [], []
    for size, tile, reach, step in zip(shape, tile_shape, halo, stride, strict=True):
        whole = round_up(size, BUCKET_CELLS * step)
        window = whole if size <= tile else min(whole, tile // step * step)
        if window < whole and window - 2 * reach < step:
            raise ValueError(f"a tile of {tile} voxels leaves no core: halo {reach}, stride {step}")
        padded.append(whole)
        window_shape.append(window)
        axes.append(_axis_windows(whole, window, reach, step))
    windows = tuple(
        Window(start=(z[0], y[0], x[0]), core_low=(z[1], y[1], x[1]), core_high=(z[2], y[2], x[2]))
        for z, y, x in itertools.product(*axes)
    )
    return TilePlan(
        padded_shape=(padded[0], padded[1], padded[2]),
        window_shape=(window_shape[0], window_shape[1], window_shape[2]),
        windows=windows,
    )


def pad_to(image: np.ndarray, shape: Triple) -> np.ndarray:
    """Zeros appended at the far faces of (Z, Y, X, C) until its first axes have `shape`; none if they do."""
    widths = [(0, target - size) for target, size in zip(shape, image.shape[:3], strict=True)]
    return np.pad(image, [*widths, (0, 0)]) if any(far for _, far in widths) else image
