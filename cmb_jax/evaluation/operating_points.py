"""Thresholds to choose from, with what each gives on the scans that it was chosen on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, choose_threshold, froc_curve
from cmb_jax.evaluation.statistics import Counts, Estimate, bootstrap_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The highest sensitivity at no more than so many false positives per scan."""

    max_fp_per_scan: float
    threshold: float
    sensitivity: Estimate
    fp_per_scan: Estimate
    precision: Estimate


def above(events: FrocEvents, threshold: float) -> FrocEvents:
    """The events with a score of at least `threshold`; the scans stay."""
    inside = events.scores >= threshold
    return dataclasses.replace(
        events, scores=events.scores[inside], true=events.true[inside], subject=events.subject[inside]
    )


def operating_point(
    events: FrocEvents,
    max_fp_per_scan: float,
    *,
    complete_from: float = 0.0,
    samples: int = 2000,
    seed: int = 0,
) -> OperatingPoint | None:
    """The operating point by a limit on the false positives, with 95 % intervals over scans.

    The intervals are of the threshold as it is: that it was chosen on the same scans is not in them.

    Args:
        events: of S scans.
        max_fp_per_scan: the limit.
        complete_from: below this score detections may be missing from the lists: no threshold lies there.
        samples: resamples of the scans.
        seed: of the resampling.

    Returns:
        None if the lists end before the limit is reached.
    """
    known = above(events, complete_from)
    curve = froc_curve(known)
    if complete_from > 0.0 and not np.any(curve.fp_per_scan > max_fp_per_scan):
        return None
    threshold = choose_threshold(curve, max_fp_per_scan)
    found = bootstrap_counts(counts_at(known, threshold), samples=samples, seed=seed)
    return OperatingPoint(
        max_fp_per_scan=max_fp_per_scan,
        threshold=threshold,
        sensitivity=found["sensitivity"],
        fp_per_scan=found["fp_per_scan"],
        precision=found["precision"],
    )


def operating_table(
    events: FrocEvents,
    rates: Sequence[float] = FROC_RATES,
    *,
    complete_from: float = 0.0,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[OperatingPoint, ...]:
    """The operating points at several limits, those left out that the lists do not reach."""
    points = [
        operating_point(events, rate, complete_from=complete_from, samples=samples, seed=seed)
        for rate in rates
    ]
    return tuple(point for point in points if point is not None)


def counts_at(events: FrocEvents, threshold: float) -> Counts:
    """What a threshold gives in each scan."""
    reported = above(events, threshold)
    scans = len(events.lesions)
    return Counts(
        tp=np.bincount(reported.subject[reported.true], minlength=scans),
        fp=np.bincount(reported.subject[~reported.true], minlength=scans),
        lesions=events.lesions,
    )
