"""Voxels as lesions: components, centers, boxes, and which voxels a sphere covers."""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from cmb_jax.errors import UserError
from cmb_jax.evaluation.records import LabeledVolume
from cmb_jax.io.labels import check_scale, components, instances, is_whole

# Below half a voxel at every corner, resampling to the nearest voxel changes nothing: headers that were
# copied from a registered image often differ by a little.
_SAME_GRID_VOXELS = 0.5


def label_volume(
    values: np.ndarray, affine: np.ndarray, *, threshold: float = 0.5, connectivity: int = 26
) -> LabeledVolume:
    """Lesions of a volume of labels, of a mask or of probabilities.

    Whole numbers are told apart as `io.labels.instances` does; fractions are cut at `threshold` (>=) and
    split into connected components. A mask may hold any one value.

    Args:
        values: (X, Y, Z); what is not finite counts as 0.
        affine: (4, 4), voxel index -> RAS mm.
        threshold: of probabilities.
        connectivity: 6, 18 or 26.

    Raises:
        ValueError: values that are neither labels nor a mask nor probabilities.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    affine = np.asarray(affine, np.float64)
    above = values[values > 0]
    check_scale(above)
    if is_whole(above):
        found = instances(values, voxel_sizes(affine), connectivity)
        return LabeledVolume(labels=found.labels, affine=affine, note=found.note)
    labels, count = components(values >= threshold, connectivity)
    note = ""
    if not count:
        note = f"its largest value is {above.max():g}: nothing reaches {threshold:g}, so it holds no lesion"
    return LabeledVolume(labels=labels, affine=affine, values=values.astype(np.float32), note=note)


def count_labels(volume: LabeledVolume) -> int:
    """The number n of lesions; labels are 1..n."""
    return int(volume.labels.max(initial=0))


def centers_index(labels: np.ndarray, count: int) -> np.ndarray:
    """Centers of mass (n, 3) of labels 1..n, all voxels weighing the same, as voxel index."""
    voxels = np.nonzero(labels)
    owner = labels[voxels] - 1
    size = np.bincount(owner, minlength=count)
    sums = [np.bincount(owner, weights=axis, minlength=count) for axis in voxels]
    return np.stack(sums, axis=-1).reshape(-1, 3) / np.maximum(size, 1)[:, None]


def to_index(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points (n, 3) from RAS mm to (fractional) voxel index."""
    return np.linalg.solve(affine[:3, :3], (points_mm - affine[:3, 3]).T).T


def centers_mm(volume: LabeledVolume) -> np.ndarray:
    """Centers of mass (n, 3) of the lesions, RAS mm."""
    return apply_affine(volume.affine, centers_index(volume.labels, count_labels(volume)))


def diameters_mm(volume: LabeledVolume) -> np.ndarray:
    """Diameters (n,) in mm of the spheres that have the lesions' volumes."""
    sizes = np.bincount(volume.labels[volume.labels > 0] - 1, minlength=count_labels(volume))
    return np.cbrt(6.0 / np.pi * sizes * np.prod(volume.spacing_mm))


def best_values(volume: LabeledVolume) -> np.ndarray:
    """The highest stored value (n,) of every lesion: the score of a component of a probability map."""
    count = count_labels(volume)
    if volume.values is None:
        return np.ones(count)
    inside = volume.labels > 0
    best = np.zeros(count)
    np.maximum.at(best, volume.labels[inside] - 1, volume.values[inside])
    return best


def common_frame(a: LabeledVolume | None, b: LabeledVolume | None, subject: str) -> np.ndarray | None:
    """The grid (affine) that both sides lie on, None where neither has voxels.

    Raises:
        UserError: both have voxels, on different grids.
    """
    if a is None or b is None:
        volume = a or b
        return None if volume is None else volume.affine
    if a.labels.shape != b.labels.shape:
        raise UserError(
            f"{subject}: prediction and truth have different shapes, {a.labels.shape} and {b.labels.shape}: "
            "resample the prediction to the truth's grid, or give it as detections.csv"
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.labels.shape])).reshape(3, -1).T
    apart = np.abs(apply_affine(a.affine, corners) - apply_affine(b.affine, corners)).max()
    if apart > _SAME_GRID_VOXELS * b.spacing_mm.min():
        raise UserError(
            f"{subject}: prediction and truth have different affines (up to {apart:.2f} mm apart): copy "
            "the scan's header to both, or give the prediction as detections.csv"
        )
    return b.affine


def boxes_in_frame(
    centers: np.ndarray, diameters: np.ndarray, volume: LabeledVolume | None, frame: np.ndarray | None
) -> np.ndarray:
    """Boxes (n, 6), low and high corner in mm along the axes of the image `frame` (RAS without one).

    Args:
        centers: (n, 3) RAS mm.
        diameters: (n,) mm: without voxels the box is the cube with this edge.
        volume: the lesions' voxels, or None.
        frame: (4, 4) affine of the image, or None.
    """
    if volume is not None:
        spacing = volume.spacing_mm
        found = ndimage.find_objects(volume.labels, max_label=len(centers))
        boxes = np.zeros((len(centers), 6))  # a label without voxels keeps an empty box
        for row, slices in enumerate(found):
            if slices is not None:
                boxes[row, :3] = [part.start for part in slices]
                boxes[row, 3:] = [part.stop for part in slices]
        return boxes * np.tile(spacing, 2)
    if frame is not None:
        spacing = voxel_sizes(frame)
        centers = (to_index(centers, frame) + 0.5) * spacing  # voxel i spans [i, i + 1)
    half = 0.5 * np.asarray(diameters, np.float64)[:, None]
    return np.concatenate([centers - half, centers + half], axis=1)


def overlap_labels(a: np.ndarray, b: np.ndarray, count_a: int, count_b: int) -> np.ndarray:
    """Which labels share a voxel: (count_a, count_b) bool for label volumes of one shape."""
    both = (a > 0) & (b > 0)
    shared = np.zeros((count_a, count_b), bool)
    shared[a[both] - 1, b[both] - 1] = True
    return shared


def covered_labels(
    centers: np.ndarray, diameters: np.ndarray, volume: LabeledVolume, count: int
) -> np.ndarray:
    """Which labels of a volume spheres touch: (n, count) bool.

    A sphere covers the voxels whose centers lie in it, and the voxel that its own center lies in.

    Args:
        centers: (n, 3) RAS mm.
        diameters: (n,) mm.
        volume: labels 1..count.
        count: number of labels.
    """
    shape = np.array(volume.labels.shape)
    touched = np.zeros((len(centers), count), bool)
    # Rows of the inverse tell how many voxels of each axis a millimeter in the worst direction spans.
    voxels_per_mm = np.linalg.norm(np.linalg.inv(volume.affine[:3, :3]), axis=1)
    for row, (center, diameter) in enumerate(zip(to_index(centers, volume.affine), diameters, strict=True)):
        reach = 0.5 * diameter * voxels_per_mm
        low = np.clip(np.floor(center - reach), 0, shape).astype(int)
        high = np.clip(np.ceil(center + reach) + 1, 0, shape).astype(int)
        window = volume.labels[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
        inside = np.argwhere(window > 0)
        steps = (inside + low - center) @ volume.affine[:3, :3].T
        hit = np.linalg.norm(steps, axis=1) <= 0.5 * diameter
        hit |= np.all(inside + low == np.floor(center + 0.5), axis=1)
        touched[row, window[tuple(inside[hit].T)] - 1] = True
    return touched
