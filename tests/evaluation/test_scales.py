"""Labels, classes and scales: what numbers mean is told, refused, or said to be doubtful."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.errors import UserError
from cmb_jax.evaluation.evaluate import evaluate
from cmb_jax.evaluation.read import read_detections_volume, read_labels, read_truth_volume
from cmb_jax.io.labels import instances

SHAPE = (64, 60, 40)
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
PLACES = [(8 + 16 * (n % 3), 8 + 20 * (n // 3 % 2), 6 + 12 * (n // 6)) for n in range(12)]


def blobs(numbers, dtype=np.int16):
    """A 2 x 2 x 2 lesion at each place, with these numbers in turn."""
    array = np.zeros(SHAPE, dtype)
    for place, number in zip(PLACES, numbers, strict=False):
        array[tuple(slice(at, at + 2) for at in place)] = number
    return array


def saved(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def results(tmp_path, truth, pred):
    saved(tmp_path / "truth" / "sub-1.nii.gz", truth)
    saved(tmp_path / "pred" / "sub-1.nii.gz", pred)
    return evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0)


def test_classes_are_told_from_instances_and_said(tmp_path):
    """Classes 1 and 2 in 12 far-apart pieces are 12 lesions, by every rule alike."""
    classes, ids = blobs([1, 2] * 6), blobs(range(1, 13))
    found = results(tmp_path, classes, ids)
    assert found.lesions == 12
    assert all(rule.tp == 12 for rule in found.rules)
    (line,) = found.warnings
    assert line.startswith("sub-1: truth: its numbers 1, 2 are classes, not lesions")
    assert results(tmp_path / "ids", ids, ids).warnings == ()


@pytest.mark.parametrize("numbers", [range(1, 13), range(1000, 1012), [3, 900, *range(20, 30)]])
def test_instance_ids_of_any_size_stay_instances(tmp_path, numbers):
    truth = read_truth_volume(saved(tmp_path / "t.nii.gz", blobs(numbers)), "s")
    assert len(truth.centers_mm) == 12
    assert truth.volume.note == ""


def test_near_pieces_of_one_number_are_one_lesion_and_touching_numbers_are_two():
    array = np.zeros(SHAPE, np.int16)
    array[10:12, 10, 10], array[10:12, 10, 13] = 4, 4  # a slice between was left out
    array[30, 30, 10], array[31, 30, 10] = 7, 8
    found = instances(array, np.array([1.0, 1.0, 1.5]))
    assert (found.count, found.by_label, found.note) == (3, True, "")


def probability_map(scale, dtype):
    sharp = blobs([1] * 12, np.float32)
    soft = ndimage.gaussian_filter(sharp, 1.0)
    return (soft / soft.max() * scale).astype(dtype)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (probability_map(255, np.uint8), "scaled to"),
        (probability_map(100, np.int16), "scaled to"),
        (probability_map(10_000, np.int32), "scaled to"),
        (np.round(probability_map(100, np.float32)), "scaled to"),
        (probability_map(100, np.float32), "fractions up to 100"),
        (probability_map(1.5, np.float64), "fractions up to 1.5"),
        (blobs([1, 2.5, 3] * 4, np.float32), "fractions up to 3"),
        (
            np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE),
            "different numbers in one connected piece",
        ),
    ],
)
def test_scaled_maps_are_refused(tmp_path, array, says):
    path = saved(tmp_path / "m.nii.gz", array)
    for read in (read_detections_volume, read_truth_volume):
        with pytest.raises(UserError, match=says) as refused:
            read(path, "s")
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)


def test_probabilities_are_read_whatever_their_type(tmp_path):
    for dtype in (np.float32, np.float64):
        found = read_detections_volume(saved(tmp_path / "p.nii.gz", probability_map(1.0, dtype)), "s")
        assert len(found.centers_mm) == 12
        assert found.scores.max() == pytest.approx(1.0)


def test_a_map_that_never_reaches_the_threshold_is_said(tmp_path):
    found = results(tmp_path, blobs([1] * 12), probability_map(0.4, np.float32))
    assert any("largest value is 0.4: nothing reaches 0.5" in line for line in found.warnings)


def test_large_labels_stay_apart(tmp_path):
    """float32 would make one number of two."""
    for dtype in (np.int32, np.float64):
        array = blobs([2**24 + 1, 2**24, 2**25 + 1], dtype)
        values, _ = read_labels(saved(tmp_path / "l.nii.gz", array))
        assert set(np.unique(values)) == {0, 2**24, 2**24 + 1, 2**25 + 1}
    with pytest.raises(UserError, match="give labels below"):
        read_labels(saved(tmp_path / "l.nii.gz", blobs([2**40], np.float64)))


def table(path, points, score=0.9):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{x},{y},{z},2,{score},kept" for x, y, z in points]
    path.write_text("\n".join(["x_mm,y_mm,z_mm,diameter_mm,score,status", *lines]))


@pytest.mark.parametrize(("scale", "says"), [(100.0, "between 0 and 90,"), (-1.0, "between -0.9 and 1,")])
def test_scores_that_are_no_numbers_from_0_to_1_are_said_once(tmp_path, scale, says):
    """The order of candidates, and with it the FROC curve, is what it was."""
    points = (np.array(PLACES) + 0.5) * [1.0, 1.0, 1.5]
    for subject in ("sub-1", "sub-2"):
        saved(tmp_path / "truth" / f"{subject}.nii.gz", blobs([1] * 12))
        table(tmp_path / "pred" / subject / "detections.csv", points, score=0.9 * scale)
        table(tmp_path / "usual" / subject / "detections.csv", points)
    found = evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0)
    usual = evaluate(tmp_path / "usual", tmp_path / "truth", bootstrap_samples=0)
    (line,) = found.warnings
    assert says in line
    assert usual.warnings == ()
    assert found.headline_result.froc == usual.headline_result.froc


def test_contradictions_between_rules_are_named(tmp_path):
    """Two numbers in each of six near pairs: six lesions by id, twelve by pieces."""
    array = np.zeros(SHAPE, np.int16)
    for number, place in enumerate(PLACES[:6], start=1):
        for step in range(3):
            array[place[0] : place[0] + 2, place[1] + 3 * step, place[2]] = number
    found = results(tmp_path, array, (array > 0).astype(np.uint8))
    assert any("6 lesions by its labels, but 18 connected pieces" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda mm: mm * [-1, -1, 1], "in LPS"),
        (lambda mm: mm / 10, "in centimeters"),
        (lambda mm: mm / 1000, "in meters"),
        (lambda mm: mm / [1.0, 1.0, 1.5], "as voxel indices"),
    ],
)
def test_positions_that_mean_something_else_are_named(tmp_path, change, word):
    points = (np.array(PLACES) + 0.5) * [1.0, 1.0, 1.5]
    saved(tmp_path / "truth" / "sub-1.nii.gz", blobs([1] * 12) * (np.arange(40) > 14))
    table(tmp_path / "pred" / "sub-1" / "detections.csv", change(points[6:]))
    warnings = evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0).warnings
    assert any(line.endswith(f"positions {word}") for line in warnings), warnings


def test_lesions_too_large_for_microbleeds_are_named(tmp_path):
    array = np.ones((60, 60, 60), np.uint8)
    array[:20, :20, :20] = 0
    saved(tmp_path / "pred" / "sub-1.nii.gz", array)
    saved(tmp_path / "truth" / "sub-1.nii.gz", (array == 0).astype(np.uint8))
    (line,) = evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0).warnings
    assert "prediction: a lesion of 84 mm" in line


def test_tables_in_the_other_system_are_named(tmp_path):
    points = (np.array(PLACES) + 0.5) * [1.0, 1.0, 1.5]
    saved(tmp_path / "truth" / "sub-1.nii.gz", blobs([1] * 12))
    table(tmp_path / "pred" / "sub-1" / "detections.csv", points * [-1, -1, 1])
    found = evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0)
    assert any(
        "12 of 12 detections lie outside the image" in line and "LPS" in line for line in found.warnings
    )
    table(tmp_path / "pred" / "sub-1" / "detections.csv", points)
    assert evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=0).warnings == ()
