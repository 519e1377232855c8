"""Free-response ROC: sensitivity against false positives per scan, over all thresholds.

The denominator of the false positives is the number of all scans, including those without any microbleed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# False positives per scan at which the sensitivity is read (as in LUNA16: Setio et al. 2017).
FROC_RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrocEvents:
    """What each detection of S scans adds as the threshold falls. E events."""

    scores: np.ndarray  # (E,) float, descending
    true: np.ndarray  # (E,) bool: one more lesion is found; otherwise there is one more false positive
    subject: np.ndarray  # (E,) int, index of the scan
    lesions: np.ndarray  # (S,) int, true lesions of each scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrocCurve:
    """Counts at every distinct threshold, descending; a detection counts if its score >= threshold."""

    thresholds: np.ndarray  # (P,)
    tp: np.ndarray  # (P,) int, lesions found
    fp: np.ndarray  # (P,) int
    lesions: int
    scans: int

    @property
    def sensitivity(self) -> np.ndarray:
        """(P,) lesions found over lesions; NaN if there is none."""
        return self.tp / self.lesions if self.lesions else np.full(len(self.tp), np.nan)

    def corners(self) -> np.ndarray:
        """Indices of the points that suffice to draw it: before and after every rise, and the last one."""
        rises = np.flatnonzero(np.diff(self.tp, prepend=0))
        last = np.arange(len(self.tp))[-1:]
        return np.unique(np.concatenate([rises, np.maximum(rises - 1, 0), last]))

    @property
    def fp_per_scan(self) -> np.ndarray:
        """(P,) false positives over scans."""
        return self.fp / self.scans


def collect_events(
    events: Sequence[tuple[np.ndarray, np.ndarray]], lesions: Sequence[int] | np.ndarray
) -> FrocEvents:
    """Join the events of the scans, see `matching.events`.

    Args:
        events: a scan's (T,) scores of lesions found and (F,) scores of false positives.
    """
    if len(events) != len(lesions) or not len(lesions):
        raise ValueError("one pair of events for every scan, and at least one scan")
    # One list of all events with the scan of each, best first: every curve, threshold and resample of scans
    # is a running sum over it.
    scores = np.concatenate([part for pair in events for part in pair])
    true = np.concatenate([np.full(len(part), i == 0) for pair in events for i, part in enumerate(pair)])
    subject = np.concatenate([np.full(len(part), s) for s, pair in enumerate(events) for part in pair])
    order = np.argsort(-scores, kind="stable")
    return FrocEvents(
        scores=scores[order],
        true=true[order].astype(bool),
        subject=subject[order].astype(int),
        lesions=np.asarray(lesions, int),
    )


def last_of_ties(scores: np.ndarray) -> np.ndarray:
    """Indices (P,) of the last event of every distinct score in descending scores (E,)."""
    if not len(scores):
        return np.zeros(0, int)
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def froc_curve(events: FrocEvents) -> FrocCurve:
    """The curve; detections of equal score enter together."""
    ends = last_of_ties(events.scores)
    return FrocCurve(
        thresholds=events.scores[ends],
        tp=np.cumsum(events.true)[ends],
        fp=np.cumsum(~events.true)[ends],
        lesions=int(events.lesions.sum()),
        scans=len(events.lesions),
    )


def sensitivity_at(
    fp_per_scan: np.ndarray, sensitivity: np.ndarray, rates: Sequence[float] = FROC_RATES
) -> np.ndarray:
    """Sensitivity (R,) at given false positives per scan, linear between the curve's points.

    The curve starts at (0, 0) and stays at its last value beyond its end: the convention of CAMELYON16,
    LUNA16 and MONAI, so that numbers can be compared with published ones.

    Args:
        fp_per_scan: (P,) rising.
        sensitivity: (P,) rising.
        rates: R false positives per scan.
    """
    return np.interp(rates, np.append(0.0, fp_per_scan), np.append(0.0, sensitivity))


def average_precision(tp: np.ndarray, fp: np.ndarray, lesions: int) -> float:
    """Area under the precision-recall curve as a sum of steps, sum (R_n - R_(n-1)) P_n, not interpolated.

    Args:
        tp: (P,) lesions found at falling thresholds.
        fp: (P,) false positives.
        lesions: true lesions; 0 gives NaN.
    """
    if not lesions:
        return float("nan")
    precision = tp / np.maximum(tp + fp, 1)
    return float(np.sum(np.diff(tp, prepend=0) / lesions * precision))


def choose_threshold(curve: FrocCurve, max_fp_per_scan: float | None = None, fallback: float = 0.5) -> float:
    """An operating point, to be chosen on validation scans, never on test scans.

    Without a limit: the threshold with the best F1. With one: the highest sensitivity among those with
    at most that many false positives per scan. Ties go to fewer false positives, then to the higher
    threshold. The threshold is put halfway to the next lower score, so that rounding a score in a file
    does not change what is kept.

    Args:
        fallback: returned when there is no lesion or no detection.
    """
    if not curve.lesions or not len(curve.thresholds):
        return fallback
    if max_fp_per_scan is None:
        merit = 2 * curve.tp / (curve.lesions + curve.tp + curve.fp)
        possible = np.ones(len(merit), bool)
    else:
        merit = curve.tp
        possible = curve.fp_per_scan <= max_fp_per_scan
    if not possible.any():
        return _above_all(curve)
    # lexsort's last key comes first: possible ones, then most merit, then fewest false positives; it is
    # stable, so that among equals the highest threshold stays in front
    order = np.lexsort((curve.fp, -merit, ~possible))
    return _just_below(curve, int(order[0]))


def threshold_at_fp_rate(curve: FrocCurve, fp_per_scan: float) -> float:
    """The lowest threshold with at most that many false positives per scan; 0.5 without any detection.

    For validation scans with too few lesions for `choose_threshold`: false positives are many, and no lesions
    are needed to count them.
    """
    if not len(curve.thresholds):
        return 0.5
    possible = np.flatnonzero(curve.fp_per_scan <= fp_per_scan)
    return _just_below(curve, int(possible[-1])) if len(possible) else _above_all(curve)


def _above_all(curve: FrocCurve) -> float:
    """A threshold at which nothing is reported."""
    return float(np.nextafter(curve.thresholds[0], np.inf))


def _just_below(curve: FrocCurve, best: int) -> float:
    """Halfway between a point's score and the next lower one."""
    chosen, *lower = curve.thresholds[best : best + 2].tolist()
    middle = 0.5 * (chosen + lower[0]) if lower else chosen
    # between neighboring floats there is no middle: it may be rounded down to the lower score
    return middle if not lower or middle > lower[0] else chosen
