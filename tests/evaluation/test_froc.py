"""FROC against MONAI and against hand-worked cases."""

import numpy as np
import pytest
from monai.metrics.froc import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score

from cmb_jax.evaluation.froc import (
    FROC_RATES,
    FrocCurve,
    average_precision,
    choose_threshold,
    collect_events,
    froc_curve,
    sensitivity_at,
    threshold_at_fp_rate,
)
from cmb_jax.evaluation.matching import CENTER3, TOUCH, events, pairs_of
from cmb_jax.evaluation.records import LabeledVolume, SubjectDetections, SubjectTruth, centers_mm
from cmb_jax.evaluation.statistics import bootstrap_froc


def random_scan(rng, lesions, *, duplicates):
    """Lesions as 3-voxel cubes 10 voxels apart; detections in them (or beside them), at whole voxels."""
    labels = np.zeros((60, 20, 20), np.int32)
    for n in range(lesions):
        labels[10 * n + 3 : 10 * n + 6, 4:7, 4:7] = n + 1
    points, scores = [], []
    for n in range(lesions):
        for _ in range(rng.integers(0, 3 if duplicates else 2)):
            points.append(np.array([10 * n + 4, 5, 5]) + rng.integers(-1, 2, 3))
            scores.append(rng.random())
    for _ in range(rng.integers(0, 7)):
        points.append([rng.integers(0, 60), rng.integers(10, 20), rng.integers(10, 20)])
        scores.append(rng.random())
    points = np.array(points, int).reshape(-1, 3)
    return labels, points, np.array(scores, float)


@pytest.mark.parametrize(("rule", "duplicates"), [(TOUCH, True), (CENTER3, False)])
@pytest.mark.parametrize("seed", range(5))
def test_curve_and_score_equal_monai(rule, duplicates, seed):
    rng = np.random.default_rng(seed)
    scan_events, lesions, fp_probs, tp_probs = [], [], [], []
    for scan in range(12):
        count = 0 if scan % 4 == 0 else int(rng.integers(1, 6))  # a quarter of the scans without any
        labels, points, scores = random_scan(rng, count, duplicates=duplicates)
        volume = LabeledVolume(labels=labels, affine=np.eye(4))
        truth = SubjectTruth(
            subject="s", centers_mm=centers_mm(volume), diameters_mm=np.full(count, 3.0), volume=volume
        )
        detections = SubjectDetections(
            subject="s", centers_mm=points.astype(float), scores=scores, diameters_mm=np.zeros(len(points))
        )
        scan_events.append(events(pairs_of(rule, detections, truth), scores))
        lesions.append(count)
        fp, tp, targets = compute_fp_tp_probs_nd(scores, points, labels)
        assert targets == count
        fp_probs.append(fp)
        tp_probs.append(tp)
    joined = collect_events(scan_events, lesions)
    curve = froc_curve(joined)
    # MONAI leaves out its lowest threshold: one below all others keeps the lowest real one in. Its true
    # scores are float32, so are ours here.
    fp_all = np.concatenate([*fp_probs, [-1.0]]).astype(np.float32)
    fp_rate, sensitivity = compute_froc_curve_data(fp_all, np.concatenate(tp_probs), sum(lesions), 12)
    real = np.unique(np.concatenate([fp_all, *tp_probs]))
    kept = real[1:] > 0  # a missed lesion has score 0 in MONAI: no threshold of ours
    np.testing.assert_allclose(curve.fp_per_scan[::-1], fp_rate[:-1][kept])
    np.testing.assert_allclose(curve.sensitivity[::-1], sensitivity[:-1][kept])
    rates = (0.25, 0.5, 1, 2, 4, 8)
    ours = sensitivity_at(curve.fp_per_scan, curve.sensitivity, rates)
    keep = np.append(kept, True)
    assert np.mean(ours) == pytest.approx(compute_froc_score(fp_rate[keep], sensitivity[keep], rates))
    everything = bootstrap_froc(joined, samples=0)
    np.testing.assert_allclose(
        [point.value for point in everything[:-1]],
        sensitivity_at(curve.fp_per_scan, curve.sensitivity),
    )


def worked_curve():
    """Two scans (one without lesions), four lesions. Scores 0.9 T, 0.8 F, 0.7 T T (tie), 0.6 F, 0.5 F."""
    return collect_events(
        [(np.array([0.9, 0.7, 0.7]), np.array([0.6])), (np.zeros(0), np.array([0.8, 0.5]))], [4, 0]
    )


def test_worked_curve():
    curve = froc_curve(worked_curve())
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.tp.tolist() == [1, 1, 3, 3, 3]
    assert curve.fp.tolist() == [0, 1, 1, 2, 3]
    assert curve.fp_per_scan.tolist() == [0, 0.5, 0.5, 1.0, 1.5]  # scans, the one without lesions counted
    assert curve.sensitivity.tolist() == [0.25, 0.25, 0.75, 0.75, 0.75]
    np.testing.assert_allclose(
        sensitivity_at(curve.fp_per_scan, curve.sensitivity),
        [0.25, 0.25, 0.75, 0.75, 0.75, 0.75, 0.75],
    )
    # Steps: recall 0.25 at precision 1, then 0.5 more at precision 3/4.
    assert average_precision(curve.tp, curve.fp, curve.lesions) == pytest.approx(0.25 + 0.5 * 0.75)
    assert curve.thresholds[curve.corners()].tolist() == [0.9, 0.8, 0.7, 0.5]


def test_sensitivity_is_linear_between_points():
    np.testing.assert_allclose(
        sensitivity_at(np.array([1.0, 3.0]), np.array([0.4, 0.8]), (0.5, 1.0, 2.0, 9.0)), [0.2, 0.4, 0.6, 0.8]
    )


def test_no_detections_at_all():
    joined = collect_events([(np.zeros(0), np.zeros(0))] * 3, [2, 0, 1])
    curve = froc_curve(joined)
    assert len(curve.thresholds) == len(curve.corners()) == 0
    assert sensitivity_at(curve.fp_per_scan, curve.sensitivity).tolist() == [0.0] * len(FROC_RATES)
    assert [point.value for point in bootstrap_froc(joined, samples=0)] == [0.0] * (len(FROC_RATES) + 1)
    assert choose_threshold(curve, fallback=0.4) == 0.4


def test_no_lesions_at_all():
    joined = collect_events([(np.zeros(0), np.array([0.3]))], [0])
    assert all(np.isnan(point.value) for point in bootstrap_froc(joined, samples=10))
    assert np.isnan(average_precision(np.array([0]), np.array([1]), 0))


def test_operating_point_by_best_f1():
    # F1 at the thresholds: 2/5, 2/6, 6/8, 6/9, 6/10.
    assert choose_threshold(froc_curve(worked_curve())) == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("limit", "threshold"), [(0.0, 0.85), (0.4, 0.85), (0.5, 0.65), (10.0, 0.65), (1.0, 0.65)]
)
def test_operating_point_by_false_positives(limit, threshold):
    assert choose_threshold(froc_curve(worked_curve()), limit) == pytest.approx(threshold)


@pytest.mark.parametrize("lesions", [0, 2])
def test_operating_point_without_lesions_to_choose_by(lesions):
    """Two scans with false positives at 0.9, 0.5, 0.3 and 0.7, 0.2: one per scan is reached at 0.7."""
    scores = [np.array([0.9, 0.5, 0.3]), np.array([0.7, 0.2])]
    curve = froc_curve(collect_events([(np.zeros(0), found) for found in scores], [lesions, 0]))
    assert threshold_at_fp_rate(curve, 1.0) == pytest.approx((0.7 + 0.5) / 2)
    assert threshold_at_fp_rate(curve, 9.0) == pytest.approx(0.2)  # the lists end before
    assert 0.9 < threshold_at_fp_rate(curve, 0.4) < 0.9001  # nothing is reported


def test_operating_point_that_reports_nothing():
    curve = FrocCurve(
        thresholds=np.array([0.8, 0.6]), tp=np.array([0, 1]), fp=np.array([3, 3]), lesions=2, scans=1
    )
    assert choose_threshold(curve, 1.0) > 0.8


def test_operating_point_at_the_last_threshold():
    curve = FrocCurve(thresholds=np.array([0.8]), tp=np.array([1]), fp=np.array([0]), lesions=2, scans=1)
    assert choose_threshold(curve) == 0.8


def test_average_precision_against_a_slow_sum(rng):
    true = rng.random(200) < 0.4
    lesions = int(true.sum()) + 7
    slow, hits = 0.0, 0
    for rank, hit in enumerate(true, start=1):
        hits += hit
        slow += hit * hits / rank
    fast = average_precision(np.cumsum(true), np.cumsum(~true), lesions)
    assert fast == pytest.approx(slow / lesions)
