"""The Python interface: any form of image, the same answer; a prediction that can be looked at and kept."""

import builtins
import csv
import pydoc
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx

import cmb_jax
from cmb_jax.anatomy.regions import Region, RegionMap, Side, encode
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.bundle import save_bundle
from tests.tiny import TINY_MODEL

SHAPE = (48, 56, 24)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """SWI and phase as nibabel images, left-posterior-superior, saved as files."""
    rng = np.random.default_rng(0)
    affine = np.array([[-0.9, 0, 0, 25.0], [0, -0.9, 0, 28.0], [0, 0, 2.0, -20.0], [0, 0, 0, 1]])
    swi = np.linspace(85, 115, SHAPE[0])[:, None, None] + rng.normal(0, 5, SHAPE)
    x, y, _ = np.indices(SHAPE)
    phase = np.angle(np.exp(1j * (0.3 * x + 0.2 * y + rng.normal(0, 0.2, SHAPE))))
    for _ in range(12):
        i, j, k = (rng.integers(4, n - 4) for n in SHAPE)
        swi[i - 1 : i + 2, j - 1 : j + 2, k] = 10
    folder = tmp_path_factory.mktemp("images")
    found = []
    for name, data in (("swi", swi), ("phase", phase)):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
        found.append(nib.load(folder / f"{name}.nii.gz"))
    return tuple(found)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Drawn weights whose scores lie about one half, so that some candidates are kept."""
    config = Config(
        name="tiny",
        model=TINY_MODEL,
        inference=InferenceConfig(
            score_threshold=0.5,
            definite_threshold=0.6,
            candidate_threshold=0.3,
            max_detections=40,
            max_candidates=40,
        ),
    )
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "objectness" in str(path) and leaf.ndim == 1 else leaf,
        params_of(Detector(config.model, rngs=nnx.Rngs(3))),
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_bundle(path, params, config)
    return cmb_jax.load_detector(path)


@pytest.fixture(scope="module")
def region_map(images):
    volume = cmb_jax.read_volume(images[0].get_filename())
    return RegionMap(
        code=encode(np.full(volume.shape, int(Region.FRONTAL)), np.full(volume.shape, int(Side.LEFT))),
        affine=volume.affine,
    )


@pytest.fixture(scope="module")
def prediction(detector, images, region_map):
    swi, phase = (image.get_filename() for image in images)
    return detector.predict(swi, phase, phase_sign="+1", region_map=region_map)


def test_files_images_arrays_and_volumes_give_the_same(detector, images, region_map, prediction):
    assert len(prediction.kept) > 3
    forms = {
        "nibabel": images,
        "arrays": [(np.asarray(image.dataobj), image.affine) for image in images],
        "volumes": [cmb_jax.read_volume(image.get_filename()) for image in images],
    }
    for name, (swi, phase) in forms.items():
        same = detector.predict(swi, phase, phase_sign="+1", region_map=region_map)
        assert same.rows == prediction.rows, name


def test_what_is_no_image_is_refused(detector, images):
    swi = images[0]
    for wrong, match in (
        (3, "int is not an image"),
        ((np.zeros(SHAPE), np.eye(4)), "every voxel is 0"),
        ((np.ones((3, 3)), np.eye(4)), "is not a volume"),
        ((np.asarray(swi.dataobj), np.zeros((4, 4))), "affine"),
        ("nowhere.nii.gz", "nowhere.nii.gz"),
    ):
        with pytest.raises(cmb_jax.UserError, match=match):
            detector.predict(wrong)


def test_the_table_holds_the_rows(prediction, monkeypatch):
    real_import = builtins.__import__

    def without_pandas(name, *rest):
        if name == "pandas":
            raise ImportError
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    records = prediction.table()
    assert [row["id"] for row in records] == [row.id for row in prediction.kept]
    assert len(prediction.table("all")) == len(prediction.rows)


def test_save_writes_what_the_command_writes(prediction, tmp_path):
    folder = prediction.save(tmp_path / "result")
    files = {"detections.csv", "detections.json", "labels.nii.gz"}
    pages = {"report.html", "viewer.html", "methods.md", "prov.jsonld"}
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == files | pages
    with (folder / "detections.csv").open(newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == [row.id for row in prediction.rows]
    with pytest.raises(cmb_jax.UserError, match="exists"):
        prediction.save(folder)
    stored = nib.load(folder / "labels.nii.gz")
    labels = prediction.labels()
    np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_allclose(labels.affine, stored.affine, atol=1e-5)


def test_it_shows_itself_shortly(detector, prediction):
    assert len(repr(prediction)) < 200
    assert f"{len(prediction.kept)} kept" in repr(prediction)
    assert "tiny" in repr(detector)
    assert len(repr(prediction.swi)) < 200
    page = ElementTree.fromstring(f"<div>{prediction._repr_html_()}</div>")
    assert len(page.findall("table/tbody/tr")) == len(prediction.kept)
    assert page.find("svg/image") is not None
    shown = prediction.show(browser=False)
    assert "<html" in shown.read_text()


def test_public_names_are_seen_and_explained():
    assert {"load_detector", "predict", "read_volume", "Prediction", "Volume"} <= set(dir(cmb_jax))
    text = pydoc.render_doc(cmb_jax, renderer=pydoc.plaintext)
    assert "load_detector(" in text
    assert "by the name of bundled weights" in text
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = cmb_jax.nothing_like_it


def test_importing_it_imports_nothing_heavy():
    code = "import cmb_jax, sys; dir(cmb_jax); cmb_jax.UserError; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
