"""Stored subjects: lesions lie where the images show them, and nothing is simulated twice."""

import json

import numpy as np
import pytest

from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.data.prepare import edge_coordinates
from cmb_jax.data.subjects import STORE_VERSION, prepare_phantom, stored_subjects, subjects_in
from cmb_jax.errors import UserError
from cmb_jax.phantom import SubjectSettings, simulate_subject
from cmb_jax.phantom.tree import VERSION

SPACING = (1.0, 1.0, 1.0)
SETTINGS = SubjectSettings(protocol="thick3", mean_cmbs=12.0, simulation_spacing_mm=2.0)


@pytest.fixture(scope="module")
def phantom():
    return simulate_subject(synthetic_pack(), 5, SETTINGS)


@pytest.fixture(scope="module")
def stored(phantom, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    subjects = stored_subjects([root / "seed-5"], [5], lambda index, seed: phantom, SPACING, "test")
    return root, subjects[0]


def test_boxes_lie_round_the_true_centers(phantom, stored):
    lesions = phantom.lesions
    centers = edge_coordinates(lesions.center_mm[lesions.is_cmb], prepare_phantom(phantom, SPACING).affine)
    boxes = stored[1].boxes()
    assert len(boxes) == lesions.is_cmb.sum() > 3
    assert stored[1].ignored_boxes().shape == (lesions.is_ignored.sum(), 6)
    np.testing.assert_allclose((boxes[:, :3] + boxes[:, 3:]) / 2, centers, atol=1e-3)


def test_lesions_are_darker_than_their_surroundings_in_the_stored_image(stored):
    image, boxes = stored[1].image(), stored[1].boxes()
    darker = 0
    for box in boxes:
        z0, y0, x0 = np.maximum(np.floor(box[:3]).astype(int), 0)
        z1, y1, x1 = np.ceil(box[3:]).astype(int)
        inside = image[z0:z1, y0:y1, x0:x1, 0].astype(float)
        around = image[max(z0 - 3, 0) : z1 + 3, max(y0 - 4, 0) : y1 + 4, max(x0 - 4, 0) : x1 + 4, 0].astype(
            float
        )
        darker += inside.min() < 0.9 * np.median(around)
    assert darker >= 0.8 * len(boxes)


def test_mimic_cells_and_points_agree(stored):
    mimics, points = stored[1].mimics(), stored[1].mimic_points()
    image = stored[1].image()
    assert mimics.shape == (image.shape[0], image.shape[1] // 2, image.shape[2] // 2)
    assert len(points) > 0
    assert (mimics[tuple(points.T)] > 0).all()
    brain = stored[1].brain_points()
    assert (brain < np.array(mimics.shape)).all()


def test_what_is_stored_is_not_simulated_again(stored):
    root, subject = stored

    def fail(index, seed):
        raise AssertionError("simulated again")

    again = stored_subjects([root / "seed-5"], [5], fail, SPACING, "test")
    np.testing.assert_array_equal(again[0].boxes(), subject.boxes())
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_a_folder_of_subjects_is_read_in_the_order_of_the_seeds(tmp_path):
    for name in ("seed-100", "seed-9", "seed-10", "other"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "image.npy", np.zeros(1))
        (tmp_path / name / "store.json").write_text(json.dumps({"store": STORE_VERSION, "phantom": VERSION}))
    (tmp_path / "seed-11").mkdir()  # not finished
    assert [stored.folder.name for stored in subjects_in(tmp_path)] == ["seed-9", "seed-10", "seed-100"]
    with pytest.raises(UserError, match="holds no prepared subject"):
        subjects_in(tmp_path / "other")


def test_subjects_of_an_older_phantom_are_refused_by_name(stored, tmp_path):
    root, subject = stored
    assert [each.folder for each in subjects_in(root)] == [subject.folder]
    (tmp_path / "seed-1").mkdir()
    np.save(
        tmp_path / "seed-1" / "image.npy", np.zeros(1)
    )  # as version 1 stored it: it does not say what it is
    with pytest.raises(
        UserError, match=r"seed-1: was prepared from CMB-Phantom 1 .* trains on CMB-Phantom 2"
    ):
        subjects_in(tmp_path)
