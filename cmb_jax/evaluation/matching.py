"""Which detection is which lesion: the matching rules, as pure functions of one scan. K x M pairs.

Every rule first says which pairs may match (`Pairs`), then how pairs are chosen:

* one to one (center distance, box overlap): as many matches as possible, and among those the least total
  cost; a second detection on one lesion is a false positive;
* any (touch): a lesion is found if any detection touches it, a detection is a false positive if it touches
  no lesion; two detections on one lesion are neither punished nor rewarded;
* the rule of the VALDO 2021 challenge, Task 2, at the end of this file.

Truth may hold ignored lesions, which a reader might not see. They are never missed, and a detection on one of
them that hits no other lesion is left out of the count, as in COCO (Lin et al. 2014): it is `excused`. Where
a lesion could be matched to an excused detection or to another, the other is taken, so that an ignored lesion
can take away false positives and never adds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cmb_jax.evaluation.froc import FrocEvents, collect_events
from cmb_jax.evaluation.records import (
    LabeledVolume,
    SubjectDetections,
    SubjectTruth,
    boxes_in_frame,
    centers_index,
    common_frame,
    covered_labels,
    overlap_labels,
)
from cmb_jax.io.labels import components


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A matching rule by name."""

    name: str
    title: str  # for tables
    criterion: Literal["center", "touch", "box", "valdo"]
    limit: float = 0.0  # center and valdo: distance in mm, strictly below; box: IoU, at or above
    one_to_one: bool = True
    connectivity: int = 26  # of the components that voxel input is split into


CENTER3 = Rule(name="center3", title="center < 3 mm, one to one", criterion="center", limit=3.0)
CENTER5 = Rule(name="center5", title="center < 5 mm, one to one", criterion="center", limit=5.0)
TOUCH = Rule(name="touch", title="any voxel touches", criterion="touch", one_to_one=False)
BOX = Rule(name="box_iou", title="box IoU >= 0.1, one to one", criterion="box", limit=0.1)
VALDO = Rule(
    name="valdo",
    title="VALDO 2021, centroid < 5 mm",
    criterion="valdo",
    limit=5.0,
    one_to_one=False,
    connectivity=6,
)
RULES: dict[str, Rule] = {rule.name: rule for rule in (CENTER3, CENTER5, TOUCH, BOX, VALDO)}
HEADLINE = CENTER3.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which pairs of detection and lesion may match."""

    allowed: np.ndarray  # (K, M) bool
    cost: np.ndarray  # (K, M) float >= 0, finite; the smaller the better the pair
    one_to_one: bool
    excused: np.ndarray | None = None  # (K,) bool: on an ignored lesion, so no false positive; None: none are

    @property
    def is_excused(self) -> np.ndarray:
        """(K,) bool."""
        return np.zeros(len(self.allowed), bool) if self.excused is None else self.excused

    def with_excused(self, also: np.ndarray) -> Pairs:
        """The same pairs with further detections (K,) bool excused."""
        return dataclasses.replace(self, excused=self.is_excused | also)

    def of_lesions(self, keep: np.ndarray) -> Pairs:
        """Only the pairs of the lesions `keep` (M,) bool; all other lesions are ignored."""
        kept = dataclasses.replace(self, allowed=self.allowed[:, keep], cost=self.cost[:, keep])
        return kept.with_excused(np.any(self.allowed[:, ~keep], axis=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """The outcome in one scan."""

    lesion: np.ndarray  # (K,) int, index of the lesion that a detection was matched to, -1 if none
    false_positive: np.ndarray  # (K,) bool; a detection neither matched nor false is left out of the count
    found: np.ndarray  # (M,) bool

    @property
    def tp(self) -> int:
        """Lesions found."""
        return int(self.found.sum())

    @property
    def fp(self) -> int:
        """False positives."""
        return int(self.false_positive.sum())

    @property
    def fn(self) -> int:
        """Lesions missed."""
        return int((~self.found).sum())

    @property
    def counted(self) -> np.ndarray:
        """(K,) bool: matched or a false positive; the others lie on ignored lesions."""
        return self.false_positive | (self.lesion >= 0)


def pairs_of(rule: Rule, detections: SubjectDetections, truth: SubjectTruth) -> Pairs:
    """The pairs that a rule allows in one scan.

    Where a side has no voxels, a detection is the sphere of its center and diameter and its box is the cube
    around that sphere; boxes lie along the axes of the image whenever either side has one.
    """
    if rule.criterion == "center":
        cost = center_distances(detections.centers_mm, truth.centers_mm)
        allowed = cost < rule.limit
    elif rule.criterion == "box":
        iou = box_overlaps(detections, truth)
        allowed, cost = iou >= rule.limit, 1.0 - iou
    elif rule.criterion == "touch":
        cost = center_distances(detections.centers_mm, truth.centers_mm)
        allowed = touching(detections, truth)
    else:
        raise ValueError(f"rule {rule.name!r} does not work on pairs")
    return Pairs(
        allowed=allowed, cost=cost, one_to_one=rule.one_to_one, excused=on_ignored(rule, detections, truth)
    )


def on_ignored(rule: Rule, detections: SubjectDetections, truth: SubjectTruth) -> np.ndarray:
    """(K,) bool: the detection hits an ignored lesion by the rule.

    Ignored lesions have no voxels of their own: they are the spheres of their centers and diameters.
    """
    ignored = SubjectTruth(
        subject=truth.subject,
        centers_mm=truth.ignored_centers_mm,
        diameters_mm=truth.ignored_diameters_mm,
    )
    if rule.criterion == "box":
        hits = box_overlaps(detections, ignored) >= rule.limit
    elif rule.criterion == "touch":
        hits = touching(detections, ignored)
    else:
        hits = center_distances(detections.centers_mm, ignored.centers_mm) < rule.limit
    return np.any(hits, axis=1)


def center_distances(a_mm: np.ndarray, b_mm: np.ndarray) -> np.ndarray:
    """Distances (K, M) in mm between points (K, 3) and (M, 3)."""
    return cdist(np.asarray(a_mm, np.float64).reshape(-1, 3), np.asarray(b_mm, np.float64).reshape(-1, 3))


def box_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (K, M) of boxes (K, 6) and (M, 6), (low, high) corners; 0 for empty unions."""
    low = np.maximum(a[:, None, :3], b[None, :, :3])
    high = np.minimum(a[:, None, 3:], b[None, :, 3:])
    intersection = np.prod(np.clip(high - low, 0.0, None), axis=-1)
    size_a = np.prod(np.clip(a[:, 3:] - a[:, :3], 0.0, None), axis=-1)
    size_b = np.prod(np.clip(b[:, 3:] - b[:, :3], 0.0, None), axis=-1)
    union = size_a[:, None] + size_b[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def box_overlaps(detections: SubjectDetections, truth: SubjectTruth) -> np.ndarray:
    """IoU (K, M) of the boxes of one scan, see `pairs_of`."""
    frame = common_frame(detections.volume, truth.volume, truth.subject)
    return box_ious(
        boxes_in_frame(detections.centers_mm, detections.diameters_mm, detections.volume, frame),
        boxes_in_frame(truth.centers_mm, truth.seen_diameters_mm, truth.volume, frame),
    )


def touching(detections: SubjectDetections, truth: SubjectTruth) -> np.ndarray:
    """Which pairs share a voxel, (K, M) bool; spheres that overlap where neither side has voxels."""
    k, m = len(detections.centers_mm), len(truth.centers_mm)
    if detections.volume is not None and truth.volume is not None:
        common_frame(detections.volume, truth.volume, truth.subject)  # raises where the grids differ
        return overlap_labels(detections.volume.labels, truth.volume.labels, k, m)
    if truth.volume is not None:
        return covered_labels(detections.centers_mm, detections.diameters_mm, truth.volume, m)
    if detections.volume is not None:
        return covered_labels(truth.centers_mm, truth.seen_diameters_mm, detections.volume, k).T
    reach = 0.5 * (detections.diameters_mm[:, None] + truth.seen_diameters_mm[None, :])
    return center_distances(detections.centers_mm, truth.centers_mm) <= reach


def match(pairs: Pairs) -> Match:
    """Choose the matches among the allowed pairs, see the head of this file."""
    k, m = pairs.allowed.shape
    lesion = np.full(k, -1)
    if pairs.one_to_one and k and m:
        rows, columns = linear_sum_assignment(_assignment_cost(pairs))
        # the assignment pairs all that it can, also where nothing is allowed
        chosen = pairs.allowed[rows, columns]
        lesion[rows[chosen]] = columns[chosen]
    elif m and not pairs.one_to_one:
        nearest = np.where(pairs.allowed, pairs.cost, np.inf).argmin(axis=1)
        lesion = np.where(pairs.allowed.any(axis=1), nearest, -1)
    found = np.isin(np.arange(m), lesion) if pairs.one_to_one else np.any(pairs.allowed, axis=0)
    return Match(lesion=lesion, false_positive=(lesion < 0) & ~pairs.is_excused, found=found)


def _assignment_cost(pairs: Pairs) -> np.ndarray:
    """(K, M) costs whose least sum has, in this order: most matches, fewest excused ones, least cost.

    An assignment minimizes one number, so the three aims are put on scales that cannot interfere. With the
    largest cost c and at most n matches, all costs together stay below c (n + 1). A match of an excused
    detection costs that much more (plus 1, in case c is 0), and every match earns more than n such penalties.
    Pairs that are not allowed cost and earn nothing; they are dropped afterwards.
    """
    n = min(pairs.allowed.shape)
    penalty = 1.0 + pairs.cost[pairs.allowed].max(initial=0.0) * (n + 1)
    cost = pairs.cost + penalty * pairs.is_excused[:, None]
    return np.where(pairs.allowed, cost - penalty * (n + 2), 0.0)


def events(pairs: Pairs, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores at which a lesion is found for the first time, and scores of the false positives.

    As the threshold falls, each new detection raises the number of matches of the best one-to-one matching by
    one or not at all, because the sets of detections that can be matched form a transversal matroid (Edmonds
    & Fulkerson 1965). So one pass in the order of the scores, with augmenting paths (Kuhn 1955), gives
    exactly the counts that a new matching at every threshold would give. False positives come from a second
    pass, over the detections that are not excused: by the same theory some best matching of all detections
    matches as many of these as can be matched among themselves.

    Args:
        scores: (K,).

    Returns:
        (T,) scores of true positives, T <= M, and (F,) scores of false positives.
    """
    scores = np.asarray(scores, np.float64)
    if not pairs.one_to_one:
        best = np.where(pairs.allowed, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
        false = ~pairs.allowed.any(axis=1) & ~pairs.is_excused
        return best[pairs.allowed.any(axis=0)], scores[false]
    true = _matched_in_turn(pairs.allowed, scores)
    if not pairs.is_excused.any():
        return scores[true], scores[~true]
    counted = ~pairs.is_excused
    return scores[true], scores[counted][~_matched_in_turn(pairs.allowed[counted], scores[counted])]


def froc_events(rule: Rule, scans: Sequence[SubjectDetections], truths: Sequence[SubjectTruth]) -> FrocEvents:
    """The events of S scans by a rule on pairs, of the detections that no rule of place removed."""
    candidates = [scan.candidates() for scan in scans]
    return collect_events(
        [
            events(pairs_of(rule, each, truth), each.scores)
            for each, truth in zip(candidates, truths, strict=True)
        ],
        [len(truth.centers_mm) for truth in truths],
    )


def _matched_in_turn(allowed: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(K,) bool: the detection raises the number of matches, taken in the order of the scores."""
    owner = np.full(allowed.shape[1], -1)
    true = np.zeros(len(scores), bool)
    for detection in np.argsort(-scores, kind="stable"):
        true[detection] = _augment(allowed, owner, int(detection), np.zeros(len(owner), bool))
    return true


def _augment(allowed: np.ndarray, owner: np.ndarray, detection: int, visited: np.ndarray) -> bool:
    """Find a lesion for a detection, moving other detections to another lesion where that frees one."""
    # A lesion that is taken is asked whether its detection can go elsewhere, and so on along the chain:
    # Kuhn's augmenting path. Each lesion is asked once per search, because a second question has the same
    # answer. The detections of such a chain stay matched, so that earlier (higher) scores keep their lesions.
    for lesion in np.flatnonzero(allowed[detection] & ~visited):
        if visited[lesion]:
            continue
        visited[lesion] = True
        if owner[lesion] < 0 or _augment(allowed, owner, int(owner[lesion]), visited):
            owner[lesion] = detection
            return True
    return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValdoCase:
    """One scan by the challenge's rule."""

    match: Match  # of the elements, which may differ from the record's rows
    f1: float  # NaN without true lesions
    dice: float  # mean over the matched pairs, 0 without any; NaN without true lesions or without voxels
    count_difference: int  # AED, |predicted - true elements|
    volume_difference_mm3: float  # AVD, of the stored (soft) values at or above the threshold; NaN: no voxels


def match_nearest(distance: np.ndarray, limit: float, excused: np.ndarray | None = None) -> Match:
    """Match by the challenge's rule.

    Args:
        distance: (K, M) between the centers of mass of predictions and references.
        limit: matches are strictly closer.
        excused: (K,) bool, predictions that are not false positives if unmatched; None: none are.
    """
    k, m = distance.shape
    lesion = np.full(k, -1)
    if k and m:
        # Seen from both sides: a prediction goes to its nearest lesion, and of several predictions that go to
        # one lesion only the nearest matches. The others are false positives even if another lesion is near.
        nearest = distance.argmin(axis=1)
        shortest = distance[np.arange(k), nearest]
        best = np.full(m, np.inf)
        np.minimum.at(best, nearest, shortest)
        lesion = np.where((shortest < limit) & (shortest == best[nearest]), nearest, -1)
    false = lesion < 0 if excused is None else (lesion < 0) & ~excused
    return Match(lesion=lesion, false_positive=false, found=np.isin(np.arange(m), lesion))


def valdo_case(detections: SubjectDetections, truth: SubjectTruth, rule: Rule = VALDO) -> ValdoCase:
    """Score one scan by the rule of the VALDO 2021 challenge, Task 2.

    Sudre et al. 2024, Med Image Anal 91:103029, section 2.5: threshold 0.5, 6-connected elements, a match
    where the centers of mass are less than 5 mm apart (the organizers' program has other defaults:
    26-connected, 0.1 mm). The details reproduce what that program returns for binary references:

    * a prediction can match only the reference nearest to it, even where a second one is in reach;
    * of several predictions on one reference only the nearest is true, the others are false positives;
      predictions at exactly the same distance are all true;
    * no overlap is asked for: a match may have Dice 0;
    * F1 and Dice of a scan without microbleeds are undefined (NaN): only counts and volumes are compared
      there;
    * distances and volumes take the voxel size of the header, not the affine.

    Voxels on a side are split anew into elements; a side without voxels (a table of detections) takes its
    rows as elements, and then Dice and volumes are unknown. The challenge knows no ignored lesions: an
    unmatched element whose center is nearer than the limit to one is left out of the count. A scan without a
    prediction is scored as an empty one (the organizers fill in differences of 100 000 for their ranking).

    Args:
        rule: with the limit of distance and the connectivity.

    Raises:
        UserError: both sides have voxels, on different grids.
    """
    common_frame(detections.volume, truth.volume, truth.subject)  # raises where the grids differ
    # A side without voxels and without rows found nothing, which an empty image says as well: then Dice and
    # volumes are defined.
    seen = detections.volume or _empty_like(truth.volume, len(detections.centers_mm))
    true = truth.volume or _empty_like(detections.volume, len(truth.centers_mm))
    dice = volume_difference = float("nan")
    if seen is None or true is None:
        predicted_mm = _elements_mm(seen, detections.centers_mm, rule)
        distance = center_distances(predicted_mm, _elements_mm(true, truth.centers_mm, rule))
        found = match_nearest(distance, rule.limit, _near_ignored(predicted_mm, truth, rule))
    else:
        predicted, n_predicted = components(seen.labels > 0, rule.connectivity)
        reference, n_reference = components(true.labels > 0, rule.connectivity)
        index = centers_index(predicted, n_predicted)
        distance = center_distances(
            index * true.spacing_mm, centers_index(reference, n_reference) * true.spacing_mm
        )
        near_ignored = _near_ignored(apply_affine(seen.affine, index), truth, rule)
        found = match_nearest(distance, rule.limit, near_ignored)
        dice = _mean_dice(predicted, reference, found)
        volume_difference = abs(soft_volume_mm3(seen) - soft_volume_mm3(true))
    lesions = len(found.found)
    return ValdoCase(
        match=found,
        # NaN without lesions; the denominator is FN + FP + 2 TP
        f1=2 * found.tp / (lesions + found.tp + found.fp) if lesions else float("nan"),
        dice=dice,
        count_difference=abs(int(found.counted.sum()) - lesions),
        volume_difference_mm3=volume_difference,
    )


def soft_volume_mm3(volume: LabeledVolume) -> float:
    """Sum of the stored values over the lesions' voxels, times the volume of a voxel."""
    inside = volume.labels > 0
    total = inside.sum() if volume.values is None else volume.values[inside].sum(dtype=np.float64)
    return float(total * np.prod(volume.spacing_mm))


def _empty_like(other: LabeledVolume | None, rows: int) -> LabeledVolume | None:
    """An empty image for a side without voxels; None if that side has rows, which have no voxels to show."""
    if other is None or rows:
        return None
    return LabeledVolume(labels=np.zeros_like(other.labels), affine=other.affine)


def _near_ignored(predicted_mm: np.ndarray, truth: SubjectTruth, rule: Rule) -> np.ndarray:
    """(K,) bool: the element's center (K, 3) is nearer than the limit to an ignored lesion."""
    return np.any(center_distances(predicted_mm, truth.ignored_centers_mm) < rule.limit, axis=1)


def _elements_mm(volume: LabeledVolume | None, centers_mm: np.ndarray, rule: Rule) -> np.ndarray:
    """Centers (n, 3) in RAS mm of the elements of voxels, or else of the rows of a table."""
    if volume is None:
        return centers_mm
    return apply_affine(volume.affine, centers_index(*components(volume.labels > 0, rule.connectivity)))


def _mean_dice(predicted: np.ndarray, reference: np.ndarray, found: Match) -> float:
    """Mean Dice of the matched elements, by their labels in two images of one shape."""
    if not len(found.found):
        return float("nan")
    rows = np.flatnonzero(found.lesion >= 0)
    if not len(rows):
        return 0.0
    # a table of shared voxels for all pairs of elements at once, label 0 included
    both = (predicted > 0) & (reference > 0)
    shared = np.zeros((len(found.lesion) + 1, len(found.found) + 1), int)
    np.add.at(shared, (predicted[both], reference[both]), 1)
    size_predicted, size_reference = np.bincount(predicted.ravel()), np.bincount(reference.ravel())
    p, r = rows + 1, found.lesion[rows] + 1
    return float(np.mean(2.0 * shared[p, r] / (size_predicted[p] + size_reference[r])))
