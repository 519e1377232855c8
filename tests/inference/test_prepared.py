import numpy as np

from cmb_jax.data.subjects import StoredSubject
from cmb_jax.evaluation.breakdown import name_by_mimic
from cmb_jax.inference.proposals import mimics_of, truth_of

SPACING = (1.0, 0.5, 0.25)


def test_truth_and_mimics_are_in_mm_of_the_working_grid(tmp_path):
    mimics = np.zeros((8, 6, 10), np.uint8)
    mimics[3, 2, 7] = 6  # cell of stride (1, 2, 2): its middle is (3.5, 2.5 * 1.0, 7.5 * 0.5) mm
    np.save(tmp_path / "mimics.npy", mimics)
    np.save(tmp_path / "boxes.npy", np.array([[2, 4, 8, 6, 8, 16]], np.float32))
    np.save(tmp_path / "ignored_boxes.npy", np.array([[0, 0, 0, 2, 4, 8]], np.float32))
    stored = StoredSubject(folder=tmp_path)
    truth = truth_of(stored, SPACING)
    np.testing.assert_allclose(truth.centers_mm, [[4.0, 3.0, 3.0]])
    np.testing.assert_allclose(truth.diameters_mm, [4.0])
    np.testing.assert_allclose(truth.ignored_centers_mm, [[1.0, 1.0, 1.0]])
    np.testing.assert_allclose(truth.ignored_diameters_mm, [2.0])
    points = np.array([[3.5, 2.5, 3.75], [3.5, 2.5, 5.7], [3.5, 2.5, 5.8], [5.6, 2.5, 3.75]])
    assert name_by_mimic(points, mimics_of(stored, SPACING)) == ["deep_vein", "deep_vein", "none", "none"]
