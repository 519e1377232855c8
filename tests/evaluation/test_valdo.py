"""Each row of the table of what the VALDO 2021 program returns, for binary references."""

import dataclasses

import numpy as np
import pytest

from cmb_jax.evaluation.matching import VALDO, match_nearest, valdo_case
from cmb_jax.evaluation.records import (
    SubjectDetections,
    SubjectTruth,
    best_values,
    centers_mm,
    diameters_mm,
    label_volume,
)


def blocks(*corners, size=2, value=1.0, shape=(40, 20, 20)):
    mask = np.zeros(shape, np.float32)
    for x, y, z in corners:
        mask[x : x + size, y : y + size, z : z + size] = value
    return mask


def case(predicted, reference, spacing=(1.0, 1.0, 1.0), **options):
    affine = np.diag([*spacing, 1.0])
    p, r = label_volume(predicted, affine), label_volume(reference, affine)
    detections = SubjectDetections(
        subject="s",
        centers_mm=centers_mm(p),
        scores=best_values(p),
        diameters_mm=diameters_mm(p),
        volume=p,
    )
    truth = SubjectTruth(subject="s", centers_mm=centers_mm(r), diameters_mm=diameters_mm(r), volume=r)
    return valdo_case(detections, truth, dataclasses.replace(VALDO, **options))


def test_probability_of_exactly_the_threshold_counts():
    soft = blocks((4, 4, 4), value=0.5)
    soft[20, 10, 10] = 0.49
    assert case(soft, blocks((4, 4, 4))).f1 == 1.0


def test_distance_of_exactly_five_mm_is_a_false_positive():
    result = case(blocks((9, 4, 4)), blocks((4, 4, 4)))
    assert (result.match.tp, result.match.fp, result.match.fn) == (0, 1, 1)
    assert result.f1 == 0.0


def test_no_overlap_is_needed():
    result = case(blocks((8, 4, 4)), blocks((4, 4, 4)))
    assert result.f1 == 1.0
    assert result.dice == 0.0


def test_two_slices_apart_at_four_mm_slices():
    result = case(blocks((4, 4, 6)), blocks((4, 4, 4)), spacing=(0.45, 0.45, 4.0))
    assert result.match.fp == 1


def test_distance_takes_the_header_zooms_not_the_affine():
    # A sheared affine: 4 voxels of 1.2 mm along x are 4.8 mm by the zooms.
    affine = np.array([[1.0, 0, 0, 0], [np.sqrt(0.44), 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    p, r = label_volume(blocks((8, 4, 4)), affine), label_volume(blocks((4, 4, 4)), affine)
    empty = np.zeros((1, 3))
    detections = SubjectDetections(
        subject="s", centers_mm=empty, scores=np.ones(1), diameters_mm=np.ones(1), volume=p
    )
    truth = SubjectTruth(subject="s", centers_mm=empty, diameters_mm=np.ones(1), volume=r)
    assert valdo_case(detections, truth).match.tp == 1
    assert valdo_case(detections, truth, dataclasses.replace(VALDO, limit=4.79)).match.tp == 0


def test_only_the_nearest_of_several_predictions_is_true():
    result = case(blocks((3, 4, 4), (8, 4, 4)), blocks((5, 4, 4)))
    assert result.match.lesion.tolist() == [0, -1]
    assert (result.match.tp, result.match.fp) == (1, 1)
    assert result.f1 == pytest.approx(2 / 3)


def test_exact_tie_of_two_predictions_makes_both_true():
    result = case(blocks((2, 4, 4), (8, 4, 4)), blocks((5, 4, 4)))
    assert result.match.false_positive.tolist() == [False, False]
    assert result.f1 == 1.0
    assert result.count_difference == 1


def test_a_prediction_takes_its_nearest_only():
    # Both predictions are nearest to reference 0; reference 1 is in reach of the second one.
    result = match_nearest(np.array([[1.0, 4.5], [2.0, 3.0]]), 5.0)
    assert result.lesion.tolist() == [0, -1]
    assert result.found.tolist() == [True, False]


def test_one_blob_over_two_references():
    blob = np.zeros((40, 20, 20), np.float32)
    blob[4:11, 4:6, 4:6] = 1
    result = case(blob, blocks((4, 4, 4), (9, 4, 4)))
    assert (result.match.tp, result.match.fp, result.match.fn) == (1, 0, 1)
    assert result.f1 == pytest.approx(0.667, abs=5e-4)


def test_empty_reference_is_undefined_but_counts():
    result = case(blocks((4, 4, 4)), blocks())
    assert np.isnan(result.f1)
    assert np.isnan(result.dice)
    assert result.count_difference == 1
    assert result.volume_difference_mm3 == pytest.approx(8.0)


def test_empty_prediction():
    result = case(blocks(), blocks((4, 4, 4)))
    assert result.f1 == 0.0
    assert result.dice == 0.0


def test_both_empty():
    result = case(blocks(), blocks())
    assert np.isnan(result.f1)
    assert result.count_difference == 0


def test_volume_difference_takes_soft_values():
    result = case(blocks((4, 4, 4), value=0.6), blocks((4, 4, 4)))
    assert result.volume_difference_mm3 == pytest.approx(3.2)


def test_dice_of_a_shifted_block():
    assert case(blocks((5, 4, 4)), blocks((4, 4, 4))).dice == pytest.approx(0.5)


def test_elements_are_six_connected():
    diagonal = np.zeros((40, 20, 20), np.float32)
    diagonal[4, 4, 4] = diagonal[5, 5, 4] = 1
    assert case(diagonal, blocks((4, 4, 4))).count_difference == 1
    assert case(diagonal, blocks((4, 4, 4)), connectivity=26).count_difference == 0


def test_defaults_of_the_organizers_program():
    # With 0.1 mm and 26-connectivity, as it runs without options, a shift of one voxel scores nothing.
    assert case(blocks((5, 4, 4)), blocks((4, 4, 4)), limit=0.1, connectivity=26).f1 == 0.0


def test_an_empty_table_is_an_empty_image():
    volume = label_volume(blocks((4, 4, 4)), np.eye(4))
    truth = SubjectTruth(
        subject="s", centers_mm=centers_mm(volume), diameters_mm=diameters_mm(volume), volume=volume
    )
    none = SubjectDetections(
        subject="s", centers_mm=np.zeros((0, 3)), scores=np.zeros(0), diameters_mm=np.zeros(0)
    )
    result = valdo_case(none, truth)
    assert (result.f1, result.dice, result.volume_difference_mm3) == (0.0, 0.0, 8.0)


def test_tables_stand_for_themselves():
    detections = SubjectDetections(
        subject="s", centers_mm=np.array([[1.0, 0, 0]]), scores=np.ones(1), diameters_mm=np.ones(1)
    )
    truth = SubjectTruth(subject="s", centers_mm=np.zeros((1, 3)), diameters_mm=np.ones(1))
    result = valdo_case(detections, truth)
    assert result.f1 == 1.0
    assert np.isnan(result.dice)
