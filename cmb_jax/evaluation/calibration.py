"""Fitting the map from score to probability on validation detections, and choosing how.

Two maps are fitted: a logistic curve in the score's logit with slope and offset (Platt 1999; temperature
scaling with a bias, Guo et al. 2017) and isotonic regression (Zadrozny & Elkan 2002). The one with the lower
log loss on scans that it was not fitted on is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, log_expit, logit

from cmb_jax.evaluation.calibration_map import CalibrationMap
from cmb_jax.evaluation.froc import FrocEvents

FOLDS = 5
# From this probability on a detection is called definite: of five such detections four are microbleeds.
DEFINITE_PROBABILITY = 0.8
UNCALIBRATED = "uncalibrated"
# No knot is left out if the map would be off by more than this without it.
KNOT_TOLERANCE = 0.005
# Scores are written with four digits; beyond this their logit means nothing.
_LEAST = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted map, and how the candidates for it did on scans that they were not fitted on."""

    method: str
    map: CalibrationMap
    log_loss: dict[str, float]  # held out, by method; `UNCALIBRATED` takes the score itself
    held_out: np.ndarray  # (E,) probability of each event by a map fitted without its scan's fold
    folds: int


def fit_platt(scores: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Slope (not negative) and offset of probability = sigmoid(slope * logit(score) + offset).

    The targets are Platt's, (n + 1) / (n + 2) and 1 / (m + 2) for n true and m false ones, so that a clean
    separation gives a finite slope.

    Args:
        scores: (E,) in 0..1.
        true: (E,) bool.
    """
    x, true = score_logit(scores), np.asarray(true, bool)
    n, m = int(true.sum()), int((~true).sum())
    target = np.where(true, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        value = -(target * log_expit(z) + (1 - target) * log_expit(-z)).mean()
        error = expit(z) - target
        return float(value), np.array([(error * x).mean(), error.mean()])

    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )  # fmt: skip
    return float(found.x[0]), float(found.x[1])


def platt_map(scores: np.ndarray, true: np.ndarray) -> CalibrationMap:
    """The logistic curve as knots, see `fit_platt`."""
    slope, offset = fit_platt(scores, true)
    grid = np.linspace(logit(_LEAST), logit(1 - _LEAST), 4001)
    return _with_few_knots(expit(grid), expit(slope * grid + offset))


def isotonic_map(scores: np.ndarray, true: np.ndarray) -> CalibrationMap:
    """Isotonic regression as knots: the ends of its steps, straight lines between them.

    Probabilities stay within 1 / (E + 2) of 0 and 1: E detections cannot show more.

    Args:
        scores: (E,) in 0..1.
        true: (E,) bool.
    """
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


def score_logit(scores: np.ndarray) -> np.ndarray:
    """Log odds of scores, finite."""
    return logit(np.clip(np.asarray(scores, np.float64), _LEAST, 1 - _LEAST))


def log_loss(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Mean negative log likelihood, in nats."""
    p = np.clip(probabilities, _LEAST, 1 - _LEAST)
    return float(-np.where(true, np.log(p), np.log1p(-p)).mean())


def calibrate(events: FrocEvents, *, folds: int = FOLDS, seed: int = 0) -> Calibration:
    """Fit both maps, choose one by cross-validation over scans, fit it on all.

    Args:
        events: true and false detections of S scans with their scores, see `matching.events`.
        folds: the scans that have any are dealt into so many parts (fewer if there are fewer scans).
        seed: of the dealing.

    Raises:
        ValueError: fewer than two scans have a detection.
    """
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
    """The curve through points (P,) of rising x with the fewer knots that keep it within `KNOT_TOLERANCE`.

    The point that is farthest off is added until none is (Ramer 1972; Douglas & Peucker 1973).
    """
    knots = [0, len(x) - 1]
    while True:
        off = np.abs(np.interp(x, x[knots], y[knots]) - y)
        worst = int(off.argmax())
        if off[worst] <= KNOT_TOLERANCE:
            break
        knots = sorted([*knots, worst])
    return CalibrationMap(scores=tuple(x[knots].tolist()), probabilities=tuple(y[knots].tolist()))
