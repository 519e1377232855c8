"""Matching rules against brute force, hand-worked cases and MONAI."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy import ndimage

from cmb_jax.errors import UserError
from cmb_jax.evaluation.matching import (
    BOX,
    CENTER3,
    CENTER5,
    TOUCH,
    Pairs,
    box_ious,
    events,
    match,
    pairs_of,
    touching,
)
from cmb_jax.evaluation.records import (
    LabeledVolume,
    SubjectDetections,
    SubjectTruth,
    centers_mm,
    diameters_mm,
    label_volume,
    to_index,
)

OBLIQUE = np.array(
    [[0.48, -0.1, 0.2, -40.0], [0.14, 0.49, 0.1, -50.0], [-0.05, 0.02, 1.98, -20.0], [0, 0, 0, 1.0]]
)


def detections_at(points, scores=None, diameter=4.0, **more):
    points = np.asarray(points, float).reshape(-1, 3)
    scores = np.ones(len(points)) if scores is None else np.asarray(scores, float)
    return SubjectDetections(
        subject="s", centers_mm=points, scores=scores, diameters_mm=np.full(len(points), diameter), **more
    )


def truth_at(points, diameter=4.0, **more):
    points = np.asarray(points, float).reshape(-1, 3)
    return SubjectTruth(subject="s", centers_mm=points, diameters_mm=np.full(len(points), diameter), **more)


def matched(rule, detections, truth):
    return match(pairs_of(rule, detections, truth))


def brute_force(pairs):
    """Most matches, then the fewest false positives, then the least cost, by trying every assignment."""
    k, m = pairs.allowed.shape
    free = int((~pairs.is_excused).sum())
    best = (0, free, 0.0)
    for choice in itertools.product(range(-1, m), repeat=k):
        used = [lesion for lesion in choice if lesion >= 0]
        if len(set(used)) < len(used) or any(
            lesion >= 0 and not pairs.allowed[row, lesion] for row, lesion in enumerate(choice)
        ):
            continue
        cost = sum(pairs.cost[row, lesion] for row, lesion in enumerate(choice) if lesion >= 0)
        false = sum(lesion < 0 and not pairs.is_excused[row] for row, lesion in enumerate(choice))
        best = min(best, (-len(used), int(false), cost))
    return -best[0], best[1], best[2]


@settings(max_examples=60, deadline=None)
@given(k=st.integers(0, 4), m=st.integers(0, 4), seed=st.integers(0, 10_000))
def test_one_to_one_equals_brute_force(k, m, seed):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 6, (k, m)).astype(float)
    excused = (None, rng.random(k) < 0.4)[seed % 2]
    pairs = Pairs(allowed=rng.random((k, m)) < 0.5, cost=cost, one_to_one=True, excused=excused)
    result = match(pairs)
    chosen = np.flatnonzero(result.lesion >= 0)
    count, false, least = brute_force(pairs)
    assert len(chosen) == result.tp == count
    assert cost[chosen, result.lesion[chosen]].sum() == pytest.approx(least)
    assert result.fp == false
    assert excused is not None or false == k - count
    assert result.fn == m - count


@settings(max_examples=60, deadline=None)
@given(k=st.integers(0, 12), m=st.integers(0, 8), one_to_one=st.booleans(), seed=st.integers(0, 10_000))
def test_events_equal_matching_anew_at_every_threshold(k, m, one_to_one, seed):
    rng = np.random.default_rng(seed)
    pairs = Pairs(
        allowed=rng.random((k, m)) < 0.3,
        cost=rng.random((k, m)),
        one_to_one=one_to_one,
        excused=(None, rng.random(k) < 0.4)[seed % 2],
    )
    scores = rng.integers(0, 5, k) / 4.0  # ties on purpose
    tp_scores, fp_scores = events(pairs, scores)
    for threshold in (0.0, 0.25, 0.5, 0.75, 1.0):
        keep = scores >= threshold
        result = match(
            Pairs(
                allowed=pairs.allowed[keep],
                cost=pairs.cost[keep],
                one_to_one=one_to_one,
                excused=pairs.is_excused[keep],
            )
        )
        assert np.sum(tp_scores >= threshold) == result.tp
        assert np.sum(fp_scores >= threshold) == result.fp


def test_center_distance_is_strict():
    truth = truth_at([[0, 0, 0]])
    assert matched(CENTER3, detections_at([[3.0, 0, 0]]), truth).tp == 0
    assert matched(CENTER3, detections_at([[2.999, 0, 0]]), truth).tp == 1
    assert matched(CENTER5, detections_at([[0, 0, 5.0]]), truth).tp == 0
    assert matched(CENTER5, detections_at([[0, 0, 4.999]]), truth).tp == 1


def test_second_detection_of_a_lesion_is_a_false_positive():
    result = matched(CENTER3, detections_at([[0, 0, 0], [1, 0, 0]]), truth_at([[0.2, 0, 0]]))
    assert result.lesion.tolist() == [0, -1]
    assert result.false_positive.tolist() == [False, True]


def test_number_of_matches_comes_before_distance():
    # Detection 1 reaches only lesion 0, detection 0 is nearest to lesion 0 but reaches both.
    result = matched(CENTER3, detections_at([[0.5, 0, 0], [-2.5, 0, 0]]), truth_at([[0, 0, 0], [3, 0, 0]]))
    assert result.lesion.tolist() == [1, 0]


def test_no_detections_or_no_lesions():
    none = np.zeros((0, 3))
    for rule in (CENTER3, CENTER5, TOUCH, BOX):
        assert matched(rule, detections_at(none), truth_at([[0, 0, 0]])).fn == 1
        assert matched(rule, detections_at([[0, 0, 0]]), truth_at(none)).fp == 1
        empty = matched(rule, detections_at(none), truth_at(none))
        assert (empty.tp, empty.fp, empty.fn) == (0, 0, 0)


def test_touch_punishes_no_duplicate_and_rewards_one_blob_over_two():
    mask = np.zeros((12, 6, 4), np.float32)
    mask[1:3, 1:3, 1] = 1
    mask[5:7, 1:3, 1] = 1
    truth_volume = label_volume(mask, np.eye(4))
    blob = np.zeros_like(mask)
    blob[2:6, 1, 1] = 1
    blob_volume = label_volume(blob, np.eye(4))
    truth = truth_at(centers_mm(truth_volume), volume=truth_volume)
    blob_record = detections_at(centers_mm(blob_volume), volume=blob_volume)
    assert matched(TOUCH, blob_record, truth).tp == 2
    assert matched(CENTER3, blob_record, truth).tp == 1
    twice = matched(TOUCH, detections_at([[1, 1, 1], [2, 2, 1]], diameter=1.0), truth)
    assert (twice.tp, twice.fp, twice.fn) == (1, 0, 1)


def test_touch_by_voxels_agrees_with_looping_over_voxels(rng):
    for _ in range(10):
        labels, count = ndimage.label(rng.random((9, 8, 7)) < 0.08)
        volume = LabeledVolume(labels=labels.astype(np.int32), affine=OBLIQUE)
        points = apply_affine(OBLIQUE, rng.uniform(-1, 9, (6, 3)))
        diameters = rng.uniform(0.1, 3.0, 6)
        expected = np.zeros((6, count), bool)
        for row, (point, diameter) in enumerate(zip(points, diameters, strict=True)):
            own = np.round(to_index(point[None], OBLIQUE)[0])
            for voxel in np.argwhere(labels > 0):
                center = OBLIQUE[:3, :3] @ voxel + OBLIQUE[:3, 3]
                if np.linalg.norm(center - point) <= diameter / 2 or np.array_equal(own, voxel):
                    expected[row, labels[tuple(voxel)] - 1] = True
        detections = SubjectDetections(
            subject="s", centers_mm=points, scores=np.ones(6), diameters_mm=diameters
        )
        truth = truth_at(np.zeros((count, 3)), volume=volume)
        np.testing.assert_array_equal(touching(detections, truth), expected)
        reverse = touching(
            detections_at(np.zeros((count, 3)), volume=volume),
            SubjectTruth(subject="s", centers_mm=points, diameters_mm=diameters),
        )
        np.testing.assert_array_equal(reverse, expected.T)


def test_spheres_touch_without_any_voxels():
    truth = truth_at([[0, 0, 0]], diameter=2.0)
    assert touching(detections_at([[2.0, 0, 0]], diameter=2.0), truth).all()
    assert not touching(detections_at([[2.1, 0, 0]], diameter=2.0), truth).any()


def test_box_iou_agrees_with_monai(rng):
    from monai.data.box_utils import box_iou

    low_a, low_b = rng.uniform(-5, 5, (20, 3)), rng.uniform(-5, 5, (15, 3))
    a = np.concatenate([low_a, low_a + rng.uniform(0.5, 6, (20, 3))], axis=1)
    b = np.concatenate([low_b, low_b + rng.uniform(0.5, 6, (15, 3))], axis=1)
    np.testing.assert_allclose(box_ious(a, b), box_iou(a, b), atol=1e-6)


def test_empty_boxes_overlap_nothing():
    zero = np.zeros((1, 6))
    assert box_ious(zero, zero)[0, 0] == 0


def test_box_of_voxels_meets_cube_of_a_table_in_the_image_frame():
    labels = np.zeros((20, 20, 10), np.int32)
    labels[4:12, 6:14, 3:5] = 1  # 4 x 4 x 4 mm
    volume = LabeledVolume(labels=labels, affine=OBLIQUE)
    spacing = volume.spacing_mm
    truth = truth_at(centers_mm(volume), volume=volume)
    pairs = pairs_of(BOX, detections_at(centers_mm(volume), diameter=4.0), truth)
    edges = np.array([8, 8, 2]) * spacing
    intersection = np.prod(np.minimum(edges, 4.0))
    expected = intersection / (np.prod(edges) + 64.0 - intersection)
    assert 1 - pairs.cost[0, 0] == pytest.approx(expected)
    assert pairs.allowed[0, 0]


def test_different_grids_are_a_user_error():
    mask = np.zeros((6, 6, 6), np.float32)
    mask[2, 2, 2] = 1
    truth = truth_at([[2, 2, 2]], volume=label_volume(mask, np.eye(4)))
    shifted = np.eye(4)
    shifted[0, 3] = 1.0
    with pytest.raises(UserError, match="different affines"):
        touching(detections_at([[3, 2, 2]], volume=label_volume(mask, shifted)), truth)
    with pytest.raises(UserError, match="different shapes"):
        touching(detections_at([[2, 2, 2]], volume=label_volume(mask[:5], np.eye(4))), truth)


def test_label_volume_tells_masks_instances_and_probabilities_apart():
    values = np.zeros((8, 6, 5), np.float32)
    values[1, 1, 1] = values[2, 2, 2] = 1
    assert label_volume(values, np.eye(4), connectivity=26).labels.max() == 1
    assert label_volume(values, np.eye(4), connectivity=6).labels.max() == 2
    assert label_volume(values * 255, np.eye(4)).labels.max() == 1
    instances = values.copy()
    instances[2, 2, 2] = 7
    np.testing.assert_array_equal(np.unique(label_volume(instances, np.eye(4)).labels), [0, 1, 2])
    soft = values * 0.5
    soft[5, 5, 4] = 0.49
    soft[0, 0, 0] = np.nan
    volume = label_volume(soft, np.eye(4))
    assert volume.labels.max() == 1
    np.testing.assert_allclose(centers_mm(volume), [[1.5, 1.5, 1.5]])
    assert diameters_mm(volume)[0] == pytest.approx((6 * 2 / np.pi) ** (1 / 3))


def test_select_keeps_rows_and_voxels_together():
    labels = np.zeros((6, 3, 3), np.int32)
    labels[0], labels[2], labels[4] = 1, 2, 3
    volume = LabeledVolume(labels=labels, affine=np.eye(4))
    record = detections_at(centers_mm(volume), scores=[0.9, 0.1, 0.5], volume=volume)
    chosen = record.at(0.5)
    np.testing.assert_allclose(centers_mm(chosen.volume), chosen.centers_mm)
    assert chosen.scores.tolist() == [0.9, 0.5]


def test_status_decides_what_counts():
    record = detections_at(
        [[0, 0, 0], [10, 0, 0], [20, 0, 0]], scores=[0.9, 0.3, 0.8], status=("kept", "candidate", "rejected")
    )
    assert record.at(None).scores.tolist() == [0.9]
    assert record.at(0.2).scores.tolist() == [0.9, 0.3]
    assert record.candidates().scores.tolist() == [0.9, 0.3]


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="scores"):
        detections_at([[0, 0, 0]], scores=[0.1, 0.2])
