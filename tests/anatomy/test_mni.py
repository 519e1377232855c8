"""The way to MNI space: an affine that is known comes back, and no answer where there is none."""

import numpy as np
import pytest

from cmb_jax.anatomy import lookup as mni
from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode

MAP = RegionMap(code=np.zeros((2, 2, 2), np.uint8), affine=np.eye(4))


@pytest.fixture
def matrix():
    """Template RAS mm -> scan RAS mm: turned, stretched, moved."""
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    found = np.eye(4)
    found[:3, :3] = turn @ np.diag([0.95, 1.05, 1.1])
    found[:3, 3] = (3, -20, 14)
    return found


def in_scan(matrix, noise_mm=0.0):
    rng = np.random.default_rng(0)
    return {
        code: (matrix[:3, :3] @ center + matrix[:3, 3] + rng.normal(0, noise_mm, 3), volume * 1.1)
        for code, (center, volume) in mni.template_landmarks().items()
    }


def test_a_known_affine_comes_back(monkeypatch, matrix):
    monkeypatch.setattr(mni, "landmarks_of", lambda *_: in_scan(matrix))
    found = mni.fit_mni(MAP)
    assert found is not None
    np.testing.assert_allclose(found.matrix, np.linalg.inv(matrix), atol=1e-9)
    assert (found.landmarks, round(found.residual_mm, 6)) == (28, 0.0)
    points = np.array([[1.0, 2.0, 3.0], [-40.0, 20.0, 10.0]])
    np.testing.assert_allclose(found(points @ matrix[:3, :3].T + matrix[:3, 3]), points, atol=1e-9)


def test_no_answer_where_the_map_is_none_or_does_not_fit(monkeypatch, matrix):
    monkeypatch.setattr(mni, "landmarks_of", lambda *_: in_scan(matrix, noise_mm=15))
    assert mni.fit_mni(MAP) is None
    whole = in_scan(matrix)
    half = {code: found for code, found in whole.items() if code // 16 == Side.LEFT}
    monkeypatch.setattr(mni, "landmarks_of", lambda *_: half)
    assert mni.fit_mni(MAP) is None
    cut = {code: (center, volume / 4) for code, (center, volume) in whole.items()}
    monkeypatch.setattr(mni, "landmarks_of", lambda *_: cut)
    assert mni.fit_mni(MAP) is None
    monkeypatch.setattr(mni, "landmarks_of", lambda *_: whole)
    assert mni.fit_mni(RegionMap(code=MAP.code, affine=MAP.affine, trusted=False)) is None


def test_landmarks_are_means_of_voxels():
    rng = np.random.default_rng(1)
    codes = [0, encode(Region.FRONTAL, Side.LEFT), encode(Region.SULCAL_CSF, Side.LEFT), int(Region.THALAMUS)]
    code = rng.choice(codes, (6, 7, 8)).astype(np.uint8)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-5, 4, 3)
    ((name, (center, volume)),) = mni.landmarks_of(code, affine).items()  # no CSF, nothing without a side
    index = np.argwhere(code == codes[1])
    assert name == codes[1]
    np.testing.assert_allclose(center, index.mean(axis=0) * (2, 2, 3) + (-5, 4, 3))
    assert volume == pytest.approx(12 * len(index))
    mirrored = mni.template_landmarks()
    for each in (Region.FRONTAL, Region.THALAMUS, Region.CEREBELLUM):
        left, right = (mirrored[int(encode(each, side))][0] for side in (Side.LEFT, Side.RIGHT))
        assert left[0] < -5
        np.testing.assert_allclose(left * (-1, 1, 1), right, atol=4)
