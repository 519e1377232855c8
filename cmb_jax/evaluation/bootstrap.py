"""Intervals by resampling scans with replacement (percentile bootstrap: Efron & Tibshirani 1993).

Scans, not lesions, are resampled: the lesions of one patient are not independent. A resample is a row of
weights, how often each scan was drawn; every metric is a function of weights, so that all resamples are
computed at once and two programs can be compared on the same resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, average_precision, last_of_ties, sensitivity_at

_ROWS_AT_ONCE = 100  # resamples: 40 MB for 50 000 scans


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric with its interval; NaN where it is undefined or was not asked for."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What an operating point gave in each of S scans."""

    tp: np.ndarray  # (S,) int, lesions found
    fp: np.ndarray  # (S,) int
    lesions: np.ndarray  # (S,) int


METRICS: tuple[str, ...] = ("sensitivity", "fp_per_scan", "precision", "f1")


def resample_weights(scans: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of scans with replacement as weights, in blocks (rows, scans) with `samples` rows in all."""
    rng = np.random.default_rng(seed)
    for start in range(0, samples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, samples - start)
        yield rng.multinomial(scans, np.full(scans, 1.0 / scans), size=rows)


def count_metrics(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """The `METRICS` (B, 4) of weighted scans; NaN where a denominator is 0.

    Args:
        counts: of S scans.
        weights: (B, S).
    """
    tp, fp, lesions = (weights @ part for part in (counts.tp, counts.fp, counts.lesions))
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = (tp / lesions, fp / weights.sum(axis=1), tp / (tp + fp), 2 * tp / (lesions + tp + fp))
    return np.stack(columns, axis=1)


def froc_metrics(events: FrocEvents, weights: np.ndarray, rates: Sequence[float] = FROC_RATES) -> np.ndarray:
    """Sensitivity at the rates and, last, average precision of weighted scans, (B, R + 1).

    Args:
        events: of S scans.
        weights: (B, S).
        rates: R false positives per scan.
    """
    result = np.full((len(weights), len(rates) + 1), np.nan)
    for row, tp, fp, lesions, scans in _resampled_curves(events, weights):
        result[row, :-1] = sensitivity_at(fp / scans, tp / lesions, rates)
        result[row, -1] = average_precision(tp, fp, lesions)
    return result


def fp_at_sensitivity(events: FrocEvents, weights: np.ndarray, sensitivity: float) -> np.ndarray:
    """The fewest false positives per scan (B,) at which weighted scans reach a sensitivity.

    NaN where it is not reached at any threshold. The curve is a staircase: the threshold that first reaches
    the sensitivity counts, nothing is interpolated.

    Args:
        events: of S scans.
        weights: (B, S).
        sensitivity: above 0, at most 1.
    """
    result = np.full(len(weights), np.nan)
    for row, tp, fp, lesions, scans in _resampled_curves(events, weights):
        # a share of lesions is compared as a count, with room for rounding
        first = int(np.searchsorted(tp, sensitivity * lesions - 1e-9))
        if first < len(tp):
            result[row] = fp[first] / scans
    return result


def _resampled_curves(
    events: FrocEvents, weights: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int, int]]:
    """Row, counts tp and fp (P,) at falling thresholds, lesions and scans of the resamples with lesions."""
    ends = last_of_ties(events.scores)
    lesions = weights @ events.lesions
    scans = weights.sum(axis=1)
    for row in np.flatnonzero(lesions):  # one row at a time: a large cohort has millions of events
        drawn = weights[row, events.subject]
        counted = np.cumsum(drawn)[ends]
        tp = np.cumsum(drawn * events.true)[ends]
        yield int(row), tp, counted - tp, int(lesions[row]), int(scans[row])


def estimates(
    values: np.ndarray, resampled: np.ndarray | None, *, confidence: float = 0.95
) -> list[Estimate]:
    """Percentile intervals of N metrics.

    Args:
        values: (N,) of the scans themselves.
        resampled: (B, N), or None for no intervals. Resamples in which a metric is undefined are left out.
        confidence: of the two-sided interval.
    """
    if resampled is None or not len(resampled):
        return [Estimate(float(value)) for value in values]
    tail = 50.0 * (1.0 - confidence)
    result = []
    for value, column in zip(values, resampled.T, strict=True):
        column = column[np.isfinite(column)]
        low, high = np.percentile(column, [tail, 100.0 - tail]) if len(column) else (np.nan, np.nan)
        result.append(Estimate(float(value), float(low), float(high)))
    return result


def bootstrap_counts(counts: Counts, *, samples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """The `METRICS` by name with 95 % intervals."""
    scans = len(counts.lesions)
    value = count_metrics(counts, np.ones((1, scans), int))[0]
    resampled = [count_metrics(counts, weights) for weights in resample_weights(scans, samples, seed)]
    return dict(zip(METRICS, estimates(value, _stack(resampled)), strict=True))


def bootstrap_froc(
    events: FrocEvents, *, rates: Sequence[float] = FROC_RATES, samples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Sensitivity at the rates and, last, average precision, with 95 % intervals."""
    scans = len(events.lesions)
    value = froc_metrics(events, np.ones((1, scans), int), rates)[0]
    resampled = [froc_metrics(events, weights, rates) for weights in resample_weights(scans, samples, seed)]
    return estimates(value, _stack(resampled))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Program A minus program B on the same scans."""

    difference: Estimate
    p_value: float  # two-sided; NaN if the difference is undefined in every resample


def paired_bootstrap(
    a: Counts, b: Counts, *, samples: int = 2000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Differences of the `METRICS` of two programs that read the same scans in the same order.

    The p value is twice the smaller share of resamples whose difference lies at or beyond 0, at least
    2 / (samples + 1).

    Args:
        a: counts of the first program.
        b: of the second; `lesions` must be equal.
        samples: resamples, each applied to both.
        seed: of the resampling.
    """
    scans = _same_scans(a.lesions, b.lesions)
    found = _differences(
        lambda weights: count_metrics(a, weights) - count_metrics(b, weights), scans, samples, seed
    )
    return dict(zip(METRICS, found, strict=True))


def paired_bootstrap_froc(
    a: FrocEvents, b: FrocEvents, *, rates: Sequence[float] = FROC_RATES, samples: int = 2000, seed: int = 0
) -> list[PairedDifference]:
    """Differences of the sensitivity at the rates and, last, of average precision; see `paired_bootstrap`.

    Args:
        a: events of the first program.
        b: of the second, on the same scans in the same order; `lesions` must be equal.
        rates: false positives per scan.
        samples: resamples, each applied to both.
        seed: of the resampling.
    """
    scans = _same_scans(a.lesions, b.lesions)
    return _differences(
        lambda weights: froc_metrics(a, weights, rates) - froc_metrics(b, weights, rates),
        scans,
        samples,
        seed,
    )


def _same_scans(a: np.ndarray, b: np.ndarray) -> int:
    """The number of scans, if both sides count the same lesions in each."""
    if not np.array_equal(a, b):
        raise ValueError("paired comparison needs the same scans in the same order")
    return len(a)


def _differences(
    difference: Callable[[np.ndarray], np.ndarray], scans: int, samples: int, seed: int
) -> list[PairedDifference]:
    """N differences with intervals and p values; `difference` takes weights (B, scans) to (B, N)."""
    value = difference(np.ones((1, scans), int))[0]
    resampled = np.concatenate([difference(weights) for weights in resample_weights(scans, samples, seed)])
    return paired_differences(value, resampled)


def paired_differences(value: np.ndarray, resampled: np.ndarray) -> list[PairedDifference]:
    """Intervals and two-sided p values of N differences, see `paired_bootstrap`.

    Args:
        value: (N,) of the scans themselves.
        resampled: (B, N); resamples in which a difference is undefined are left out.
    """
    result = []
    for estimate, column in zip(estimates(value, resampled), resampled.T, strict=True):
        column = column[np.isfinite(column)]
        tails = (np.count_nonzero(column <= 0), np.count_nonzero(column >= 0))
        p_value = min(1.0, 2.0 * (min(tails) + 1) / (len(column) + 1)) if len(column) else float("nan")
        result.append(PairedDifference(difference=estimate, p_value=p_value))
    return result


def _stack(blocks: list[np.ndarray]) -> np.ndarray | None:
    return np.concatenate(blocks) if blocks else None
