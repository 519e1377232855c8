"""Calibration: maps from a detector's score to a probability, and how they are fitted, chosen and evaluated.

Two maps are fitted to validation detections: a logistic curve in the score's logit with slope and offset
(Platt 1999; temperature scaling with a bias, Guo et al. 2017) and isotonic regression (Zadrozny & Elkan
2002). The one with the lower log loss on held-out scans is used.

Probabilities are evaluated by the expected calibration error: the mean over bins of |mean probability -
fraction of true detections|, weighted by the number of detections per bin (Naeini et al. 2015, AAAI; Guo et
al. 2017, ICML). It depends on the bins; we use 10, with equal numbers of detections and with equal widths.
With few detections, even perfect probabilities have an error above 0 by chance (Bröcker & Smith 2007, Weather
and Forecasting): `error_by_chance` gives its size.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_expit, logit

from cmb_jax.evaluation.froc import FrocEvents
from cmb_jax.evaluation.statistics import Estimate, estimates, resampled

FOLDS = 5
# Detections with at least this probability are called definite: at least four of five are microbleeds.
DEFINITE_PROBABILITY = 0.8
UNCALIBRATED = "uncalibrated"
# a knot is left out if the map changes by no more than this
KNOT_TOLERANCE = 0.005
# scores are written with four digits, so logits of more extreme values are meaningless
_LEAST = 1e-5
BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationMap:
    """A piecewise linear, nondecreasing map, stored with the weights; constant beyond its ends.

    Raises:
        ValueError: fewer than two knots, scores that do not increase, probabilities that decrease or leave
        0..1.
    """

    scores: tuple[float, ...]  # of the knots, increasing, 0..1
    probabilities: tuple[float, ...]  # that a detection with such a score is a true microbleed

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.probabilities) or len(self.scores) < 2:
            raise ValueError("a calibration map needs two knots or more, a probability for each score")
        if not all(a < b for a, b in itertools.pairwise(self.scores)):
            raise ValueError("the scores of a calibration map must rise")
        if not all(a <= b for a, b in itertools.pairwise((0.0, *self.probabilities, 1.0))):
            raise ValueError("the probabilities of a calibration map must not fall and must lie in 0..1")

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of scores (n,)."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)

    def score_at(self, probability: float) -> float:
        """The lowest score with at least this probability; infinite if no score has it."""
        knots = np.array(self.probabilities)
        if probability > knots[-1]:
            return math.inf
        upper = int(np.argmax(knots >= probability))
        if upper == 0:
            return 0.0  # the map is constant below its first knot
        low, high = knots[upper - 1], knots[upper]
        start, end = self.scores[upper - 1], self.scores[upper]
        return float(start + (probability - low) / (high - low) * (end - start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen map, and the performance of all maps on held-out scans."""

    method: str
    map: CalibrationMap
    log_loss: dict[str, float]  # held out, by method; `UNCALIBRATED`: of the score itself
    held_out: np.ndarray  # (E,) probability of each event, by a map fitted without the fold of its scan
    folds: int


def fit_platt(scores: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Nonnegative slope, and offset, of probability = sigmoid(slope * logit(score) + offset).

    The targets are Platt's, (n + 1) / (n + 2) and 1 / (m + 2) for n true and m false detections, which keeps
    the slope finite even if scores separate them perfectly.

    Args:
        scores: (E,) in 0..1.
        true: (E,) bool.
    """
    from scipy.optimize import minimize

    x, true = logit(np.clip(np.asarray(scores, np.float64), _LEAST, 1 - _LEAST)), np.asarray(true, bool)
    n, m = int(true.sum()), int((~true).sum())
    target = np.where(true, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        value = -(target * log_expit(z) + (1 - target) * log_expit(-z)).mean()
        error = expit(z) - target
        return float(value), np.array([(error * x).mean(), error.mean()])

    # The loss is convex in both parameters; the bound keeps the map nondecreasing if scores are
    # uninformative.
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )  # fmt: skip
    return float(found.x[0]), float(found.x[1])


def platt_map(scores: np.ndarray, true: np.ndarray) -> CalibrationMap:
    """The logistic curve as knots, see `fit_platt`."""
    slope, offset = fit_platt(scores, true)
    # evenly spaced in the logit, where the curve is a straight line: both steep ends get enough points
    grid = np.linspace(logit(_LEAST), logit(1 - _LEAST), 4001)
    return _with_few_knots(expit(grid), expit(slope * grid + offset))


def isotonic_map(scores: np.ndarray, true: np.ndarray) -> CalibrationMap:
    """Isotonic regression as knots: the ends of its steps, joined by straight lines.

    Probabilities keep a distance of 1 / (E + 2) from 0 and 1: E detections are no evidence for more.

    Args:
        scores: (E,) in 0..1.
        true: (E,) bool.
    """
    from scipy.optimize import isotonic_regression

    # isotonic regression needs increasing scores: equal ones are merged into one weighted point
    x, first, count = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(first, weights=np.asarray(true, float)) / count
    margin = 1.0 / (len(scores) + 2)
    y = np.clip(isotonic_regression(share, weights=count).x, margin, 1.0 - margin)
    if len(x) == 1:
        x, y = np.array([x[0], np.nextafter(x[0], 2.0)]), np.repeat(y, 2)
    return _with_few_knots(x, y)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], CalibrationMap]] = {
    "platt": platt_map,
    "isotonic": isotonic_map,
}


def log_loss(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Mean negative log likelihood, in nats."""
    p = np.clip(probabilities, _LEAST, 1 - _LEAST)
    return float(-np.where(true, np.log(p), np.log1p(-p)).mean())


def calibrate(events: FrocEvents, *, folds: int = FOLDS, seed: int = 0) -> Calibration:
    """Fit both maps, choose one by cross-validation over scans, and refit it on all scans.

    Args:
        events: true and false detections of S scans with their scores, see `matching.events`.
        folds: for the scans with detections; fewer if there are fewer scans.

    Raises:
        ValueError: fewer than two scans have a detection.
    """
    # Folds are split by scan, not by detection: detections of one scan are correlated, so a map would look
    # better on held-out data than on new scans. Scans without detections are left out, so that no fold is
    # empty.
    scores, true = events.scores, events.true
    names, scan = np.unique(events.subject, return_inverse=True)
    folds = min(folds, len(names))
    if folds < 2:
        raise ValueError("cross-validation over scans needs two scans with detections")
    fold = np.random.default_rng(seed).permutation(len(names))[scan] % folds
    held_out = {name: np.zeros(len(scores)) for name in METHODS}
    for name, fit in METHODS.items():
        for part in range(folds):
            inside = fold == part
            held_out[name][inside] = fit(scores[~inside], true[~inside]).probability(scores[inside])
    losses = {UNCALIBRATED: log_loss(scores, true)}
    losses |= {name: log_loss(found, true) for name, found in held_out.items()}
    method = min(METHODS, key=lambda name: losses[name])
    return Calibration(
        method=method,
        map=METHODS[method](scores, true),
        log_loss=losses,
        held_out=held_out[method],
        folds=folds,
    )


def _with_few_knots(x: np.ndarray, y: np.ndarray) -> CalibrationMap:
    """The curve through points (P,) of increasing x with fewer knots, accurate to `KNOT_TOLERANCE`.

    Adds the point with the largest error until none exceeds it (Ramer 1972; Douglas & Peucker 1973).
    """
    knots = [0, len(x) - 1]
    while True:
        off = np.abs(np.interp(x, x[knots], y[knots]) - y)
        worst = int(off.argmax())
        if off[worst] <= KNOT_TOLERANCE:
            break
        knots = sorted([*knots, worst])
    return CalibrationMap(scores=tuple(x[knots].tolist()), probabilities=tuple(y[knots].tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """A nonempty bin of detections of similar probability."""

    low: float  # the lowest and the highest probability in it
    high: float
    detections: int
    true: int
    mean_probability: float

    @property
    def share(self) -> float:
        """Fraction of true detections."""
        return self.true / self.detections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration of a set of detections."""

    detections: int
    true: int
    mean_probability: float
    bins: int  # number of bins; empty ones are not listed
    equal_mass: tuple[ReliabilityBin, ...]
    equal_width: tuple[ReliabilityBin, ...]
    ece_equal_mass: Estimate
    ece_equal_width: Estimate
    by_chance_equal_mass: float  # expected error of perfect probabilities
    by_chance_equal_width: float


def equal_mass_bins(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin (n,) of each detection; bins have equal numbers, and equal probabilities share a bin."""
    edges = np.quantile(probabilities, np.arange(1, bins) / bins)
    return np.searchsorted(edges, probabilities, side="right")


def equal_width_bins(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin (n,) of each detection, [k / bins, (k + 1) / bins); 1 belongs to the last bin."""
    return np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)


def calibration_error(probabilities: np.ndarray, true: np.ndarray, bin_of: np.ndarray) -> float:
    """Expected calibration error of n detections.

    Args:
        probabilities: (n,).
        true: (n,) bool.
        bin_of: (n,) int, see `equal_mass_bins` and `equal_width_bins`.
    """
    # (size of a bin / n) * |mean p - mean truth| = |sum of (p - truth)| / n
    gaps = np.bincount(bin_of, weights=np.asarray(probabilities) - np.asarray(true, float))
    return float(np.abs(gaps).sum() / len(bin_of))


def error_by_chance(probabilities: np.ndarray, bin_of: np.ndarray) -> float:
    """Expected calibration error of n detections if their probabilities were perfect.

    The gap of a bin is then a sum of independent terms with mean 0 and variance p (1 - p), nearly normal; the
    mean absolute value of a normal variable is sqrt(2 / pi) standard deviations.

    Args:
        probabilities: (n,).
        bin_of: (n,) int, as for `calibration_error`.
    """
    p = np.asarray(probabilities, float)
    deviation = np.sqrt(np.bincount(bin_of, weights=p * (1 - p)))
    return float(np.sqrt(2 / np.pi) * deviation.sum() / len(p))


def reliability(
    probabilities: np.ndarray,
    true: np.ndarray,
    subject: np.ndarray,
    scans: int,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Reliability | None:
    """Reliability of n detections; None if there are none.

    Args:
        probabilities: (n,).
        true: (n,) bool, whether each is a true lesion.
        subject: (n,) int, index of its scan.
        scans: number of scans, including those without detections.
        samples: resamples of the scans for the 95 % intervals; the bins stay fixed.
    """
    if not len(probabilities):
        return None
    # The gap of a bin is a sum over scans, so a resample of scans is a weighted sum, and all resamples
    # together are one matrix product.
    kinds = (equal_mass_bins(probabilities), equal_width_bins(probabilities))
    gaps = [_scan_gaps(probabilities, true, subject, scans, bin_of) for bin_of in kinds]
    counts = np.bincount(subject, minlength=scans)

    def errors(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # the error of a resample without detections is undefined
            return np.stack([np.abs(weights @ gap).sum(axis=1) / (weights @ counts) for gap in gaps], axis=1)

    values = np.array([calibration_error(probabilities, true, bin_of) for bin_of in kinds])
    mass, width = estimates(values, resampled(errors, scans, samples, seed))
    return Reliability(
        detections=len(probabilities),
        true=int(np.sum(true)),
        mean_probability=float(np.mean(probabilities)),
        bins=BINS,
        equal_mass=_bins(probabilities, true, kinds[0]),
        equal_width=_bins(probabilities, true, kinds[1]),
        ece_equal_mass=mass,
        ece_equal_width=width,
        by_chance_equal_mass=error_by_chance(probabilities, kinds[0]),
        by_chance_equal_width=error_by_chance(probabilities, kinds[1]),
    )


def _scan_gaps(
    probabilities: np.ndarray, true: np.ndarray, subject: np.ndarray, scans: int, bin_of: np.ndarray
) -> np.ndarray:
    """Sum of probability - truth by scan and bin, (scans, BINS)."""
    gap = np.asarray(probabilities) - np.asarray(true, float)
    return np.bincount(subject * BINS + bin_of, weights=gap, minlength=scans * BINS).reshape(scans, BINS)


def _bins(probabilities: np.ndarray, true: np.ndarray, bin_of: np.ndarray) -> tuple[ReliabilityBin, ...]:
    inside = [bin_of == number for number in np.unique(bin_of)]
    return tuple(
        ReliabilityBin(
            low=float(probabilities[rows].min()),
            high=float(probabilities[rows].max()),
            detections=int(rows.sum()),
            true=int(np.sum(true[rows])),
            mean_probability=float(probabilities[rows].mean()),
        )
        for rows in inside
    )
