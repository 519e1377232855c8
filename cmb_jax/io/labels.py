"""What the numbers of a label image mean: one a lesion, one a class, a mask, or none of these."""

import dataclasses

import numpy as np
from scipy import ndimage

_ORDER_OF_CONNECTIVITY = {6: 1, 18: 2, 26: 3}
LARGEST_LESION_MM = 10.0
"""Of a microbleed: pieces of one number that lie farther apart belong to several."""

_LEAST_VOXELS = 3  # of a lesion among more than four that touch
_MOST_TOUCHING = 4  # numbers in one connected piece: lesions seldom touch, levels of a scaled map always do


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances:
    """Lesions of a label image."""

    labels: np.ndarray  # (X, Y, Z) int32, 1..count without gaps
    count: int
    by_label: bool  # the image's own numbers tell lesions apart; else connected components
    note: str = ""  # how unclear numbers were taken


def components(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """Connected components of a mask (X, Y, Z): labels (X, Y, Z) int32 from 1, and their number.

    Args:
        mask: bool.
        connectivity: neighbors of a voxel: 6 (faces), 18 (edges too) or 26 (corners too).
    """
    structure = ndimage.generate_binary_structure(3, _ORDER_OF_CONNECTIVITY[connectivity])
    labels, count = ndimage.label(mask, structure, output=np.int32)
    return labels, int(count)


def is_whole(values: np.ndarray) -> bool:
    """Whether all values are whole numbers."""
    return values.dtype.kind in "iub" or bool(np.all(values == np.round(values)))


def check_scale(values: np.ndarray) -> None:
    """Whether values can be labels, a mask or probabilities.

    Args:
        values: (n,), those above 0.

    Raises:
        ValueError: fractions beyond 1, as in maps that were scaled and in labels that were interpolated.
    """
    largest = values.max(initial=0)
    if largest > 1 and not is_whole(values):
        raise ValueError(
            f"holds fractions up to {largest:g}: probabilities must lie in 0 to 1 (divide a scaled map), and "
            "labels must be whole numbers (resample them by nearest neighbor)"
        )


def instances(values: np.ndarray, spacing_mm: np.ndarray, connectivity: int = 26) -> Instances:
    """Lesions of whole numbers (X, Y, Z), 0 being background.

    One number above 0 is a mask: its connected components are lesions. More than one are instance ids, unless
    pieces of one number lie farther apart than a microbleed is large: then they are classes, and each piece
    of a class is a lesion.

    Args:
        values: (X, Y, Z) whole numbers.
        spacing_mm: (3,) voxel edges.
        connectivity: 6, 18 or 26.

    Raises:
        ValueError: so many numbers touch each other as in a probability map that was scaled to integers.
    """
    inside = values > 0
    distinct, rank = np.unique(values[inside], return_inverse=True)
    if len(distinct) < 2:
        labels, count = components(inside, connectivity)
        return Instances(labels=labels, count=count, by_label=False)
    ranked = np.zeros(values.shape, np.int32)
    ranked[inside] = rank + 1
    together, pieces = components(inside, 26)
    pairs = np.unique(np.stack([together[inside], ranked[inside]]), axis=1)
    most = int(np.bincount(pairs[0], minlength=pieces + 1).max())
    if most > _MOST_TOUCHING and not _are_balls(pairs, np.bincount(rank)):
        raise ValueError(
            f"holds {most} different numbers in one connected piece: a probability map that was scaled to "
            "integers, or regions? give probabilities from 0 to 1, or labels with one number a lesion"
        )
    if not _far_apart(ranked, len(distinct), np.asarray(spacing_mm)):
        return Instances(labels=ranked, count=len(distinct), by_label=True)
    labels, count = np.zeros(values.shape, np.int32), 0
    for value in range(1, len(distinct) + 1):
        parts, more = components(ranked == value, connectivity)
        labels += np.where(parts > 0, parts + count, 0)
        count += more
    examples = ", ".join(f"{value:g}" for value in distinct[:5]) + (", ..." if len(distinct) > 5 else "")
    note = (
        f"its numbers {examples} are classes, not lesions (pieces of one lie more than "
        f"{LARGEST_LESION_MM:g} mm apart): each of its {count} connected pieces "
        "counts as a microbleed, whatever its class"
    )
    return Instances(labels=labels, count=count, by_label=False, note=note)


def _are_balls(pairs: np.ndarray, voxels: np.ndarray) -> bool:
    """Whether numbers that touch can be lesions: no number in two pieces, none of a voxel or two.

    Levels of a map come back in piece after piece, and the highest of them are single voxels.

    Args:
        pairs: (2, P) piece and rank of every number that it holds.
        voxels: (D,) of each number.
    """
    in_pieces = np.bincount(pairs[1])[1:]
    return bool((in_pieces == 1).all() and voxels.min() >= _LEAST_VOXELS)


def _far_apart(labels: np.ndarray, count: int, spacing_mm: np.ndarray) -> bool:
    """Whether pieces of one label lie farther than `LARGEST_LESION_MM` from all its other pieces."""
    for value, where in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        if where is None:
            continue
        extent = np.array([part.stop - part.start for part in where]) * spacing_mm
        if np.linalg.norm(extent) <= LARGEST_LESION_MM:
            continue
        mask = labels[where] == value
        if components(mask, 26)[1] == 1:
            continue
        # grown by half of the distance, pieces that are nearer touch
        grown = ndimage.distance_transform_edt(~mask, sampling=tuple(spacing_mm)) <= LARGEST_LESION_MM / 2
        if components(grown, 26)[1] > 1:
            return True
    return False
