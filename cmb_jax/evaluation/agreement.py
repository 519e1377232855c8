"""Do program and truth agree on the number of microbleeds of a scan?"""

from __future__ import annotations

import dataclasses

import numpy as np


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
