"""Estimates with their uncertainty: intervals over resampled scans, paired differences, agreement.

Scans, not lesions, are resampled with replacement (percentile bootstrap: Efron & Tibshirani 1993), because
the lesions of one patient are not independent. A resample is a row of weights, how often each scan was drawn;
every metric is a function of weights, so that all resamples are computed at once and two programs can be
compared on the same resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, average_precision, last_of_ties, sensitivity_at

_ROWS_AT_ONCE = 100  # resamples: 40 MB for 50 000 scans
_TAIL = 50.0 * (1.0 - 0.95)  # percent of the resamples beyond each end of an interval


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; NaN where it is undefined or was not asked for."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What an operating point gives in each of S scans."""

    tp: np.ndarray  # (S,) int, lesions found
    fp: np.ndarray  # (S,) int
    lesions: np.ndarray  # (S,) int


# Of an operating point, in the order of `count_metrics`.
METRICS: tuple[str, ...] = ("sensitivity", "fp_per_scan", "precision", "f1")


def estimate_text(estimate: Estimate | None, digits: int = 3) -> str:
    """Value and interval, as in `0.923 [0.881, 0.954]`; a dash where it is undefined."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    text = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.low):
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def wilson(successes: int, trials: int) -> Estimate:
    """A proportion with its 95 % interval (Wilson 1927)."""
    from scipy.stats import binomtest

    if not trials:
        return Estimate(float("nan"))
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def resample_weights(scans: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of scans with replacement as weights, in blocks (rows, scans) with `samples` rows in all."""
    rng = np.random.default_rng(seed)
    for start in range(0, samples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, samples - start)
        yield rng.multinomial(scans, np.full(scans, 1.0 / scans), size=rows)


def resampled(
    metric: Callable[[np.ndarray], np.ndarray], scans: int, samples: int, seed: int
) -> np.ndarray | None:
    """N metrics of resampled scans, (samples, N), by a `metric` that takes weights (B, scans) to (B, N)."""
    blocks = [metric(weights) for weights in resample_weights(scans, samples, seed)]
    return np.concatenate(blocks) if blocks else None


def estimates(values: np.ndarray, resamples: np.ndarray | None) -> list[Estimate]:
    """N metrics with their 95 % percentile intervals.

    Args:
        values: (N,) of the scans themselves.
        resamples: (B, N), or None for no intervals. Resamples in which a metric is undefined are left out.
    """
    if resamples is None or not len(resamples):
        return [Estimate(float(value)) for value in values]
    result = []
    for value, column in zip(values, resamples.T, strict=True):
        column = column[np.isfinite(column)]
        low, high = np.percentile(column, [_TAIL, 100.0 - _TAIL]) if len(column) else (np.nan, np.nan)
        result.append(Estimate(float(value), float(low), float(high)))
    return result


def count_metrics(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """The `METRICS` (B, 4) of weighted scans; NaN where a denominator is 0.

    Args:
        weights: (B, S).
    """
    # sums over the resampled scans, not means of ratios: a scan without lesions has no sensitivity of its own
    tp, fp, lesions = (weights @ part for part in (counts.tp, counts.fp, counts.lesions))
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = (tp / lesions, fp / weights.sum(axis=1), tp / (tp + fp), 2 * tp / (lesions + tp + fp))
    return np.stack(columns, axis=1)


def froc_metrics(events: FrocEvents, weights: np.ndarray, rates: Sequence[float] = FROC_RATES) -> np.ndarray:
    """Sensitivity at the rates and, last, average precision of weighted scans, (B, R + 1).

    Args:
        weights: (B, S).
        rates: R false positives per scan.
    """
    result = np.full((len(weights), len(rates) + 1), np.nan)
    for row, tp, fp, lesions, scans in _weighted_curves(events, weights):
        result[row, :-1] = sensitivity_at(fp / scans, tp / lesions, rates)
        result[row, -1] = average_precision(tp, fp, lesions)
    return result


def fp_at_sensitivity(events: FrocEvents, weights: np.ndarray, sensitivity: float) -> np.ndarray:
    """The fewest false positives per scan (B,) at which weighted scans reach a sensitivity.

    Where no threshold reaches it, those of the whole list: the least that it would take. The curve is a
    staircase: the first threshold that reaches the sensitivity counts, nothing is interpolated.

    Args:
        weights: (B, S).
        sensitivity: above 0, at most 1.
    """
    result = np.full(len(weights), np.nan)
    for row, tp, fp, lesions, scans in _weighted_curves(events, weights):
        # a share of lesions is compared as a count, with room for rounding
        first = int(np.searchsorted(tp, sensitivity * lesions - 1e-9))
        result[row] = fp[min(first, len(fp) - 1)] / scans if len(fp) else 0.0
    return result


def _weighted_curves(
    events: FrocEvents, weights: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int, int]]:
    """Row, counts tp and fp (P,) at falling thresholds, lesions and scans, for every row with lesions."""
    # A scan that was drawn twice counts twice, its lesions and its detections alike: its events get its
    # weight. So the events stay sorted by score for every resample, and a curve is two cumulative sums. One
    # row at a time, as a large cohort has millions of events.
    ends = last_of_ties(events.scores)
    lesions = weights @ events.lesions
    scans = weights.sum(axis=1)
    for row in np.flatnonzero(lesions):
        drawn = weights[row, events.subject]
        counted = np.cumsum(drawn)[ends]
        tp = np.cumsum(drawn * events.true)[ends]
        yield int(row), tp, counted - tp, int(lesions[row]), int(scans[row])


def bootstrap_counts(counts: Counts, *, samples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """The `METRICS` by name with 95 % intervals."""
    found = _with_intervals(lambda weights: count_metrics(counts, weights), counts.lesions, samples, seed)
    return dict(zip(METRICS, found, strict=True))


def bootstrap_froc(events: FrocEvents, *, samples: int = 2000, seed: int = 0) -> list[Estimate]:
    """Sensitivity at `FROC_RATES` and, last, average precision, with 95 % intervals."""
    return _with_intervals(lambda weights: froc_metrics(events, weights), events.lesions, samples, seed)


def _with_intervals(
    metric: Callable[[np.ndarray], np.ndarray], lesions: np.ndarray, samples: int, seed: int
) -> list[Estimate]:
    """N metrics of scans; `metric` takes weights (B, S) to (B, N)."""
    scans = len(lesions)
    return estimates(metric(np.ones((1, scans), int))[0], resampled(metric, scans, samples, seed))


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
    """
    found = _paired(
        lambda weights: count_metrics(a, weights) - count_metrics(b, weights),
        (a.lesions, b.lesions),
        samples,
        seed,
    )
    return dict(zip(METRICS, found, strict=True))


def paired_bootstrap_froc(
    a: FrocEvents, b: FrocEvents, *, rates: Sequence[float] = FROC_RATES, samples: int = 2000, seed: int = 0
) -> list[PairedDifference]:
    """Differences of the sensitivity at the rates and, last, of average precision; see `paired_bootstrap`."""
    return _paired(
        lambda weights: froc_metrics(a, weights, rates) - froc_metrics(b, weights, rates),
        (a.lesions, b.lesions),
        samples,
        seed,
    )


def _paired(
    difference: Callable[[np.ndarray], np.ndarray],
    lesions: tuple[np.ndarray, np.ndarray],
    samples: int,
    seed: int,
) -> list[PairedDifference]:
    """N differences with intervals and p values; `difference` takes weights (B, S) to (B, N)."""
    if not np.array_equal(*lesions):
        raise ValueError("paired comparison needs the same scans in the same order")
    scans = len(lesions[0])
    blocks = [difference(weights) for weights in resample_weights(scans, samples, seed)]
    return paired_differences(difference(np.ones((1, scans), int))[0], np.concatenate(blocks))


def paired_differences(value: np.ndarray, resamples: np.ndarray) -> list[PairedDifference]:
    """Intervals and two-sided p values of N differences, see `paired_bootstrap`.

    Args:
        value: (N,) of the scans themselves.
        resamples: (B, N); resamples in which a difference is undefined are left out.
    """
    result = []
    for estimate, column in zip(estimates(value, resamples), resamples.T, strict=True):
        column = column[np.isfinite(column)]
        # adding 1 to both counts keeps p above 0: the scans themselves are one more possible resample
        tails = (np.count_nonzero(column <= 0), np.count_nonzero(column >= 0))
        p_value = min(1.0, 2.0 * (min(tails) + 1) / (len(column) + 1)) if len(column) else float("nan")
        result.append(PairedDifference(difference=estimate, p_value=p_value))
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountAgreement:
    """Agreement of the counts of S scans; NaN where it is undefined."""

    icc: float  # ICC(2,1)
    bias: float  # mean of predicted - true
    limit_low: float  # Bland-Altman 95 % limits of agreement
    limit_high: float


def icc_2_1(ratings: np.ndarray) -> float:
    """ICC(2,1): two-way random effects, absolute agreement, single rating (Shrout & Fleiss 1979, p. 423).

    Args:
        ratings: (S, R) of S subjects by R raters.

    Returns:
        NaN with fewer than two subjects or raters, or if nothing varies.
    """
    ratings = np.asarray(ratings, np.float64)
    n, k = ratings.shape
    if n < 2 or k < 2:
        return float("nan")
    # mean squares of the two-way analysis of variance without replication
    mean = ratings.mean()
    subjects, raters = ratings.mean(axis=1), ratings.mean(axis=0)
    between = k * np.sum((subjects - mean) ** 2) / (n - 1)
    raters_ms = n * np.sum((raters - mean) ** 2) / (k - 1)
    residual = ratings - subjects[:, None] - raters[None, :] + mean
    error = np.sum(residual**2) / ((n - 1) * (k - 1))
    denominator = between + (k - 1) * error + k * (raters_ms - error) / n
    return float((between - error) / denominator) if denominator > 0 else float("nan")


def count_agreement(predicted: np.ndarray, true: np.ndarray) -> CountAgreement:
    """ICC(2,1) and Bland-Altman limits (Bland & Altman 1986: mean +- 1.96 sd of the differences).

    Args:
        predicted: (S,) counts.
        true: (S,) counts.
    """
    difference = np.asarray(predicted, np.float64) - np.asarray(true, np.float64)
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return CountAgreement(
        icc=icc_2_1(np.stack([predicted, true], axis=1)),
        bias=bias,
        limit_low=bias - spread,
        limit_high=bias + spread,
    )


def cohen_kappa(confusion: np.ndarray) -> np.ndarray:
    """Agreement of two raters beyond chance (Cohen 1960, Educ Psychol Meas 20:37), unweighted.

    Args:
        confusion: (..., C, C) counts, first rater by second.

    Returns:
        (...); NaN where nothing was rated, or where both used one category alone.
    """
    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(confusion, axis1=-2, axis2=-1) / total
        expected = (confusion.sum(axis=-1) * confusion.sum(axis=-2)).sum(axis=-1) / total**2
        return (observed - expected) / (1.0 - expected)
