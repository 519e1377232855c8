"""Whether the slices of an image are those of one head, once each and in the order they were taken in."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cmb_jax.io.volume import content_bounds

BLOCK = 8
"""Voxels along an edge of the blocks that are compared; within them a phase may turn evenly."""
ENOUGH_VOXELS = 2**22
"""Larger images are judged by their middle slices, or by every n-th voxel within a slice."""
# Differences of neighboring slices, smoothed, over those of the next but one: simulated scans give 0.5 to 0.7
# (slices of 1 to 6 mm), at a signal to noise of 3 up to 0.82, shuffled slices 0.8 to 1.3. So do two passes of
# an interleaved scan between which the head moved; but then the next but one still resembles it.
_OUT_OF_ORDER, _DISPLACED = 0.75, 0.9
# Differences of the next but one over those half a stack away: 0.25 to 0.7, shuffled 0.8 to 1.1.
_NO_ORDER = 0.72
_APART = 0.05  # of the spread of all: smoothed slices of noise differ by less, of heads by 0.1 and more
# By how much every other slice is darker: reported from the first on, refused from the second on, which no
# crosstalk between slices reaches.
_IN_TURN = (0.1, 0.4)
_FEWESTBLOCKS = 12  # per slice; with fewer its order is not judged
# A stack that was rolled round has one step that is 3.8 to 11 times those beside it, and its ends differ by
# at most 0.65 of that step; simulated scans and slabs of them have no step above 1.5 times those beside it,
# and their ends differ by 1.1 of it and more.
_JUMP, _ENDS_FIT = 2.5, 0.7
# Least such step, of the brightest slice's mean: 0.17 and more where a head breaks off. A dark spot in an
# even slab is a step as well, but a small one.
_LEAST_JUMP = 0.1
_MOST_COPIES, _FEWEST_COPIES = 0.3, 2  # share of all slices; number from which what shows twice is refused
_SAMPLED, _SHOWN_VALUES = 64, 32  # pixels along each side that tell slices apart; least values among them
# Two heads, one above the other: broken off somewhere, or with next to no bright tissue between two heights
# that are full of it (a neck holds 0.4 of a head's).
_BETWEEN_HEADS, _HEADS = 0.3, 0.6
# Mean change from a slice to the next over the largest within three slices: 0.6 and more in simulated scans;
# repeated slices, even with new rounding or noise, have next to none.
_REPEATED, _REPEATED_SHARE, _NEAR = 0.1, 0.25, 7
_MOST_EMPTY = 0.1  # share of slices without content between others ...
_FILLED = 0.3  # ... that hold so much of what the fullest does


def doubts_of_slices(data: np.ndarray, middle: np.ndarray) -> tuple[list[str], list[str]]:
    """Whether slices were lost, repeated, rescaled or put in another order, along any axis.

    Args:
        data: (X, Y, Z).
        middle: its part that is enough to judge their order.

    Returns:
        Reasons to refuse the image, and warnings.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    repeated = [_has_repeats(np.moveaxis(data, axis, -1)) for axis in range(3)]
    if repeated.count(True) == 1:  # along two axes: nearest neighbors in plane, as some scanners interpolate
        reasons.append(
            "its slices repeat their neighbors: some were stored twice; convert it again from DICOM"
        )
    for axis in range(3):
        filled = np.count_nonzero(data, axis=tuple(other for other in range(3) if other != axis))
        ends = np.flatnonzero(filled > _FILLED * filled.max())[[0, -1]]
        empty = int(np.count_nonzero(filled[slice(*ends)] == 0))
        if empty:
            lines = reasons if empty > _MOST_EMPTY * (ends[1] - ends[0]) else warnings
            lines.append(f"slices without content lie between others ({empty}): what was there is lost")
        slices = np.moveaxis(middle, axis, -1)
        slices = slices[..., slices.any(axis=(0, 1))]  # those that were lost are reported above
        copies, count = _copies(np.moveaxis(data, axis, -1))
        if 0 < copies < _MOST_COPIES * count:
            lines = reasons if copies >= _FEWEST_COPIES else warnings
            lines.append(
                f"{copies} slice(s) along {'xyz'[axis]} occur twice: was a slice stored again, or do slabs "
                "overlap? What lies there would be counted twice; convert it again"
            )
        in_turn = _alternation(slices)
        unlike, far = _unlikeness(slices)
        if in_turn > _IN_TURN[1]:
            reasons.append("every other slice has another scale; convert it again from DICOM")
        elif unlike > _OUT_OF_ORDER and far > _NO_ORDER:
            reasons.append("neighboring slices are no more alike than others: they are not in their order")
        elif in_turn > _IN_TURN[0] or unlike > _DISPLACED:
            warnings.append(
                "every other slice is brighter or displaced: slices were exchanged, or the patient moved "
                "between the passes of an interleaved scan"
            )
    if _is_rolled(data):
        reasons.append(
            "its slices go on from the last to the first, and the head is cut in two: it was rolled round; "
            "convert it again"
        )
    return reasons, warnings


def _copies(data: np.ndarray) -> tuple[int, int]:
    """How many slices of (X, Y, Z) along Z equal an earlier one, of how many that show something."""
    x, y, _ = data.shape
    sample = data[:: -(-x // _SAMPLED), :: -(-y // _SAMPLED)].reshape(-1, data.shape[2])
    # Slices of air that was set to a constant are equal, too, also where an artifact crosses them.
    shown = [column.tobytes() for column in sample.T if len(np.unique(column)) >= _SHOWN_VALUES]
    return len(shown) - len(set(shown)), len(shown)


def _is_rolled(data: np.ndarray) -> bool:
    """Whether a head (X, Y, Z) leaves the stack at one end of Z and comes in at the other.

    Converters that forget to shift the middle of k-space leave it so. Two ends in tissue that fit together
    prove nothing alone, as in slabs of few slices: there must also be one slice where the head breaks off.
    """
    smooth = _smoothed_slices(data)
    means, at = smooth.mean(axis=0), _where_it_breaks_off(smooth)
    if at is None or min(means[0], means[-1]) < _FILLED * means.max():
        return False
    jump = np.abs(smooth[:, at + 1] - smooth[:, at]).mean()
    return bool(np.abs(smooth[:, 0] - smooth[:, -1]).mean() < _ENDS_FIT * jump)


def starts_again(data: np.ndarray) -> bool:
    """Whether a head (X, Y, Z) ends along Z and another one begins."""
    smooth = _smoothed_slices(data)
    if smooth.size and _where_it_breaks_off(smooth / np.maximum(smooth.mean(axis=0), 1e-30)) is not None:
        return True
    area = (smooth > 0.4 * np.median(smooth[smooth > 0.5 * smooth.max()])).sum(axis=0)
    full = np.flatnonzero(area > _HEADS * area.max())
    return bool(area[full[0] : full[-1] + 1].min() < _BETWEEN_HEADS * area.max())


def _smoothed_slices(data: np.ndarray) -> np.ndarray:
    """Sums over blocks of the slices of (X, Y, Z) that are not empty: (block, Z)."""
    data = data[tuple(slice(*pair) for pair in content_bounds(data))]
    edge = min(2 * BLOCK, *data.shape[:2])
    smooth = block_sums(data, edge).reshape(-1, data.shape[2])
    return np.clip(smooth, *np.percentile(smooth, [0.1, 99.9]))[:, smooth.any(axis=0)]


def _where_it_breaks_off(smooth: np.ndarray) -> int | None:
    """The only slice of (block, Z) within a stack after which the head is another one."""
    if smooth.shape[1] < BLOCK:
        return None
    steps = np.abs(np.diff(smooth, axis=1)).mean(axis=0)
    jumps = np.flatnonzero(steps > _JUMP * ndimage.median_filter(steps, 7))
    if len(jumps) != 1 or jumps[0] in (0, len(steps) - 1):
        return None
    return int(jumps[0]) if steps[jumps[0]] > _LEAST_JUMP * smooth.mean(axis=0).max() else None


def _has_repeats(slices: np.ndarray) -> bool:
    """Whether many slices of (X, Y, Z) along Z, where they hold tissue, are those beside them once more."""
    if slices.shape[-1] < BLOCK:
        return False
    # of large images every n-th voxel within a slice is enough
    step = int(np.ceil(np.sqrt(slices.size / ENOUGH_VOXELS)))
    slices = slices[::step, ::step]
    slices = np.clip(slices, *np.percentile(slices, [0, 99.9]))
    means = slices.mean(axis=(0, 1))
    changes = np.abs(np.diff(slices, axis=-1)).mean(axis=(0, 1))
    tissue = np.minimum(means[1:], means[:-1]) > _FILLED * means.max()
    small = changes < _REPEATED * ndimage.maximum_filter1d(changes, _NEAR)
    return bool(small[tissue].mean() > _REPEATED_SHARE) if tissue.any() else False


def _alternation(slices: np.ndarray) -> float:
    """By how much every other slice of (X, Y, Z) along Z is darker than those beside it: 0 to 2."""
    means = np.clip(slices, 0, np.percentile(slices, 99.9)).mean(axis=(0, 1))
    if len(means) < BLOCK:
        return 0.0
    beside = (means[:-2] + means[2:]) / 2
    apart = np.abs(means[1:-1] - beside) / np.maximum((means[1:-1] + beside) / 2, np.finfo(np.float32).tiny)
    return float(np.median(apart))


def _unlikeness(slices: np.ndarray) -> tuple[float, float]:
    """Differences of neighboring slices of (X, Y, Z) along Z, relative to those of more distant slices.

    Returns:
        Neighbors over next but one; next but one over those half a stack away.
    """
    count, edge = slices.shape[-1], min(2 * BLOCK, *slices.shape[:2])
    if count < BLOCK or slices[..., 0].size < _FEWESTBLOCKS * edge**2:
        return 0.0, 0.0
    slices = np.clip(slices, *np.percentile(slices, [0.1, 99.9]))
    smooth = block_sums(slices, edge).reshape(-1, count) / edge**2
    if _differences(smooth, 2) <= _APART * slices.std():
        return 0.0, 0.0  # slices that are all alike have no order
    # The first ratio is taken with and without scaling all slices to one mean, and the smaller counts:
    # brightness that changes from slice to slice is not disorder, but in the air scaling would make much of
    # little.
    scaled = smooth / np.maximum(smooth.mean(axis=0), np.finfo(np.float32).tiny)
    ratios = [_differences(each, 1) / max(_differences(each, 2), 1e-30) for each in (smooth, scaled)]
    return min(ratios), _differences(scaled, 2) / max(_differences(scaled, count // 2), 1e-30)


def _differences(slices: np.ndarray, step: int) -> float:
    return float(np.abs(slices[:, step:] - slices[:, :-step]).mean())


def block_sums(data: np.ndarray, edge: int = BLOCK) -> np.ndarray:
    """Sums over in-plane blocks of `edge` voxels: (X, Y, Z) -> (X // edge, Y // edge, Z)."""
    x, y = (size // edge for size in data.shape[:2])
    cut = data[: x * edge, : y * edge]
    return cut.reshape(x, edge, y, edge, -1).sum(axis=(1, 3))
