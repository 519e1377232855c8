"""Maps from score to probability: against scikit-learn, and on scores whose distortion is known."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss

from cmb_jax.evaluation.calibration import (
    KNOT_TOLERANCE,
    UNCALIBRATED,
    CalibrationMap,
    calibrate,
    fit_platt,
    isotonic_map,
    log_loss,
    platt_map,
    reliability,
)
from cmb_jax.evaluation.froc import collect_events


def simulated(probability_of, count, seed, digits=4):
    """Scores and whether each is true, drawn with a known probability."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.98, count).round(digits)
    return scores, rng.uniform(size=count) < probability_of(scores)


def events_of(scores, true, scans, seed=0):
    subject = np.random.default_rng(seed).integers(0, scans, len(scores))
    parts = [
        (scores[(subject == s) & true], scores[(subject == s) & ~true]) for s in range(scans)
    ]  # fmt: skip
    return collect_events(parts, [len(part[0]) for part in parts])


def logistic(scores):
    return expit(1.4 * logit(scores) - 1.5)


def stepped(scores):
    return np.where(scores < 0.6, 0.1, 0.9)


def test_platt_finds_the_slope_and_offset_that_were_put_in():
    slope, offset = fit_platt(*simulated(logistic, 20_000, 0))
    assert slope == pytest.approx(1.4, abs=0.06)
    assert offset == pytest.approx(-1.5, abs=0.06)


def test_platt_is_logistic_regression_on_its_soft_targets():
    scores, true = simulated(logistic, 150, 1)
    n, m = true.sum(), (~true).sum()
    target = np.where(true, (n + 1) / (n + 2), 1 / (m + 2))
    # a soft target t is one case of weight t that is true, and one of weight 1 - t that is not
    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.tile(logit(scores), 2)[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, offset = fit_platt(scores, true)
    assert slope == pytest.approx(float(peer.coef_[0, 0]), rel=1e-3)
    assert offset == pytest.approx(float(peer.intercept_[0]), rel=1e-3)


def test_platt_stays_finite_and_never_falls():
    apart = fit_platt(np.array([0.2, 0.3, 0.7, 0.8]), np.array([False, False, True, True]))
    assert np.isfinite(apart).all()
    turned = fit_platt(np.array([0.2, 0.3, 0.7, 0.8]), np.array([True, True, False, False]))
    assert turned[0] == 0.0


def test_platt_knots_follow_the_curve():
    scores, true = simulated(logistic, 500, 2)
    slope, offset = fit_platt(scores, true)
    found = platt_map(scores, true)
    grid = np.linspace(0.001, 0.999, 1500)
    curve = expit(slope * logit(grid) + offset)
    assert np.abs(found.probability(grid) - curve).max() < 1.5 * KNOT_TOLERANCE
    assert len(found.scores) < 25


@pytest.mark.parametrize("digits", [4, 2])  # with two digits many scores are equal
def test_isotonic_is_that_of_scikit_learn(digits):
    scores, true = simulated(stepped, 400, 3, digits)
    margin = 1 / 402
    peer = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(scores, true)
    found = isotonic_map(scores, true)
    grid = np.linspace(0, 1, 2001)
    assert np.abs(found.probability(grid) - peer.predict(grid)).max() <= KNOT_TOLERANCE + 1e-9
    assert len(found.scores) <= len(peer.X_thresholds_)


def test_isotonic_of_one_score():
    found = isotonic_map(np.array([0.5, 0.5]), np.array([True, False]))
    assert found.probability(np.array([0.1, 0.5, 0.9])).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("truth", "method"), [(logistic, "platt"), (stepped, "isotonic")])
def test_the_map_that_fits_is_chosen_and_calibrates_new_scans(truth, method):
    found = calibrate(events_of(*simulated(truth, 3000, 4), scans=30))
    assert found.method == method
    assert found.log_loss[method] < found.log_loss[UNCALIBRATED]
    scores, true = simulated(truth, 20_000, 5)
    probabilities = found.map.probability(scores)
    fresh = reliability(probabilities, true, np.zeros(len(true), int), 1, samples=0)
    raw = reliability(scores, true, np.zeros(len(true), int), 1, samples=0)
    assert fresh.ece_equal_mass.value < 0.03 < 0.1 < raw.ece_equal_mass.value


def test_a_scan_has_no_part_in_its_own_held_out_probability():
    scores, true = simulated(logistic, 600, 6)
    events = events_of(scores, true, scans=10)
    before = calibrate(events)
    turned = events.true.copy()
    turned[events.subject == 3] = ~turned[events.subject == 3]
    after = calibrate(
        type(events)(scores=events.scores, true=turned, subject=events.subject, lesions=events.lesions)
    )
    assert before.method == after.method == "platt"
    same = before.held_out == after.held_out
    assert same[events.subject == 3].all()
    assert not same.all()


def test_log_loss_is_that_of_scikit_learn():
    scores, true = simulated(logistic, 300, 7)
    assert log_loss(scores, true) == pytest.approx(sklearn_log_loss(true, scores))


def test_a_map_between_and_beyond_its_knots():
    knots = CalibrationMap(scores=(0.2, 0.6, 0.8), probabilities=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(knots.probability(np.array([0.0, 0.4, 0.7, 1.0])), [0.1, 0.3, 0.7, 0.9])
    assert knots.score_at(0.7) == pytest.approx(0.7)
    assert knots.score_at(0.05) == 0.0
    assert knots.score_at(0.95) == math.inf
    flat = CalibrationMap(scores=(0.2, 0.4, 0.6), probabilities=(0.3, 0.8, 0.8))
    assert flat.score_at(0.8) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("scores", "probabilities"),
    [
        ((0.1,), (0.2,)),
        ((0.1, 0.2), (0.2,)),
        ((0.2, 0.2), (0.1, 0.3)),
        ((0.1, 0.2), (0.3, 0.2)),
        ((0.1, 0.2), (0.3, 1.2)),
        ((0.1, math.nan), (0.3, 0.4)),
    ],
)
def test_knots_that_are_no_map_are_refused(scores, probabilities):
    with pytest.raises(ValueError, match="calibration map"):
        CalibrationMap(scores=scores, probabilities=probabilities)


def test_one_scan_cannot_be_left_out_of_itself():
    scores, true = simulated(logistic, 50, 8)
    events = collect_events([(scores[true], scores[~true]), (np.zeros(0), np.zeros(0))], [true.sum(), 2])
    with pytest.raises(ValueError, match="two scans"):
        calibrate(events)
