"""Each reader on a miniature tree in its layout."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import cmb_jax
from cmb_jax.datasets import csiro, dou, folder, valdo, yonsei
from cmb_jax.datasets.cases import MaskTruth
from cmb_jax.datasets.find import find, guess_kind
from cmb_jax.datasets.inspection import inspect
from cmb_jax.datasets.lesions import DEFAULT_DIAMETER_MM, lesions_of
from cmb_jax.errors import UserError
from tests.datasets import trees


def said(index, level=None):
    return [f"{p.where}: {p.what}" for p in index.problems if level in (None, p.level)]


def by_id(index):
    return {case.case_id: case for case in index.cases}


@pytest.fixture
def valdo_tree(tmp_path):
    root = tmp_path / "Task2"
    soft = trees.mask([(slice(4, 6), 7, 4)], value=0.67) + trees.mask([(12, 15, 8)], value=0.33)
    trees.valdo_case(root, "sub-101", soft, points=[(4, 7, 4)], nan=5)
    trees.valdo_case(root, "sub-201", trees.mask([]), roles=("T2S", "T1"))
    trees.valdo_case(root, "sub-301", trees.mask([(5, 5, 5), (6, 6, 6)]))
    (root / "sub-101" / "._sub-101_space-T2S_CMB.nii.gz").write_bytes(b"macOS")
    return tmp_path


def test_valdo(valdo_tree):
    index = valdo.find(valdo_tree)
    cases = by_id(index)
    assert [case.cohort for case in index.cases] == ["SABRE", "RSS", "ALFA"]
    assert cases["sub-101"].images == {
        role: f"Task2/sub-101/sub-101_space-T2S_desc-masked_{role.upper()}.nii.gz"
        for role in ("t2s", "t1", "t2")
    }
    assert cases["sub-101"].truth == MaskTruth(path="Task2/sub-101/sub-101_space-T2S_CMB.nii.gz", soft=True)
    assert cases["sub-101"].reference == "t2s"
    assert said(index) == ["sub-201: no T2 image", "Task2: 3 of the 72 public cases can be used"]
    # below 0.5 nothing counts; touching by a corner is one lesion at 26 and two at 6
    counts = {c: [len(lesions_of(case, valdo_tree, connectivity=c)) for case in index.cases] for c in (6, 26)}
    assert counts == {26: [1, 0, 1], 6: [1, 0, 2]}
    found = inspect(index, valdo_tree)
    assert found.total == 2
    assert any("5 voxels were NaN" in line for line in said(found.index, "note"))
    assert not said(found.index, "skipped")


@pytest.mark.parametrize("gone", ["T2S", "CMB"])
def test_valdo_without_scan_or_truth_is_skipped(valdo_tree, gone):
    next((valdo_tree / "Task2" / "sub-301").glob(f"*{gone}.nii.gz")).unlink()
    index = valdo.find(valdo_tree / "Task2")
    assert "sub-301" not in by_id(index)
    assert f"_{gone}.nii.gz" in said(index, "skipped")[0]


def test_valdo_capital_letters_and_two_files_for_one(valdo_tree):
    source = valdo_tree / "Task2" / "sub-301"
    source.rename(valdo_tree / "Task2" / "SUB-301")
    assert "sub-301" in by_id(valdo.find(valdo_tree))
    trees.save(valdo_tree / "Task2" / "SUB-301" / "sub-301_space-T2S_CMB.nii", trees.mask([]))
    index = valdo.find(valdo_tree)
    assert "sub-301" not in by_id(index)
    assert "two files for one image" in said(index, "skipped")[0]


def test_valdo_counts_as_scipy_does(tmp_path, rng):
    soft = np.where(rng.uniform(size=trees.SHAPE) < 0.12, rng.uniform(size=trees.SHAPE), 0)
    trees.valdo_case(tmp_path, "sub-102", soft.astype(np.float32), affine=trees.OBLIQUE)
    case = valdo.find(tmp_path).cases[0]
    for connectivity, order in ((6, 1), (18, 2), (26, 3)):
        structure = ndimage.generate_binary_structure(3, order)
        labels, count = ndimage.label(soft.astype(np.float32) >= 0.5, structure)
        found = lesions_of(case, tmp_path, connectivity=connectivity)
        assert len(found) == count > 3
        index = np.array(ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)))
        expected = index @ trees.OBLIQUE[:3, :3].T + trees.OBLIQUE[:3, 3]
        order_a, order_b = (np.lexsort(np.round(points, 4).T) for points in (found.centers_mm, expected))
        np.testing.assert_allclose(found.centers_mm[order_a], expected[order_b], atol=1e-4)


def test_csiro(tmp_path):
    index = csiro.find(trees.csiro(tmp_path))
    cases = by_id(index)
    assert cases["122_T1"].truth.points == ((6, 8, 5), (15, 20, 9))  # the repeat is dropped
    assert cases["122_T1"].notes == ("1 repeated triplets were dropped",)
    assert cases["130_T1"].truth.points == ()
    # the real microbleeds are still in the scan that synthetic ones were added to
    assert cases["122_T1_rsCMB_3"].truth.points == ((10, 12, 4), (6, 8, 5), (15, 20, 9))
    assert cases["130_T1_sCMB_1"].truth.points == ((9, 9, 7),)
    assert index.patients == ("122", "130")
    assert not index.problems
    found = inspect(index, tmp_path)
    assert found.lesions == {"122_T1": 2, "122_T1_rsCMB_3": 3, "130_T1": 0, "130_T1_sCMB_1": 1}
    assert found.default_diameters == 6
    assert (found.contrast > 3).all()  # 1-based centers lie on the dark voxels
    np.testing.assert_allclose(
        lesions_of(cases["130_T1_sCMB_1"], tmp_path).centers_mm, [(trees.LPS @ [8, 8, 6, 1])[:3]]
    )


def test_csiro_part_of_it(tmp_path):
    root = trees.csiro(tmp_path) / "PublicDataShare_2020"
    (root / "sCMBInformationInfo.xlsx").unlink()
    (root / "rCMB_DefiniteSubject" / "122_T1.nii.gz").rename(root / "rCMB_DefiniteSubject" / "123_T1.nii.gz")
    index = csiro.find(root)
    assert sorted(by_id(index)) == ["130_T1", "130_T1_sCMB_1"]
    text = "\n".join(said(index, "skipped"))
    assert "123_T1: has no row in rCMBInformationInfo.xlsx" in text
    assert "122_t1: is in rCMBInformationInfo.xlsx, but rCMB_DefiniteSubject has no such image" in text
    assert "sCMBInformationInfo.xlsx is missing, so the truth of its 1 scans is unknown" in text


def test_csiro_needs_the_real_ones_where_synthetic_ones_were_added(tmp_path):
    root = trees.csiro(tmp_path) / "PublicDataShare_2020"
    (root / "rCMBInformationInfo.xlsx").unlink()
    index = csiro.find(root)
    assert sorted(by_id(index)) == ["130_T1", "130_T1_sCMB_1"]
    assert "the real microbleeds in its 1 scans are unknown" in "\n".join(said(index, "skipped"))


@pytest.mark.parametrize("upper", [False, True])
def test_dou(tmp_path, upper):
    index = dou.find(trees.dou(tmp_path, upper=upper))
    first, second = index.cases
    assert first.truth.points == ((6, 8, 5), (15, 20, 9))
    assert second.truth.points == ()
    assert not index.problems
    expected = [(trees.LPS @ [i - 1, j - 1, k - 1, 1])[:3] for i, j, k in first.truth.points]
    lesions = lesions_of(first, tmp_path)
    np.testing.assert_allclose(lesions.centers_mm, expected)
    assert (lesions.diameters_mm == DEFAULT_DIAMETER_MM).all()
    assert not lesions.measured


def test_dou_two_images_with_one_id_and_missing_files(tmp_path):
    trees.dou(tmp_path)
    trees.save(tmp_path / "nii" / "01.nii.gz", trees.brain())
    trees.save(tmp_path / "nii" / "03.nii", trees.brain())
    index = dou.find(tmp_path)
    assert list(by_id(index)) == ["02"]
    assert said(index) == [
        "01: two images with one ID (nii/01.nii, nii/01.nii.gz); keep one",
        "nii/03.nii: has no list of centers of its name",
    ]


def test_yonsei(tmp_path):
    index = yonsei.find(trees.yonsei(tmp_path))
    high, low = index.cases
    assert (high.case_id, high.cohort, high.patient_id) == ("HR-s001", "HR", "s001")
    assert high.images == {
        "swi": "HR/Data/S001/SWI.nii.gz",
        "phase": "HR/Data/S001/Phase.nii.gz",
        "magnitude": "HR/Data/S001/Mag.nii.gz",
    }
    assert high.truth.source == "HR/Label/S001.xlsx"
    assert low.notes == ("1 repeated rows were dropped",)
    assert said(index) == ["p2: no phase and no magnitude image"]
    np.testing.assert_allclose(lesions_of(high, tmp_path).centers_mm, [(trees.LPS @ [5, 7, 4, 1])[:3]])
    np.testing.assert_allclose(lesions_of(low, tmp_path).centers_mm, [(trees.LPS @ [9, 3, 6, 1])[:3]])


def test_own_folder(tmp_path):
    index = folder.find(trees.folder(tmp_path))
    cases = by_id(index)
    assert sorted(cases) == ["anna", "sub-01", "sub-02_ses-2"]
    assert cases["sub-02_ses-2"].patient_id == "sub-02"
    assert cases["sub-02_ses-2"].images.keys() == {"magnitude"}
    assert cases["sub-02_ses-2"].truth is None
    expected = [(trees.OBLIQUE @ [5, 7, 4, 1])[:3]]
    points, blob = (lesions_of(cases[name], tmp_path) for name in ("anna", "sub-01"))
    np.testing.assert_allclose(points.centers_mm, expected)
    np.testing.assert_allclose(blob.centers_mm, expected, atol=1e-5)
    assert points.measured
    assert points.diameters_mm == 4.5
    volume = 9 * abs(np.linalg.det(trees.OBLIQUE[:3, :3]))
    np.testing.assert_allclose(blob.diameters_mm, 2 * (volume * 3 / (4 * np.pi)) ** (1 / 3), rtol=1e-5)
    np.testing.assert_array_equal(blob.boxes, [[4, 6, 4, 5, 9, 7]])  # (z0, y0, x0, z1, y1, x1)


def test_rows_of_another_kind_are_no_lesions(tmp_path):
    root = trees.folder(tmp_path)
    x, y, z = (trees.OBLIQUE @ [5, 7, 4, 1])[:3]
    lines = [
        f"{x},{y},{z},{d},{kind}" for d, kind in ((2, "mimic"), (3, "CMB"), (4, "uncertain"), (5, "cmb"))
    ]
    (root / "anna" / "points.csv").write_text("\n".join(["x_mm,y_mm,z_mm,diameter_mm,kind", *lines]))
    found = lesions_of(by_id(folder.find(root))["anna"], root)
    assert found.diameters_mm.tolist() == [3, 5]


def test_the_bundled_phantom_counts_as_an_own_folder():
    root = Path(cmb_jax.__file__).parent / "demo"
    found = inspect(find(root), root)
    (case,) = found.index.cases
    assert case.images.keys() == {"swi", "phase"}
    table = next(root.rglob("*_desc-lesions.tsv")).read_text()
    assert found.total == table.count("\tcmb\t")
    assert np.median(found.contrast) > 1


def test_own_folder_patients_file(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "patients.csv").write_text("case_id;patient_id\nanna;P7\nsub-01;P7\n")
    cases = by_id(folder.find(tmp_path))
    assert cases["anna"].patient_id == cases["sub-01"].patient_id == "P7"


def test_own_folder_two_subjects_with_one_id(tmp_path):
    for name in ("a", "b"):
        trees.save(tmp_path / name / "sub-01_swi.nii.gz", trees.brain())
    trees.save(tmp_path / "sub-02_swi.nii.gz", trees.brain())
    index = folder.find(tmp_path)
    assert list(by_id(index)) == ["sub-02"]
    assert "sub-01: two files for its swi (a/sub-01_swi.nii.gz, b/sub-01_swi.nii.gz)" in said(index)[0]


@pytest.mark.parametrize("kind", trees.MAKERS)
def test_kind_is_guessed(tmp_path, kind):
    trees.MAKERS[kind](tmp_path)
    assert guess_kind(tmp_path) == kind


def test_kind_valdo_is_guessed_and_two_layouts_are_refused(valdo_tree):
    assert guess_kind(valdo_tree) == "valdo"
    assert guess_kind(valdo_tree / "Task2") == "valdo"
    trees.dou(valdo_tree)
    with pytest.raises(UserError, match="valdo and of dou"):
        find(valdo_tree)
