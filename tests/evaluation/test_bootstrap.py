"""Bootstrap intervals against the binomial law, and against resampling by hand."""

import numpy as np
import pytest

from cmb_jax.evaluation.froc import FROC_RATES, average_precision, collect_events, froc_curve, sensitivity_at
from cmb_jax.evaluation.statistics import (
    METRICS,
    Counts,
    bootstrap_counts,
    bootstrap_froc,
    count_metrics,
    fp_at_sensitivity,
    froc_metrics,
    paired_bootstrap,
    resample_weights,
)


def binomial_counts(rng, scans, p):
    """One lesion a scan, found with probability p; false positives Poisson with mean 2."""
    return Counts(tp=rng.binomial(1, p, scans), fp=rng.poisson(2.0, scans), lesions=np.ones(scans, int))


def test_interval_of_a_proportion_agrees_with_the_normal_law(rng):
    counts = binomial_counts(rng, 400, 0.8)
    estimate = bootstrap_counts(counts, samples=4000)["sensitivity"]
    p = counts.tp.mean()
    half = 1.96 * np.sqrt(p * (1 - p) / 400)
    assert estimate.value == p
    assert estimate.low == pytest.approx(p - half, abs=0.004)
    assert estimate.high == pytest.approx(p + half, abs=0.004)


def test_interval_of_a_mean_agrees_with_the_normal_law(rng):
    counts = binomial_counts(rng, 400, 0.8)
    estimate = bootstrap_counts(counts, samples=4000)["fp_per_scan"]
    half = 1.96 * counts.fp.std() / 20.0
    assert estimate.low == pytest.approx(counts.fp.mean() - half, abs=0.015)
    assert estimate.high == pytest.approx(counts.fp.mean() + half, abs=0.015)


def test_coverage_of_a_proportion():
    rng = np.random.default_rng(1)
    trials = 400
    inside = 0
    for trial in range(trials):
        estimate = bootstrap_counts(binomial_counts(rng, 100, 0.8), samples=400, seed=trial)["sensitivity"]
        inside += estimate.low <= 0.8 <= estimate.high
    # 95 % nominal; the percentile interval of 100 binary scans covers 93 to 95 %, the trials add 1 % noise.
    assert 0.91 <= inside / trials <= 0.98


def test_metrics_of_a_resample_equal_those_of_repeated_scans(rng):
    scans = 6
    parts = [
        (rng.random(rng.integers(0, 4)), rng.integers(0, 8, rng.integers(0, 5)) / 8) for _ in range(scans)
    ]
    lesions = np.array([len(tp) + int(rng.integers(0, 3)) for tp, _ in parts])
    joined = collect_events(parts, lesions)
    counts = Counts(
        tp=np.array([len(tp) for tp, _ in parts]), fp=np.array([len(fp) for _, fp in parts]), lesions=lesions
    )
    for weights in next(resample_weights(scans, 5, 0)):
        drawn = np.repeat(np.arange(scans), weights)
        tp, fp, n = counts.tp[drawn].sum(), counts.fp[drawn].sum(), lesions[drawn].sum()
        np.testing.assert_allclose(
            count_metrics(counts, weights[None])[0],
            [tp / n, fp / scans, tp / (tp + fp), 2 * tp / (2 * tp + fp + n - tp)],
        )
        curve = froc_curve(collect_events([parts[i] for i in drawn], lesions[drawn]))
        expected = [
            *sensitivity_at(curve.fp_per_scan, curve.sensitivity),
            average_precision(curve.tp, curve.fp, curve.lesions),
        ]
        np.testing.assert_allclose(froc_metrics(joined, weights[None])[0], expected)


def test_resamples_draw_as_many_scans_as_there_are_and_repeat_with_the_seed():
    first = np.concatenate(list(resample_weights(7, 250, 3)))
    assert first.shape == (250, 7)
    assert (first.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(first, np.concatenate(list(resample_weights(7, 250, 3))))
    assert not np.array_equal(first, np.concatenate(list(resample_weights(7, 250, 4))))


def test_undefined_metrics_are_nan():
    none = Counts(tp=np.zeros(3, int), fp=np.zeros(3, int), lesions=np.zeros(3, int))
    result = bootstrap_counts(none, samples=20)
    assert np.isnan(result["sensitivity"].value)
    assert np.isnan(result["precision"].low)
    assert result["fp_per_scan"].value == 0.0


def test_resamples_without_lesions_are_left_out():
    one = Counts(tp=np.array([1, 0, 0]), fp=np.zeros(3, int), lesions=np.array([2, 0, 0]))
    estimate = bootstrap_counts(one, samples=200)["sensitivity"]
    assert (estimate.low, estimate.high) == (0.5, 0.5)


def test_no_samples_no_intervals():
    joined = collect_events([(np.array([0.5]), np.zeros(0))], [1])
    assert all(np.isnan(point.low) for point in bootstrap_froc(joined, samples=0))
    assert bootstrap_froc(joined, samples=0)[-1].value == 1.0
    assert len(bootstrap_froc(joined, samples=0)) == len(FROC_RATES) + 1


def test_paired_bootstrap_sees_a_small_steady_difference():
    rng = np.random.default_rng(5)
    lesions = rng.poisson(6, 60) + 1
    hard = rng.random(60)  # scans differ far more than the programs do
    b = Counts(tp=np.floor(lesions * hard * 0.8).astype(int), fp=rng.poisson(2, 60), lesions=lesions)
    a = Counts(tp=np.minimum(b.tp + (rng.random(60) < 0.7), lesions), fp=b.fp, lesions=lesions)
    result = paired_bootstrap(a, b, samples=1000)
    assert set(result) == set(METRICS)
    better = result["sensitivity"]
    assert better.difference.value == pytest.approx((a.tp.sum() - b.tp.sum()) / lesions.sum())
    assert better.difference.low > 0
    assert better.p_value < 0.01
    alone = bootstrap_counts(a, samples=1000)["sensitivity"]
    assert better.difference.high - better.difference.low < 0.5 * (alone.high - alone.low)
    same = result["fp_per_scan"]
    assert (same.difference.low, same.difference.high, same.p_value) == (0.0, 0.0, 1.0)


def test_paired_bootstrap_needs_the_same_scans():
    a = Counts(tp=np.ones(2, int), fp=np.ones(2, int), lesions=np.ones(2, int))
    b = Counts(tp=np.ones(2, int), fp=np.ones(2, int), lesions=np.array([1, 2]))
    with pytest.raises(ValueError, match="same scans"):
        paired_bootstrap(a, b)


def test_false_positives_at_a_sensitivity_by_looking_at_every_threshold(rng):
    lesions = rng.integers(0, 5, 12)
    events = collect_events(
        [(np.round(rng.random(rng.binomial(n, 0.7)), 1), np.round(rng.random(3), 1)) for n in lesions],
        lesions,
    )
    weights = next(iter(resample_weights(12, 50, 3)))
    for sensitivity in (0.2, 0.5, 1.0):
        got = fp_at_sensitivity(events, weights, sensitivity)
        for row, drawn in enumerate(weights):
            reached = []
            for threshold in np.unique(events.scores):
                counts = drawn[events.subject] * (events.scores >= threshold)
                if (counts * events.true).sum() >= sensitivity * (drawn @ lesions) - 1e-9:
                    reached.append((counts * ~events.true).sum() / 12)
            whole_list = (drawn[events.subject] * ~events.true).sum() / 12
            np.testing.assert_allclose(got[row], min(reached, default=whole_list))
