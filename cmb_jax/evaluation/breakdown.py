"""Where a program is strong and weak: sensitivity by kind of lesion, false positives by cause, cost of
rules."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from nibabel.affines import apply_affine
from scipy.spatial import cKDTree

from cmb_jax.anatomy.regions import Region, Zone
from cmb_jax.evaluation.matching import Rule, match, pairs_of
from cmb_jax.evaluation.records import CANDIDATE, REJECTED, MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import Estimate, estimates, resampled, wilson

# Edges of the size classes in mm, of the diameter as seen; 5 mm is the border of BOMBS (Cordonnier 2009).
SIZE_EDGES_MM: tuple[float, ...] = (2.0, 3.0, 5.0, 10.0)
# Edges of the contrast-to-noise classes.
CNR_EDGES: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0)
MIMIC_REACH_MM = 2.0
UNNAMED = "none"  # a false positive with no known mimic near it
UNKNOWN = "unknown"  # the truth does not say
WITH_PHASE, ALONE = "with phase", "magnitude alone"
NO_REASON = "no reason given"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionGroup:
    """Sensitivity in one group of lesions."""

    group: str
    found: int
    lesions: int
    sensitivity: Estimate  # Wilson 95 % interval, lesions taken as independent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Sensitivity by one property."""

    by: str  # a key of GROUP_ORDER
    groups: tuple[LesionGroup, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalsePositiveGroup:
    """False positives of one name."""

    group: str
    count: int
    per_scan: Estimate  # 95 % interval over resampled scans


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceAgreement:
    """Are the lesions that were found also assigned to the right place?"""

    matched: int
    zone: Estimate  # share with the true zone, Wilson 95 % interval
    region: Estimate


def class_names(edges: Sequence[float], unit: str = "") -> tuple[str, ...]:
    """Names of the classes between edges, from below the first to above the last."""
    last = f"{edges[-1]:g}{unit} and more"
    middle = [f"{low:g} to {high:g}{unit}" for low, high in itertools.pairwise(edges)]
    return (f"below {edges[0]:g}{unit}", *middle, last)


def classify(values: np.ndarray, edges: Sequence[float], unit: str = "") -> tuple[str, ...]:
    """The class name of each value; a value on an edge belongs to the class above."""
    names = class_names(edges, unit)
    return tuple(names[i] for i in np.searchsorted(edges, values, side="right"))


def phase_group(truth: SubjectTruth) -> str | None:
    """Whether the scan has a phase, in words; None where the truth does not say."""
    return {True: WITH_PHASE, False: ALONE, None: None}[truth.has_phase]


def lesion_groups(truth: SubjectTruth) -> dict[str, tuple[str, ...]]:
    """The group (M,) of each lesion by every property that the truth knows."""
    of_scan = {"protocol": truth.protocol, "tier": truth.tier, "phase": phase_group(truth)}
    groups = {
        "zone": truth.zones,
        "region": truth.regions,
        "size_mm": classify(truth.seen_diameters_mm, SIZE_EDGES_MM, " mm"),
        "cnr": None if truth.cnr is None else classify(truth.cnr, CNR_EDGES),
        **{by: None if name is None else (name,) * len(truth.centers_mm) for by, name in of_scan.items()},
    }
    return {by: names for by, names in groups.items() if names is not None}


GROUP_ORDER: dict[str, tuple[str, ...]] = {
    "zone": tuple(zone.name.lower() for zone in Zone),
    "region": tuple(region.name.lower() for region in Region),
    "size_mm": class_names(SIZE_EDGES_MM, " mm"),
    "cnr": class_names(CNR_EDGES),
    "protocol": (),
    "tier": (),
    "phase": (WITH_PHASE, ALONE),
}


def sensitivity_breakdowns(
    subjects: Iterable[tuple[dict[str, tuple[str, ...]], np.ndarray]],
) -> tuple[Breakdown, ...]:
    """Sensitivity by each property of `GROUP_ORDER` that the truth knows.

    Args:
        subjects: for each scan its `lesion_groups` and which lesions were found, (M,) bool.
    """
    lesions: dict[str, Counter[str]] = {by: Counter() for by in GROUP_ORDER}
    found: dict[str, Counter[str]] = {by: Counter() for by in GROUP_ORDER}
    for groups, flags in subjects:
        for by in GROUP_ORDER:
            names = groups.get(by, (UNKNOWN,) * len(flags))
            lesions[by].update(names)
            found[by].update(name for name, flag in zip(names, flags, strict=True) if flag)
    return tuple(
        Breakdown(
            by=by,
            groups=tuple(
                LesionGroup(
                    group=group,
                    found=found[by][group],
                    lesions=lesions[by][group],
                    sensitivity=wilson(found[by][group], lesions[by][group]),
                )
                for group in _ordered(by, lesions[by])
            ),
        )
        for by in GROUP_ORDER
        if set(lesions[by]) - {UNKNOWN}
    )


def place_agreement(
    detections: SubjectDetections, truth: SubjectTruth, lesion: np.ndarray
) -> tuple[int, int, int] | None:
    """Matches, and those with the true zone and with the true region; None if a side names no places.

    Args:
        detections: K.
        lesion: (K,) index of the matched lesion, -1 for none.
    """
    if detections.zones is None or detections.regions is None or truth.zones is None or truth.regions is None:
        return None
    pairs = [(row, int(other)) for row, other in enumerate(lesion) if other >= 0]
    zones = sum(detections.zones[row] == truth.zones[other] for row, other in pairs)
    regions = sum(detections.regions[row] == truth.regions[other] for row, other in pairs)
    return len(pairs), zones, regions


def join_places(scans: Sequence[tuple[int, int, int] | None]) -> PlaceAgreement | None:
    """Pool `place_agreement` over the scans that have one."""
    known = [scan for scan in scans if scan is not None]
    if not known:
        return None
    matched, zones, regions = (sum(column) for column in zip(*known, strict=True))
    return PlaceAgreement(matched=matched, zone=wilson(zones, matched), region=wilson(regions, matched))


def _ordered(by: str, names: Iterable[str]) -> list[str]:
    """Known names in the order of their enum or class, then the others in alphabetical order."""
    order = GROUP_ORDER[by]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def name_by_mimic(points_mm: np.ndarray, mimics: MimicMap) -> list[str]:
    """The kind of the mimic whose voxel center is nearest to each point, `UNNAMED` beyond `MIMIC_REACH_MM`.

    Args:
        points_mm: (N, 3) RAS mm.
    """
    voxels = np.argwhere(mimics.codes > 0)
    if not len(voxels) or not len(points_mm):
        return [UNNAMED] * len(points_mm)
    # a tree of all labeled voxels: mimics are long (veins) and have no useful center
    distances, nearest = cKDTree(apply_affine(mimics.affine, voxels)).query(points_mm)
    codes = mimics.codes[tuple(voxels[nearest].T)]
    return [
        mimics.names.get(int(code), f"code {int(code)}") if distance <= MIMIC_REACH_MM else UNNAMED
        for code, distance in zip(codes, distances, strict=True)
    ]


def false_positive_groups(
    scans: Sequence[Sequence[str]], *, samples: int = 2000, seed: int = 0
) -> tuple[FalsePositiveGroup, ...]:
    """Count the names of the false positives, the most frequent first.

    Args:
        scans: the names of each of S scans.
    """
    counts = [Counter(names) for names in scans]
    ranked = sorted(sum(counts, Counter[str]()).items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return ()
    table = np.array([[count[name] for name, _ in ranked] for count in counts])
    rates = estimates(
        table.mean(axis=0),
        resampled(lambda weights: weights @ table / len(scans), len(scans), samples, seed),
    )
    return tuple(
        FalsePositiveGroup(group=name, count=n, per_scan=rate)
        for (name, n), rate in zip(ranked, rates, strict=True)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionRule:
    """One reason for rejection, over all scans; only candidates that would have been reported count."""

    reason: str
    true_lost: int
    lost_share: Estimate  # of all true lesions, Wilson 95 % interval
    false_removed: int
    false_removed_per_scan: float


def rejected_by_reason(
    detections: SubjectDetections,
    truth: SubjectTruth,
    found: np.ndarray,
    rule: Rule,
    threshold: float | None,
) -> Counter[tuple[str, bool]]:
    """How many rejected candidates of one scan have each (reason, is a true lesion).

    Only those count that would have been reported: by their score, or, where the program chose the operating
    point itself, those that score higher than every candidate below it. True are those that match a lesion
    which no reported detection matches; those on ignored lesions are left out.

    Args:
        detections: of the scan, the rejected among them.
        truth: M lesions of the same scan.
        found: (M,) bool, lesions matched by reported detections.
        threshold: operating point of the score, None for the program's own.
    """
    if detections.status is None:
        return Counter()
    # what a rule of place removed would often not have been reported anyway: that costs nothing
    status = np.array(detections.status)
    below = detections.scores[status == CANDIDATE]
    if threshold is None:
        reported = detections.scores > below.max(initial=-np.inf)
    else:
        reported = detections.scores >= threshold
    rejected = detections.select((status == REJECTED) & reported)
    # A lesion that is found anyway is not lost by a rejection: a rejected candidate on it, even a correct
    # one, is a duplicate. Lesions that are found are therefore out of reach here.
    pairs = pairs_of(rule, rejected, truth)
    outcome = match(dataclasses.replace(pairs, allowed=pairs.allowed & ~found))
    reasons = rejected.reasons or ("",) * len(outcome.lesion)
    return Counter(
        (reasons[row] or NO_REASON, bool(outcome.lesion[row] >= 0)) for row in np.flatnonzero(outcome.counted)
    )


def rejection_rules(
    scans: Iterable[Counter[tuple[str, bool]]], lesions: int, count: int
) -> tuple[RejectionRule, ...]:
    """Pool `rejected_by_reason` over `count` scans that have `lesions`; the rule that removes most first."""
    total = sum(scans, Counter[tuple[str, bool]]())
    reasons = sorted({reason for reason, _ in total}, key=lambda reason: (-total[reason, False], reason))
    return tuple(
        RejectionRule(
            reason=reason,
            true_lost=total[reason, True],
            lost_share=wilson(total[reason, True], lesions),
            false_removed=total[reason, False],
            false_removed_per_scan=total[reason, False] / count,
        )
        for reason in reasons
    )
