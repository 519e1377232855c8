"""Agreement and breakdowns against published and hand-worked numbers."""

import numpy as np
import pytest
from scipy.stats import norm

from cmb_jax.evaluation.breakdown import (
    SIZE_EDGES_MM,
    classify,
    false_positive_groups,
    join_places,
    name_by_mimic,
    place_agreement,
    sensitivity_breakdowns,
)
from cmb_jax.evaluation.records import MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import count_agreement, icc_2_1, wilson


def test_icc_of_shrout_and_fleiss():
    # Shrout & Fleiss 1979, table 2; ICC(2,1) = 0.29 in their table 4.
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert icc_2_1(ratings) == pytest.approx(0.29, abs=0.005)


def test_icc_of_perfect_agreement_and_of_none():
    assert icc_2_1(np.array([[1, 1], [5, 5], [9, 9]])) == pytest.approx(1.0)
    assert np.isnan(icc_2_1(np.array([[3, 3], [3, 3]])))
    assert np.isnan(icc_2_1(np.array([[3, 4]])))


def test_bland_altman_worked():
    result = count_agreement(np.array([3, 5, 4, 0]), np.array([2, 5, 6, 0]))
    assert result.bias == pytest.approx(-0.25)
    half = 1.96 * np.std([1, 0, -2, 0], ddof=1)
    assert result.limit_low == pytest.approx(-0.25 - half)
    assert result.limit_high == pytest.approx(-0.25 + half)


def test_size_classes_put_an_edge_into_the_class_above():
    names = classify(np.array([1.9, 2.0, 4.99, 5.0, 12.0]), SIZE_EDGES_MM, " mm")
    assert names == ("below 2 mm", "2 to 3 mm", "3 to 5 mm", "5 to 10 mm", "10 mm and more")


def test_wilson_interval_by_its_formula():
    z, n, p = norm.ppf(0.975), 20, 0.9
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = wilson(18, 20)
    assert (estimate.low, estimate.high) == pytest.approx((center - half, center + half))
    assert np.isnan(wilson(0, 0).value)


def test_breakdowns_count_every_lesion_once_in_each():
    scans = [
        ({"zone": ("deep", "lobar", "lobar"), "size_mm": ("below 2 mm",) * 3}, np.array([True, False, True])),
        ({"zone": ("lobar",), "size_mm": ("3 to 5 mm",)}, np.array([True])),
        ({}, np.zeros(0, bool)),
    ]
    by = {breakdown.by: breakdown.groups for breakdown in sensitivity_breakdowns(scans)}
    assert set(by) == {"zone", "size_mm"}
    assert [(g.group, g.found, g.lesions) for g in by["zone"]] == [("lobar", 2, 3), ("deep", 1, 1)]
    assert [(g.group, g.found, g.lesions) for g in by["size_mm"]] == [
        ("below 2 mm", 2, 3),
        ("3 to 5 mm", 1, 1),
    ]


def test_false_positives_are_named_by_the_nearest_mimic_within_reach():
    codes = np.zeros((30, 10, 10), np.uint8)
    codes[5, 5, 5], codes[8, 5, 5], codes[20, 5, 5] = 4, 7, 9
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = (-3.0, 1.0, 2.0)
    mimics = MimicMap(codes=codes, affine=affine, names={4: "vein", 7: "calcification"})
    at = lambda x: np.array([[x * 0.5 - 3.0, 3.5, 12.0]])  # noqa: E731
    assert name_by_mimic(at(6.0), mimics) == ["vein"]
    assert name_by_mimic(at(7.0), mimics) == ["calcification"]
    assert name_by_mimic(at(12.0), mimics) == ["calcification"]  # exactly 2 mm
    assert name_by_mimic(at(12.1), mimics) == ["none"]
    assert name_by_mimic(at(20.0), mimics) == ["code 9"]
    assert name_by_mimic(np.zeros((0, 3)), mimics) == []


def test_groups_of_false_positives_are_ranked():
    groups = false_positive_groups([["vein", "none"], ["vein"], [], []])
    assert [(group.group, group.count, group.per_scan.value) for group in groups] == [
        ("vein", 2, 0.5),
        ("none", 1, 0.25),
    ]
    assert false_positive_groups([[], []]) == ()


def test_intervals_of_false_positives_are_those_of_a_binomial_mean():
    """Half of 400 scans with one each: resampling gives the standard error sqrt(0.25 / 400)."""
    (group,) = false_positive_groups([["vein"], []] * 200, samples=4000)
    half = 1.96 * np.sqrt(0.25 / 400)
    assert (group.per_scan.low, group.per_scan.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.005)


def test_place_agreement_counts_matches_only():
    detections = SubjectDetections(
        subject="s",
        centers_mm=np.zeros((3, 3)),
        scores=np.ones(3),
        diameters_mm=np.ones(3),
        zones=("lobar", "deep", "lobar"),
        regions=("frontal", "thalamus", "insula"),
    )
    truth = SubjectTruth(
        subject="s",
        centers_mm=np.zeros((2, 3)),
        diameters_mm=np.ones(2),
        zones=("deep", "lobar"),
        regions=("basal_ganglia", "frontal"),
    )
    scan = place_agreement(detections, truth, np.array([1, 0, -1]))
    assert scan == (2, 2, 1)
    joined = join_places([scan, None, (2, 0, 0)])
    assert (joined.matched, joined.zone.value, joined.region.value) == (4, 0.5, 0.25)
    assert join_places([None]) is None
