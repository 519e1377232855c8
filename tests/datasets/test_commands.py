"""`cmb-jax data check` and `cmb-jax data index`: what they print and write."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cmb_jax.datasets.index import read_index
from cmb_jax.datasets.inspection import convention_doubt, darkness
from tests.datasets import trees
from tests.datasets.trees import refused


@pytest.mark.parametrize("kind", trees.MAKERS)
@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_check_writes_a_contact_sheet(run, tmp_path, kind, suffix):
    root = tmp_path / "data"
    root.mkdir()
    trees.MAKERS[kind](root)
    sheet = tmp_path / f"sheet{suffix}"
    code, out, err = run("check", root, "--out", sheet)
    assert code == 0, err
    assert out.startswith(f"{kind}: ")
    assert "lesions: " in out
    if suffix == ".png":
        picture = np.asarray(Image.open(sheet))
        assert picture.ndim == 2
        assert picture.std() > 5
    else:
        text = sheet.read_text()
        assert text.count("<img") >= 2
        assert "Research use only" in text
    refused(run("check", root, "--out", sheet), "exists already")
    assert run("check", root, "--out", sheet, "--overwrite")[0] == 0


def test_check_says_what_was_found(run, tmp_path):
    trees.csiro(tmp_path)
    code, out, _ = run("check", tmp_path, "--kind", "csiro")
    assert code == 0
    assert "csiro: 4 cases of 2 patients" in out
    assert "rCMB_DefiniteSubject: 1 cases, 1 with truth, 1 with lesions, 2 lesions" in out
    assert "lesions: 6 (points); at most 3 in a case" in out
    assert "6 not measured, 3 mm is taken" in out
    assert "122_T1: 1 repeated triplets were dropped" in out
    assert str(tmp_path) not in out


def test_connectivity_is_named(run, tmp_path):
    trees.valdo_case(tmp_path, "sub-301", trees.mask([(5, 5, 5), (6, 6, 6)]))
    assert "lesions: 1 (components of values >= 0.5, 26-connected)" in run("check", tmp_path)[1]
    assert (
        "lesions: 2 (components of values >= 0.5, 6-connected)"
        in run("check", tmp_path, "--connectivity", 6)[1]
    )


def test_index(run, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    trees.dou(root)
    trees.save(root / "nii" / "09.nii", trees.brain())
    code, out, _ = run("index", root, "--out", tmp_path / "i.json")
    assert code == 0
    assert "nii/09.nii: has no list of centers" in out
    index, _ = read_index(tmp_path / "i.json")
    assert [case.case_id for case in index.cases] == ["01", "02"]
    refused(run("index", root, "--out", tmp_path / "i.json"), "exists already")
    assert run("index", root, "--out", tmp_path / "i.json", "--overwrite")[0] == 0


def test_contact_sheet_of_another_kind_or_without_lesions(run, tmp_path):
    trees.valdo_case(tmp_path, "sub-101", trees.mask([]))
    refused(run("check", tmp_path, "--out", tmp_path / "a.pdf"), ".png or .html")
    code, out, _ = run("check", tmp_path, "--out", tmp_path / "a.png")
    assert code == 0
    assert "1 cases, 1 with truth, 0 with lesions" in out
    assert f"not written: {tmp_path / 'a.png'}: there is no lesion to show" in out
    assert not (tmp_path / "a.png").exists()


def test_a_table_that_counts_from_0_is_noticed(run, tmp_path):
    trees.dou(tmp_path)
    points = [(5, 7, 4), (14, 19, 8), (10, 10, 10), (18, 8, 3), (6, 20, 6), (16, 14, 11)]
    trees.save(tmp_path / "nii" / "01.nii", trees.brain(points))
    savemat(tmp_path / "ground_truth" / "01.mat", {"cen": np.array(points)})
    assert "when they are read 0-based" in run("check", tmp_path)[1]
    savemat(tmp_path / "ground_truth" / "01.mat", {"cen": np.array(points) + 1})
    assert "0-based" not in run("check", tmp_path)[1]


def test_darkness_against_its_definition(rng):
    data = rng.normal(size=(20, 20, 20)).astype(np.float32)
    window = data[4:17, 2:15, 0:9]
    expected = (window.mean() - data[10, 8, 2]) / window.std()
    np.testing.assert_allclose(darkness(data, np.array([[10.2, 7.9, 2.0]])), [expected], rtol=1e-4)
    assert np.isnan(darkness(data, np.array([[20, 0, 0]]))).all()
    assert convention_doubt(np.zeros(4), np.full(4, 9.0)) is None
    assert convention_doubt(np.zeros(5), np.full(5, 9.0)) is not None
