"""The rule of the VALDO 2021 challenge, Task 2 (Sudre et al. 2024, Med Image Anal 91:103029).

Section 2.5 of the paper: threshold 0.5, 6-connected elements, a match where the centers of mass are less
than 5 mm apart. The details below reproduce what the organizers' program returns for binary references:

* a prediction stands for the reference nearest to it, and for no other, even where a second one is in reach;
* of several predictions on one reference only the nearest is true, the others are false positives;
  predictions at exactly the same distance are all true;
* no overlap is asked for: a match may have Dice 0;
* F1 and Dice of a scan without microbleeds are undefined (NaN): only the counts and volumes speak there;
* distances and volumes take the voxel size of the header, not the affine.

Simulated truth may hold lesions that are ignored (see `evaluation.matching`), which the challenge does not
know: an unmatched element whose center is nearer than the limit to one of them is left out of the count.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.evaluation.matching import Match, center_distances
from cmb_jax.evaluation.records import LabeledVolume, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.volumes import centers_index, common_frame, components


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValdoCase:
    """One scan by the challenge's rule."""

    match: Match  # of the elements, which may differ from the record's rows
    f1: float  # NaN without true lesions
    dice: float  # mean over the matched pairs, 0 without any; NaN without true lesions or without voxels
    count_difference: int  # AED, |predicted - true elements|
    volume_difference_mm3: float  # AVD, of the stored (soft) values at or above the threshold; NaN: no voxels


def match_nearest(distance: np.ndarray, limit: float, excused: np.ndarray | None = None) -> Match:
    """Assign by the challenge's rule.

    Args:
        distance: (K, M) between the centers of mass of predictions and references.
        limit: matches are strictly closer.
        excused: (K,) bool, predictions that are no false positives; None: there are none.
    """
    k, m = distance.shape
    lesion = np.full(k, -1)
    if k and m:
        nearest = distance.argmin(axis=1)
        own = distance[np.arange(k), nearest]
        best = np.full(m, np.inf)
        np.minimum.at(best, nearest, own)
        lesion = np.where((own < limit) & (own == best[nearest]), nearest, -1)
    found = np.zeros(m, bool)
    found[lesion[lesion >= 0]] = True
    false = lesion < 0 if excused is None else (lesion < 0) & ~excused
    return Match(lesion=lesion, false_positive=false, found=found)


def f1_score(tp: int, fp: int, lesions: int) -> float:
    """2 TP / (FN + FP + 2 TP); NaN without lesions."""
    return 2 * tp / (lesions - tp + fp + 2 * tp) if lesions else float("nan")


def valdo_case(
    detections: SubjectDetections, truth: SubjectTruth, *, limit_mm: float = 5.0, connectivity: int = 6
) -> ValdoCase:
    """Score one scan.

    Voxels on a side are split anew into elements with the rule's own connectivity; a side without voxels
    (a table of detections) takes its rows as elements, and then Dice and volumes are unknown. A scan without
    a prediction is scored as an empty one (the organizers fill in differences of 100 000 for their ranking).

    Args:
        detections: those that are reported.
        truth: of the same scan.
        limit_mm: the organizers' program defaults to 0.1, the paper says 5.
        connectivity: the organizers' program defaults to 26, the paper says 6.

    Raises:
        UserError: both sides have voxels, on different grids.
    """
    common_frame(detections.volume, truth.volume, truth.subject)  # raises where the grids differ
    seen = detections.volume or _empty_like(truth.volume, len(detections.centers_mm))
    true = truth.volume or _empty_like(detections.volume, len(truth.centers_mm))
    if seen is None or true is None:
        predicted_mm = _elements_mm(seen, detections.centers_mm, connectivity)
        reference_mm = _elements_mm(true, truth.centers_mm, connectivity)
        excused = _near_ignored(predicted_mm, truth, limit_mm)
        found = match_nearest(center_distances(predicted_mm, reference_mm), limit_mm, excused)
        return ValdoCase(
            match=found,
            f1=f1_score(found.tp, found.fp, len(reference_mm)),
            dice=float("nan"),
            count_difference=abs(int(found.counted.sum()) - len(reference_mm)),
            volume_difference_mm3=float("nan"),
        )
    spacing = true.spacing_mm
    predicted, n_predicted = components(seen.labels > 0, connectivity)
    reference, n_reference = components(true.labels > 0, connectivity)
    found = match_nearest(
        center_distances(
            centers_index(predicted, n_predicted) * spacing, centers_index(reference, n_reference) * spacing
        ),
        limit_mm,
        _near_ignored(_world(centers_index(predicted, n_predicted), seen), truth, limit_mm),
    )
    return ValdoCase(
        match=found,
        f1=f1_score(found.tp, found.fp, n_reference),
        dice=_mean_dice(predicted, reference, found),
        count_difference=abs(int(found.counted.sum()) - n_reference),
        volume_difference_mm3=abs(soft_volume_mm3(seen) - soft_volume_mm3(true)),
    )


def soft_volume_mm3(volume: LabeledVolume) -> float:
    """Sum of the stored values over the lesions' voxels, times the volume of a voxel."""
    inside = volume.labels > 0
    total = inside.sum() if volume.values is None else volume.values[inside].sum(dtype=np.float64)
    return float(total * np.prod(volume.spacing_mm))


def _empty_like(other: LabeledVolume | None, rows: int) -> LabeledVolume | None:
    """A side without voxels that has no lesion either is an empty image; with lesions it is a mere table."""
    if other is None or rows:
        return None
    return LabeledVolume(labels=np.zeros_like(other.labels), affine=other.affine)


def _near_ignored(predicted_mm: np.ndarray, truth: SubjectTruth, limit_mm: float) -> np.ndarray:
    """(K,) bool: the element's center (K, 3) is nearer than the limit to an ignored lesion."""
    distance = center_distances(predicted_mm, truth.ignored_centers_mm)
    return np.asarray(np.any(distance < limit_mm, axis=1))


def _elements_mm(volume: LabeledVolume | None, centers_mm: np.ndarray, connectivity: int) -> np.ndarray:
    if volume is None:
        return centers_mm
    return _world(centers_index(*components(volume.labels > 0, connectivity)), volume)


def _world(index: np.ndarray, volume: LabeledVolume) -> np.ndarray:
    """Voxel positions (K, 3) in RAS mm."""
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def _mean_dice(predicted: np.ndarray, reference: np.ndarray, found: Match) -> float:
    if not len(found.found):
        return float("nan")
    rows = np.flatnonzero(found.lesion >= 0)
    if not len(rows):
        return 0.0
    both = (predicted > 0) & (reference > 0)
    shared = np.zeros((len(found.lesion) + 1, len(found.found) + 1), int)
    np.add.at(shared, (predicted[both], reference[both]), 1)
    size_predicted, size_reference = np.bincount(predicted.ravel()), np.bincount(reference.ravel())
    p, r = rows + 1, found.lesion[rows] + 1
    return float(np.mean(2.0 * shared[p, r] / (size_predicted[p] + size_reference[r])))
