"""Which detection is which lesion: the matching rules, as pure functions of one subject. K x M pairs.

Every rule first says which pairs may match (`Pairs`), then how pairs are chosen:

* one to one (center distance, box overlap): as many matches as possible, and among those the least total
  cost; a second detection on one lesion is a false positive;
* any (touch): a lesion is found if any detection touches it, a detection is a false positive if it touches
  no lesion; two detections on one lesion are neither punished nor rewarded.

Truth may hold lesions that are ignored, because no reader would see them for sure. They are never missed, and
a detection on one of them that is no hit of another lesion is left out of the count, as in COCO (Lin et al.
2014): it is `excused`. Where one lesion could be matched to an excused or to another detection, the other is
taken, so that an ignored lesion can take away false positives and never adds one.

The VALDO challenge's own rule is neither and lives in `evaluation.valdo`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.volumes import boxes_in_frame, common_frame, covered_labels, overlap_labels


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
    excused: np.ndarray | None = None  # (K,) bool: on an ignored lesion, no false positive; None: none is

    @property
    def is_excused(self) -> np.ndarray:
        """(K,) bool."""
        return np.zeros(len(self.allowed), bool) if self.excused is None else self.excused

    def with_excused(self, also: np.ndarray) -> Pairs:
        """The same pairs with further detections (K,) bool excused."""
        return dataclasses.replace(self, excused=self.is_excused | also)

    def of_lesions(self, keep: np.ndarray) -> Pairs:
        """The pairs of some lesions alone, (M,) bool; all others are ignored."""
        others = np.any(self.allowed[:, ~keep], axis=1)
        kept = dataclasses.replace(self, allowed=self.allowed[:, keep], cost=self.cost[:, keep])
        return kept.with_excused(np.asarray(others))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """The outcome in one subject."""

    lesion: np.ndarray  # (K,) int, index of the lesion that a detection was matched to, -1 if none
    false_positive: np.ndarray  # (K,) bool; neither matched nor false: left out of the count
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
    """The pairs that a rule allows in one subject.

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
    """(K,) bool: the detection would be a hit of an ignored lesion, were it none.

    Ignored lesions have no voxels of their own: they are the spheres of their centers and diameters.
    """
    if not len(truth.ignored_centers_mm):
        return np.zeros(len(detections.centers_mm), bool)
    ignored = SubjectTruth(
        subject=truth.subject,
        centers_mm=truth.ignored_centers_mm,
        diameters_mm=truth.ignored_diameters_mm,
    )
    if rule.criterion == "box":
        return np.asarray(np.any(box_overlaps(detections, ignored) >= rule.limit, axis=1))
    if rule.criterion == "touch":
        return np.asarray(np.any(touching(detections, ignored), axis=1))
    distance = center_distances(detections.centers_mm, ignored.centers_mm)
    return np.asarray(np.any(distance < rule.limit, axis=1))


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
    """IoU (K, M) of the boxes of one subject, see `pairs_of`."""
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
    return _match_one_to_one(pairs) if pairs.one_to_one else _match_any(pairs)


def _match_one_to_one(pairs: Pairs) -> Match:
    k, m = pairs.allowed.shape
    lesion = np.full(k, -1)
    if k and m:
        # A match of an excused detection must always outweigh the costs of all others together, and one more
        # match all of that.
        penalty = 1.0 + pairs.cost[pairs.allowed].max(initial=0.0) * (min(k, m) + 1)
        bonus = penalty * (min(k, m) + 2)
        cost = pairs.cost + penalty * pairs.is_excused[:, None]
        rows, columns = linear_sum_assignment(np.where(pairs.allowed, cost - bonus, 0.0))
        chosen = pairs.allowed[rows, columns]
        lesion[rows[chosen]] = columns[chosen]
    found = np.zeros(m, bool)
    found[lesion[lesion >= 0]] = True
    return Match(lesion=lesion, false_positive=(lesion < 0) & ~pairs.is_excused, found=found)


def _match_any(pairs: Pairs) -> Match:
    k, m = pairs.allowed.shape
    lesion = np.full(k, -1)
    if m:
        nearest = np.where(pairs.allowed, pairs.cost, np.inf).argmin(axis=1)
        lesion = np.where(pairs.allowed.any(axis=1), nearest, -1)
    false_positive = (lesion < 0) & ~pairs.is_excused
    return Match(lesion=lesion, false_positive=false_positive, found=np.asarray(pairs.allowed.any(axis=0)))


def events(pairs: Pairs, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores at which a lesion is found for the first time, and scores of the false positives.

    With a falling threshold the number of matches of the best one-to-one matching never falls, and a new
    detection raises it by one or not at all (the sets of detections that can be matched form a transversal
    matroid: Edmonds & Fulkerson 1965). So one pass in the order of the scores, with augmenting paths (Kuhn
    1955), gives exactly the counts that matching anew at every threshold would give. False positives come
    from a pass over the detections that are not excused: by the same theory as many of them as can be matched
    among themselves are matched in some best matching of all.

    Args:
        pairs: of K detections and M lesions.
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


def _matched_in_turn(allowed: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(K,) bool: the detection raises the number of matches, taken in the order of the scores."""
    owner = np.full(allowed.shape[1], -1)
    true = np.zeros(len(scores), bool)
    for detection in np.argsort(-scores, kind="stable"):
        true[detection] = _augment(allowed, owner, int(detection), np.zeros(len(owner), bool))
    return true


def _augment(allowed: np.ndarray, owner: np.ndarray, detection: int, visited: np.ndarray) -> bool:
    """Find a lesion for a detection, moving others to their second choice where that frees one."""
    for lesion in np.flatnonzero(allowed[detection] & ~visited):
        if visited[lesion]:
            continue
        visited[lesion] = True
        if owner[lesion] < 0 or _augment(allowed, owner, int(owner[lesion]), visited):
            owner[lesion] = detection
            return True
    return False
