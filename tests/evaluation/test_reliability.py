"""Expected calibration error and reliability bins."""

import math

import numpy as np
import pytest

from cmb_jax.evaluation.calibration import (
    calibration_error,
    equal_mass_bins,
    equal_width_bins,
    error_by_chance,
    reliability,
)


def slow_error(probabilities, true, low_of, high_of, bins):
    """The formula as it is printed, a loop over bins given as intervals [low, high)."""
    total = 0.0
    for b in range(bins):
        inside = [n for n, p in enumerate(probabilities) if low_of(b) <= p < high_of(b)]
        if inside:
            confidence = sum(probabilities[n] for n in inside) / len(inside)
            accuracy = sum(bool(true[n]) for n in inside) / len(inside)
            total += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return total


def test_a_worked_example():
    # bins of width 1/2: {0.1, 0.3}, none true: gap 0.2; {0.6, 0.8, 0.7}, two true: gap |0.7 - 2/3| = 1/30
    probabilities = np.array([0.1, 0.3, 0.6, 0.8, 0.7])
    true = np.array([False, False, True, True, False])
    error = calibration_error(probabilities, true, equal_width_bins(probabilities, 2))
    assert error == pytest.approx(2 / 5 * 0.2 + 3 / 5 / 30)


@pytest.mark.parametrize("seed", range(4))
def test_both_kinds_of_bins_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.uniform(0, 1, 200)
    true = rng.uniform(size=200) < probabilities**2
    found = reliability(probabilities, true, rng.integers(0, 9, 200), 9, samples=0)
    width = slow_error(probabilities, true, lambda b: b / 10, lambda b: (b + 1) / 10, 10)
    ordered = np.sort(probabilities)
    edges = [0.0, *ordered[20::20], 1.0]  # every bin holds 20
    mass = slow_error(probabilities, true, lambda b: edges[b], lambda b: edges[b + 1], 10)
    assert found.ece_equal_width.value == pytest.approx(width)
    assert found.ece_equal_mass.value == pytest.approx(mass)
    assert [each.detections for each in found.equal_mass] == [20] * 10
    assert sum(each.true for each in found.equal_width) == true.sum() == found.true
    assert math.isnan(found.ece_equal_mass.low)


def test_probability_one_and_ties_have_a_bin():
    assert equal_width_bins(np.array([0.0, 0.1, 0.999, 1.0]), 10).tolist() == [0, 1, 9, 9]
    bins = equal_mass_bins(np.array([0.2] * 7 + [0.9] * 3), 5)
    assert len(set(bins[:7])) == len(set(bins[7:])) == 1
    assert bins[0] < bins[-1]


def test_interval_is_of_scans_that_are_drawn_again():
    rng = np.random.default_rng(5)
    subject = rng.integers(0, 12, 300)
    probabilities = rng.uniform(0, 1, 300)
    true = rng.uniform(size=300) < probabilities
    found = reliability(probabilities, true, subject, 14, samples=400, seed=3)
    bin_of = equal_mass_bins(probabilities)
    slow = []
    draws = np.random.default_rng(3)
    for block in (100, 100, 100, 100):
        for weights in draws.multinomial(14, np.full(14, 1 / 14), size=block):
            rows = np.concatenate([np.repeat(np.flatnonzero(subject == s), w) for s, w in enumerate(weights)])
            slow.append(calibration_error(probabilities[rows], true[rows], bin_of[rows]))
    low, high = np.percentile(slow, [2.5, 97.5])
    assert found.ece_equal_mass.low == pytest.approx(low)
    assert found.ece_equal_mass.high == pytest.approx(high)


@pytest.mark.parametrize("detections", [60, 400, 3000])
def test_error_by_chance_against_outcomes_drawn_from_the_probabilities(detections):
    rng = np.random.default_rng(detections)
    probabilities = rng.uniform(0.2, 0.95, detections)
    bin_of = equal_mass_bins(probabilities)
    drawn = [
        calibration_error(probabilities, rng.uniform(size=detections) < probabilities, bin_of)
        for _ in range(3000)
    ]
    assert error_by_chance(probabilities, bin_of) == pytest.approx(np.mean(drawn), rel=0.05)


def test_certain_probabilities_have_no_error_by_chance():
    certain = np.array([0.0, 0.0, 1.0])
    assert error_by_chance(certain, equal_width_bins(certain)) == 0


def test_nothing_to_judge():
    none = np.zeros(0)
    assert reliability(none, none.astype(bool), none.astype(int), 3) is None
