"""What the rules of place cost and gain: true lesions lost and false positives removed, rule by rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

from cmb_jax.evaluation.bootstrap import Estimate
from cmb_jax.evaluation.breakdown import wilson
from cmb_jax.evaluation.matching import Rule, match, pairs_of
from cmb_jax.evaluation.records import CANDIDATE, REJECTED, SubjectDetections, SubjectTruth

NO_REASON = "no reason given"


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

    Counted are those that would have been reported: by their score, or, where the program chose the operating
    point itself, those that score more than every candidate it put below. True are those that match a lesion
    which nothing reported matches; those on ignored lesions are left out.

    Args:
        detections: of the scan, the rejected among them.
        truth: M lesions of the same scan.
        found: (M,) bool, lesions that what is reported matches.
        rule: a rule on pairs.
        threshold: operating point of the score, None for the program's own.
    """
    if detections.status is None:
        return Counter()
    status = np.array(detections.status)
    below = detections.scores[status == CANDIDATE]
    if threshold is None:
        reported = detections.scores > below.max(initial=-np.inf)
    else:
        reported = detections.scores >= threshold
    rejected = detections.select((status == REJECTED) & reported)
    pairs = pairs_of(rule, rejected, truth)
    outcome = match(dataclasses.replace(pairs, allowed=pairs.allowed & ~found))
    hits, counted = outcome.lesion >= 0, outcome.counted
    reasons = rejected.reasons or ("",) * len(hits)
    return Counter(
        (reason or NO_REASON, bool(hit))
        for reason, hit, counts in zip(reasons, hits, counted, strict=True)
        if counts
    )


def rejection_rules(
    scans: Iterable[Counter[tuple[str, bool]]], lesions: int, count: int
) -> tuple[RejectionRule, ...]:
    """Pool `rejected_by_reason` over `count` scans with so many lesions; the rule that removes most first."""
    total: Counter[tuple[str, bool]] = Counter()
    for scan in scans:
        total.update(scan)
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
