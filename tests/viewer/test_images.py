"""What the page shows is what was searched: places, gray values, and nothing that names a person."""

import dataclasses
import gzip
import io

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.io.volume import Volume
from cmb_jax.viewer import page as module
from cmb_jax.viewer.page import ScanOnGrid, embedded_images, viewer_images
from tests.review.conftest import AFFINES


def read(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def scan(swi, affine, mask, phase=None):
    return ScanOnGrid(
        swi=Volume.from_array(swi, affine),
        phase=phase,
        labels=np.zeros(swi.shape, np.uint16),
        brain_mask=mask,
    )


@pytest.mark.parametrize("name", ["RAS", "oblique"])
def test_a_voxel_stays_where_it_was(name):
    affine = AFFINES[name] @ np.diag([1, 1, 1, 1.0])
    shape, spot = (50, 60, 40), (23, 31, 17)
    swi = np.zeros(shape, np.float32)
    swi[spot] = 100
    mask = np.zeros(shape, bool)
    mask[20:28, 25:40, 14:22] = True
    image = read(viewer_images(scan(swi, affine, mask)).files["swi"])
    assert image.shape < shape  # cropped
    (index,) = np.argwhere(np.asarray(image.dataobj) > 0)
    there = image.affine @ [*index, 1]
    np.testing.assert_allclose(there, affine @ [*spot, 1], atol=1e-3)


def test_everything_within_the_margin_is_shown():
    shape, affine = (60, 60, 60), np.diag([1.0, 2.0, 3.0, 1.0])
    mask = np.zeros(shape, bool)
    mask[30, 30, 30] = True
    window = read(viewer_images(scan(np.ones(shape, np.float32) * mask, affine, mask)).files["swi"])
    low = window.affine[:3, 3]
    high = low + (np.array(window.shape) - 1) * (1, 2, 3)
    center = np.array([30, 60, 90])
    assert np.all(center - low >= module.MARGIN_MM)
    assert np.all(high - center >= module.MARGIN_MM)


def test_gray_values_are_right_to_half_a_step():
    rng = np.random.default_rng(1)
    swi = rng.normal(500, 80, (20, 20, 20)).astype(np.float32)
    phase = rng.uniform(-np.pi, np.pi, swi.shape).astype(np.float32)
    made = viewer_images(scan(swi, np.eye(4), np.ones(swi.shape, bool), phase))
    for name, values in (("swi", swi), ("phase", phase)):
        stored = np.asarray(read(made.files[name]).dataobj)
        assert stored.dtype == np.int16
        assert np.abs(stored * made.units[name] - values).max() <= 0.5 * made.units[name] * 1.001
    assert made.units["phase"] == pytest.approx(2 * np.pi / 1000)
    # a thousand steps from the darkest voxel to the bright end of the brain
    assert (np.percentile(swi, 99.9) - swi.min()) / made.units["swi"] == pytest.approx(1000, rel=1e-3)


def test_whole_numbers_of_few_levels_are_kept_as_they_are():
    swi = np.random.default_rng(2).integers(0, 200, (20, 20, 20)).astype(np.float32)
    made = viewer_images(scan(swi, np.eye(4), None))
    np.testing.assert_array_equal(np.asarray(read(made.files["swi"]).dataobj), swi)


def test_much_brighter_voxels_fit_or_are_cut():
    swi = np.full((10, 10, 10), 1.0, np.float32)
    swi[0, 0, 0], swi[5, 5, 5] = 1e7, 0.0
    stored = np.asarray(read(viewer_images(scan(swi, np.eye(4), None)).files["swi"]).dataobj)
    assert stored[0, 0, 0] == stored.max() > stored[1, 1, 1] >= stored[5, 5, 5]


def test_coarser_then_left_out_when_too_large(monkeypatch):
    swi = np.random.default_rng(3).normal(500, 80, (30, 30, 30)).astype(np.float32)
    one = scan(swi, np.eye(4), None)
    fine, coarse = (viewer_images(one, levels).size for levels in module.LEVELS)
    assert coarse < fine
    monkeypatch.setattr(module, "MAX_EMBEDDED", (fine + coarse) // 2)
    chosen = embedded_images(one)
    assert chosen is not None
    assert chosen.size == coarse
    monkeypatch.setattr(module, "MAX_EMBEDDED", coarse - 1)
    assert embedded_images(one) is None


def test_headers_hold_geometry_alone():
    swi = np.random.default_rng(4).normal(size=(8, 8, 8)).astype(np.float32)
    made = viewer_images(scan(swi, np.eye(4), None))
    for content in made.files.values():
        header = read(content).header
        for text in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            assert bytes(header[text]).strip(b"\0") == b""
        assert len(header.extensions) == 0
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            stream.read(1)
            assert stream.mtime == 0


def test_an_empty_mask_shows_the_whole_image():
    swi = np.random.default_rng(5).normal(size=(8, 9, 10)).astype(np.float32)
    one = scan(swi, np.eye(4), np.zeros(swi.shape, bool), phase=swi)
    assert {read(content).shape for content in viewer_images(one).files.values()} == {(8, 9, 10)}
    whole = viewer_images(dataclasses.replace(one, brain_mask=None))
    assert whole.files == viewer_images(one).files
