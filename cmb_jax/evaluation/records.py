"""What is compared: the detections and the true lesions of one scan, as points, as voxels, or as both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from cmb_jax.errors import UserError
from cmb_jax.io.labels import check_scale, components, instances, is_whole

# Values of SubjectDetections.status.
KEPT = "kept"
CANDIDATE = "candidate"  # listed, but scored below the operating point: counts in the FROC curve only
REJECTED = "rejected"  # removed by a rule (outside the brain, in a ventricle, ...): counts nowhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledVolume:
    """Lesions as voxels: those with label r + 1 are row r of the record that holds the volume."""

    labels: np.ndarray  # (X, Y, Z) int32, 0 is background
    affine: np.ndarray  # (4, 4) float64, voxel index (integer = voxel center) -> RAS mm
    values: np.ndarray | None = None  # (X, Y, Z) float32 as stored (probabilities, rater means); None: 0 or 1
    note: str = ""  # how ambiguous values were interpreted

    @property
    def count(self) -> int:
        """The number n of lesions; labels are 1..n."""
        return int(self.labels.max(initial=0))

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel edge lengths along the array's axes, (3,) float64, mm."""
        return voxel_sizes(self.affine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimicMap:
    """Where a phantom's mimics lie, so that false positives can be named."""

    codes: np.ndarray  # (X, Y, Z) uint8, 0 where there is no mimic
    affine: np.ndarray  # (4, 4) float64, voxel index -> RAS mm
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of the codes


_PER_DETECTION = (
    "centers_mm",
    "scores",
    "diameters_mm",
    "status",
    "zones",
    "regions",
    "probabilities",
    "reasons",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectDetections:
    """What a reader or a program found in one scan. K detections."""

    subject: str
    centers_mm: np.ndarray  # (K, 3) float, RAS mm
    scores: np.ndarray  # (K,) float, higher is more certain
    diameters_mm: np.ndarray  # (K,) float
    status: tuple[str, ...] | None = None  # (K,) KEPT, CANDIDATE or REJECTED; None: all kept
    zones: tuple[str, ...] | None = None  # (K,) lower-case names of anatomy.regions.Zone
    regions: tuple[str, ...] | None = None  # (K,) lower-case names of anatomy.regions.Region
    probabilities: np.ndarray | None = None  # (K,) of a true lesion, NaN where unknown; None: all unknown
    reasons: tuple[str, ...] | None = None  # (K,) why a rule removed it; empty for the others
    volume: LabeledVolume | None = None  # when they were read from voxels
    missing: bool = False  # no prediction was found for this scan: it counts as empty

    def __post_init__(self) -> None:
        _check_lengths(self, _PER_DETECTION)

    def select(self, mask: np.ndarray) -> SubjectDetections:
        """The detections with mask (K,) true, in the same order; labels are renumbered."""
        mask = np.asarray(mask, bool)
        rows = np.flatnonzero(mask)
        volume = self.volume
        if volume is not None and not mask.all():
            new_label = np.zeros(len(mask) + 1, np.int32)
            new_label[rows + 1] = np.arange(1, len(rows) + 1)
            volume = dataclasses.replace(volume, labels=new_label[volume.labels])
        selected: dict[str, Any] = {name: _take(getattr(self, name), rows) for name in _PER_DETECTION}
        return dataclasses.replace(self, volume=volume, **selected)

    def candidates(self) -> SubjectDetections:
        """Those that no rule removed: the FROC curve is drawn from them."""
        if self.status is None:
            return self
        return self.select(np.array([status != REJECTED for status in self.status], bool))

    def at(self, threshold: float | None) -> SubjectDetections:
        """What is reported at an operating point: score >= threshold; None: what the program itself kept."""
        if threshold is not None:
            candidates = self.candidates()
            return candidates.select(candidates.scores >= threshold)
        if self.status is None:
            return self
        return self.select(np.array([status == KEPT for status in self.status], bool))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectTruth:
    """The true microbleeds of one scan. M lesions, which may be 0."""

    subject: str
    centers_mm: np.ndarray  # (M, 3) float, RAS mm
    diameters_mm: np.ndarray  # (M,) float; simulated lesions: the hemosiderin's own diameter
    apparent_diameters_mm: np.ndarray | None = None  # (M,) float, as seen in the image (blooming)
    regions: tuple[str, ...] | None = None  # (M,) lower-case names of anatomy.regions.Region
    zones: tuple[str, ...] | None = None  # (M,) lower-case names of anatomy.regions.Zone
    cnr: np.ndarray | None = None  # (M,) float, contrast-to-noise ratio
    protocol: str | None = None
    tier: str | None = None
    has_phase: bool | None = None  # whether the scan has a phase; None: unknown
    volume: LabeledVolume | None = None  # when there are voxels: the touch, box and VALDO rules use them
    mimics: MimicMap | None = None
    # Lesions that a reader might not see: missing one is not an error, and neither is finding it.
    ignored_centers_mm: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # (I, 3)
    ignored_diameters_mm: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))  # (I,) as seen

    def __post_init__(self) -> None:
        _check_lengths(
            self, ("centers_mm", "diameters_mm", "apparent_diameters_mm", "regions", "zones", "cnr")
        )
        ignored = (*self.ignored_centers_mm.shape, *self.ignored_diameters_mm.shape)
        if ignored != (len(self.ignored_diameters_mm), 3, len(self.ignored_diameters_mm)):
            raise ValueError(f"{self.subject}: ignored lesions need centers (n, 3) and n diameters")

    @property
    def seen_diameters_mm(self) -> np.ndarray:
        """(M,) diameters as a reader sees them: the apparent ones where they are known."""
        return self.diameters_mm if self.apparent_diameters_mm is None else self.apparent_diameters_mm


def _take(column: np.ndarray | tuple[str, ...] | None, rows: np.ndarray) -> Any:
    """Some rows of a column, of the same type; None for a column that is not there."""
    if isinstance(column, tuple):
        return tuple(column[row] for row in rows)
    return None if column is None else column[rows]


def _check_lengths(record: SubjectDetections | SubjectTruth, fields: tuple[str, ...]) -> None:
    centers = record.centers_mm
    if centers.ndim != 2 or centers.shape[1] != 3:
        raise ValueError(f"{record.subject}: centers_mm must have shape (n, 3), not {centers.shape}")
    for field in fields:
        value = getattr(record, field)
        if value is not None and len(value) != len(centers):
            raise ValueError(f"{record.subject}: {len(value)} {field} for {len(centers)} centers")


# Headers copied from a registered image often differ slightly. Grids whose corners lie less than half a voxel
# apart are the same grid to nearest-neighbor resampling.
_SAME_GRID_VOXELS = 0.5


def label_volume(
    values: np.ndarray, affine: np.ndarray, *, threshold: float = 0.5, connectivity: int = 26
) -> LabeledVolume:
    """Lesions of a volume of labels, of a mask or of probabilities.

    Whole numbers are interpreted by `io.labels.instances`; fractions are cut at `threshold` (>=) and split
    into connected components. A mask may hold any one value.

    Args:
        values: (X, Y, Z); values that are not finite count as 0.
        affine: (4, 4), voxel index -> RAS mm.
        connectivity: 6, 18 or 26.

    Raises:
        ValueError: values that are neither labels, nor a mask, nor probabilities.
    """
    # Programs write instance labels, masks of 1 or 255, rater means and probabilities, and headers do not say
    # which. Whole numbers can only be labels or a mask; fractions can only be probabilities or rater means.
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


def centers_index(labels: np.ndarray, count: int) -> np.ndarray:
    """Centers of mass (n, 3) of labels 1..n as voxel indices, all voxels weighing the same."""
    voxels = np.nonzero(labels)
    owner = labels[voxels] - 1
    size = np.bincount(owner, minlength=count)
    sums = [np.bincount(owner, weights=axis, minlength=count) for axis in voxels]
    return np.stack(sums, axis=-1).reshape(-1, 3) / np.maximum(size, 1)[:, None]


def to_index(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points (n, 3) from RAS mm to fractional voxel indices."""
    return np.linalg.solve(affine[:3, :3], (points_mm - affine[:3, 3]).T).T


def centers_mm(volume: LabeledVolume) -> np.ndarray:
    """Centers of mass (n, 3) of the lesions, RAS mm."""
    return apply_affine(volume.affine, centers_index(volume.labels, volume.count))


def diameters_mm(volume: LabeledVolume) -> np.ndarray:
    """Diameters (n,) in mm of spheres of the lesions' volumes."""
    sizes = np.bincount(volume.labels[volume.labels > 0] - 1, minlength=volume.count)
    return np.cbrt(6.0 / np.pi * sizes * np.prod(volume.spacing_mm))


def best_values(volume: LabeledVolume) -> np.ndarray:
    """The highest stored value (n,) of every lesion: the score of a component of a probability map."""
    if volume.values is None:
        return np.ones(volume.count)
    inside = volume.labels > 0
    best = np.zeros(volume.count)
    np.maximum.at(best, volume.labels[inside] - 1, volume.values[inside])
    return best


def common_frame(a: LabeledVolume | None, b: LabeledVolume | None, subject: str) -> np.ndarray | None:
    """The grid (affine) that both sides lie on; None if neither has voxels.

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
    """Boxes (n, 6), low and high corner in mm along the axes of an image.

    Args:
        centers: (n, 3) RAS mm.
        diameters: (n,) mm: without voxels the box is the cube with this edge.
        volume: the lesions' voxels, or None.
        frame: (4, 4) affine of the image; None: the axes are those of RAS.
    """
    if volume is not None:
        boxes = np.zeros((len(centers), 6))  # a label without voxels keeps an empty box
        for row, slices in enumerate(ndimage.find_objects(volume.labels, max_label=len(centers))):
            if slices is not None:
                boxes[row, :3] = [part.start for part in slices]
                boxes[row, 3:] = [part.stop for part in slices]
        return boxes * np.tile(volume.spacing_mm, 2)
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

    A sphere covers the voxels whose centers lie in it, and the voxel that holds its own center.

    Args:
        centers: (n, 3) RAS mm.
        diameters: (n,) mm.
    """
    shape = np.array(volume.labels.shape)
    touched = np.zeros((len(centers), count), bool)
    # Each sphere is tested only against the voxels of a window around it. A row of the inverse affine is the
    # gradient of one voxel index in mm, so its length is the number of voxels per mm in the worst direction:
    # times the radius it bounds the window even where the affine is oblique or sheared.
    voxels_per_mm = np.linalg.norm(np.linalg.inv(volume.affine[:3, :3]), axis=1)
    for row, (center, diameter) in enumerate(zip(to_index(centers, volume.affine), diameters, strict=True)):
        reach = 0.5 * diameter * voxels_per_mm
        low = np.clip(np.floor(center - reach), 0, shape).astype(int)
        high = np.clip(np.ceil(center + reach) + 1, 0, shape).astype(int)
        window = volume.labels[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
        labeled = np.argwhere(window > 0)
        offsets_mm = (labeled + low - center) @ volume.affine[:3, :3].T
        hit = np.linalg.norm(offsets_mm, axis=1) <= 0.5 * diameter
        hit |= np.all(labeled + low == np.floor(center + 0.5), axis=1)
        touched[row, window[tuple(labeled[hit].T)] - 1] = True
    return touched
