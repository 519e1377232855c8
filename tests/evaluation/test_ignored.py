"""Lesions that are ignored: against a slow reading of the rule, one scan and one threshold at a time."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.evaluation.evaluate import evaluate_records
from cmb_jax.evaluation.matching import BOX, CENTER3, CENTER5, TOUCH, events, match, pairs_of, valdo_case
from cmb_jax.evaluation.read import MIMIC_NAMES
from cmb_jax.evaluation.records import MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.subsets import ALL_SCANS, ALL_SIZES, READERS_SIZE, SMALL
from cmb_jax.phantom.types import MimicKind


def found_at(points, scores=None, subject="s", **more):
    points = np.asarray(points, float).reshape(-1, 3)
    scores = np.ones(len(points)) if scores is None else np.asarray(scores, float)
    return SubjectDetections(
        subject=subject,
        centers_mm=points,
        scores=scores,
        diameters_mm=np.full(len(points), 3.0),
        **more,
    )


def truth_with(points, ignored, diameters=3.0, subject="s", **more):
    points, ignored = (np.asarray(each, float).reshape(-1, 3) for each in (points, ignored))
    return SubjectTruth(
        subject=subject,
        centers_mm=points,
        diameters_mm=np.broadcast_to(np.asarray(diameters, float), len(points)),
        ignored_centers_mm=ignored,
        ignored_diameters_mm=np.full(len(ignored), 3.0),
        **more,
    )


def slow_count(points, lesions, ignored, limit):
    """Hits and false positives in one scan, by trying every assignment of detections to lesions."""

    def near(a, b):
        return math.dist(a, b) < limit

    best = None
    for choice in itertools.product([None, *range(len(lesions))], repeat=len(points)):
        used = [lesion for lesion in choice if lesion is not None]
        if len(set(used)) < len(used):
            continue
        if any(each is not None and not near(points[row], lesions[each]) for row, each in enumerate(choice)):
            continue
        false = 0
        for row, each in enumerate(choice):
            if each is None and not any(near(points[row], other) for other in ignored):
                false += 1
        if best is None or (len(used), -false) > (best[0], -best[1]):
            best = (len(used), false)
    return best


def line(draw, rng):
    """Points so close on a line that many are in reach of several."""
    return np.column_stack([rng.integers(0, 10, draw) * 1.0, np.zeros(draw), rng.integers(0, 2, draw)])


@settings(max_examples=80, deadline=None)
@given(k=st.integers(0, 4), m=st.integers(0, 3), i=st.integers(0, 3), seed=st.integers(0, 100_000))
def test_counts_and_curve_equal_the_slow_reading(k, m, i, seed):
    rng = np.random.default_rng(seed)
    points, lesions, ignored = (line(n, rng) for n in (k, m, i))
    scores = rng.integers(0, 3, k) / 2.0
    found, truth = found_at(points, scores), truth_with(lesions, ignored)
    for rule in (CENTER3, CENTER5):
        true_scores, false_scores = events(pairs_of(rule, found, truth), scores)
        for threshold in (0.0, 0.5, 1.0):
            keep = scores >= threshold
            expected = slow_count(points[keep], lesions, ignored, rule.limit)
            outcome = match(pairs_of(rule, found.select(keep), truth))
            assert (outcome.tp, outcome.fp) == expected
            assert (int(np.sum(true_scores >= threshold)), int(np.sum(false_scores >= threshold))) == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_an_ignored_lesion_takes_no_hit_and_adds_no_false_positive(seed):
    rng = np.random.default_rng(seed)
    points, lesions, ignored = line(5, rng), line(3, rng), line(2, rng)
    found = found_at(points, rng.random(5))
    for rule in (CENTER3, CENTER5, TOUCH, BOX):
        without, given_ = (
            match(pairs_of(rule, found, truth_with(lesions, each))) for each in (np.zeros((0, 3)), ignored)
        )
        assert given_.tp == without.tp
        assert given_.fp <= without.fp
    valdo_without, valdo_given = (
        valdo_case(found, truth_with(lesions, each)).match for each in (np.zeros((0, 3)), ignored)
    )
    assert valdo_given.tp == valdo_without.tp
    assert valdo_given.fp <= valdo_without.fp


def test_only_detections_on_the_ignored_lesion_are_left_out():
    found = found_at([[0, 0, 0], [20, 0, 0], [40, 0, 0]])
    truth = truth_with([[0.5, 0, 0]], [[20.5, 0, 0]])
    for rule in (CENTER3, CENTER5, TOUCH, BOX):
        outcome = match(pairs_of(rule, found, truth))
        assert outcome.counted.tolist() == [True, False, True]
        assert (outcome.tp, outcome.fp, outcome.fn) == (1, 1, 0)
    case = valdo_case(found, truth)
    assert (case.match.tp, case.match.fp, case.count_difference) == (1, 1, 1)


def test_a_hit_beside_an_ignored_lesion_stays_a_hit_and_shields_no_other():
    """One detection lies on both, one on the lesion alone: the second is the hit, and nothing is false."""
    truth = truth_with([[0, 0, 0]], [[3, 0, 0]])
    outcome = match(pairs_of(CENTER3, found_at([[1, 0, 0], [-2, 0, 0]]), truth))
    assert outcome.lesion.tolist() == [-1, 0]
    assert (outcome.tp, outcome.fp) == (1, 0)


@pytest.fixture
def cohort():
    """Two scans: one with a phase, one without and with a calcification that is detected; by hand below."""
    codes = np.zeros((60, 10, 10), np.uint8)
    codes[50, 5, 5] = MimicKind.CALCIFICATION_PARENCHYMAL
    mimics = MimicMap(codes=codes, affine=np.eye(4), names=MIMIC_NAMES)
    truths = [
        truth_with(
            [[0, 0, 0], [20, 0, 0]],
            [[40, 0, 0]],
            [1.5, 4.0],
            subject="a",
            has_phase=True,
            protocol="iso05",
            tier="easy",
            mimics=mimics,
        ),
        truth_with(
            [[0, 0, 0], [20, 0, 0]],
            [],
            [1.9, 10.0],
            subject="b",
            has_phase=False,
            protocol="sabre",
            tier="hard",
            mimics=mimics,
        ),
    ]
    found = [
        # a hit below 2 mm, one on the ignored lesion, one on a calcification that the phase could tell
        found_at([[0, 0, 0], [40, 0, 0], [50, 5, 5]], [0.9, 0.8, 0.7], "a"),
        # a hit of 10 mm, a calcification, a false positive on nothing
        found_at([[20, 0, 0], [50, 5, 5], [30, 5, 5]], [0.9, 0.95, 0.6], "b"),
    ]
    return found, truths


def test_parts_of_a_cohort_by_hand(cohort):
    result = evaluate_records(*cohort, bootstrap_samples=0)
    assert (result.lesions, result.lesions_ignored) == (4, 1)
    assert result.lesions_by_size == {SMALL: 2, READERS_SIZE: 2}
    assert (result.headline_result.tp, result.headline_result.fp) == (2, 3)
    assert [row.ignored for row in result.subjects] == [1, 0]
    parts = {
        (each.scans_of, each.size, each.calcifications): (each.scans, each.lesions, each.tp, each.fp)
        for each in result.subsets
    }
    assert parts == {
        (ALL_SCANS, ALL_SIZES, "counted"): (2, 4, 2, 3),
        (ALL_SCANS, ALL_SIZES, "left out"): (2, 4, 2, 2),
        (ALL_SCANS, SMALL, "counted"): (2, 2, 1, 3),
        (ALL_SCANS, SMALL, "left out"): (2, 2, 1, 2),
        (ALL_SCANS, READERS_SIZE, "counted"): (2, 2, 1, 3),
        (ALL_SCANS, READERS_SIZE, "left out"): (2, 2, 1, 2),
        ("with phase", ALL_SIZES, "counted"): (1, 2, 1, 1),
        ("with phase", SMALL, "counted"): (1, 1, 1, 1),
        ("with phase", READERS_SIZE, "counted"): (1, 1, 0, 1),
        ("magnitude alone", ALL_SIZES, "counted"): (1, 2, 1, 2),
        ("magnitude alone", ALL_SIZES, "left out"): (1, 2, 1, 1),
        ("magnitude alone", SMALL, "counted"): (1, 1, 0, 2),
        ("magnitude alone", SMALL, "left out"): (1, 1, 0, 1),
        ("magnitude alone", READERS_SIZE, "counted"): (1, 1, 1, 2),
        ("magnitude alone", READERS_SIZE, "left out"): (1, 1, 1, 1),
        ("iso05", ALL_SIZES, "counted"): (1, 2, 1, 1),
        ("sabre", ALL_SIZES, "counted"): (1, 2, 1, 2),
        ("sabre", ALL_SIZES, "left out"): (1, 2, 1, 1),
        ("easy", ALL_SIZES, "counted"): (1, 2, 1, 1),
        ("hard", ALL_SIZES, "counted"): (1, 2, 1, 2),
        ("hard", ALL_SIZES, "left out"): (1, 2, 1, 1),
    }
    alone = {each.calcifications: each for each in result.subsets if each.scans_of == "sabre"}
    # the calcification scores highest: precision of the hit 1/2, or 1 without it; half of the lesions found
    assert alone["counted"].average_precision.value == pytest.approx(0.25)
    assert alone["left out"].average_precision.value == pytest.approx(0.5)
    by = {each.by: {g.group: (g.found, g.lesions) for g in each.groups} for each in result.breakdowns}
    assert by["phase"] == {"with phase": (1, 2), "magnitude alone": (1, 2)}
    assert by["tier"] == {"easy": (1, 2), "hard": (1, 2)}


def test_ignored_detections_are_no_part_of_calibration_or_counts(cohort):
    found, truths = cohort
    judged = [
        SubjectDetections(
            subject=each.subject,
            centers_mm=each.centers_mm,
            scores=each.scores,
            diameters_mm=each.diameters_mm,
            probabilities=np.full(3, 0.4),
        )
        for each in found
    ]
    result = evaluate_records(judged, truths, bootstrap_samples=0)
    assert (result.calibration.detections, result.calibration.true) == (5, 2)
    assert result.counts.bias == pytest.approx(((2 - 2) + (3 - 2)) / 2)
