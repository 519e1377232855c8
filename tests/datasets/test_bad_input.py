"""Each kind of bad input: listed, or one line and exit code 2."""

import numpy as np
import openpyxl
import pytest
from scipy.io import savemat

from tests.datasets import trees
from tests.datasets.trees import refused

# one bad case beside a good one: it is listed, and the rest is used


def dou_with(tmp_path, **arrays):
    trees.dou(tmp_path)
    savemat(tmp_path / "ground_truth" / "01.mat", arrays)
    return tmp_path


def dou_73(tmp_path):
    trees.dou(tmp_path)
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"  # 512 bytes of text before an HDF5 file
    (tmp_path / "ground_truth" / "01.mat").write_bytes(text.ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(2000))
    return tmp_path


def dou_text(tmp_path):
    trees.dou(tmp_path)
    (tmp_path / "ground_truth" / "01.mat").write_text("1 2 3")
    return tmp_path


def dou_truncated(tmp_path):
    path = trees.dou(tmp_path) / "ground_truth" / "01.mat"
    path.write_bytes(path.read_bytes()[:200])
    return tmp_path


def dou_image(data):
    def make(tmp_path):
        trees.save(trees.dou(tmp_path) / "nii" / "01.nii", data)
        return tmp_path

    return make


def valdo_soft(tmp_path):
    trees.valdo_case(tmp_path, "sub-101", trees.mask([(5, 5, 5)], value=1.5))
    trees.valdo_case(tmp_path, "sub-102", trees.mask([(5, 5, 5)]))
    return tmp_path


def csiro_row(name, *point):
    """A row that is no triplet takes its scan out, and the one that synthetic lesions were added to."""

    def make(tmp_path):
        root = trees.csiro(tmp_path) / "PublicDataShare_2020"
        trees.book(root / "rCMBInformationInfo.xlsx", trees.csiro_rows([(name, [point])]))
        for part in ("sCMB_DefiniteSubject", "rCMB_DefiniteSubject")[: 1 if name else 2]:
            for path in (root / part).iterdir():
                path.unlink()
        (root / "sCMBInformationInfo.xlsx").unlink()
        (root / "sCMB_DefiniteSubject").rmdir()
        return tmp_path

    return make


def yonsei_columns(rows):
    def make(tmp_path):
        trees.book(trees.yonsei(tmp_path) / "HR" / "Label" / "S001.xlsx", rows)
        return tmp_path

    return make


def yonsei_no_table(tmp_path):
    (trees.yonsei(tmp_path) / "HR" / "Label" / "S001.xlsx").unlink()
    return tmp_path


def csv_with(text):
    def make(tmp_path):
        (trees.folder(tmp_path) / "anna" / "points.csv").write_text(text)
        return tmp_path

    return make


SKIPPED = {
    "holds no variable cen": lambda p: dou_with(p, center=np.ones((1, 3))),
    "cen is 1 x 2": lambda p: dou_with(p, cen=np.ones((1, 2))),
    "cen holds no plain numbers": lambda p: dou_with(p, cen=np.array([{"a": 1}], object)),
    "MATLAB file of version 7.3": dou_73,
    "not a readable MATLAB file of version 5 to 7 (it has no header)": dou_text,
    "01.mat: is not a readable MATLAB file": dou_truncated,
    "all lie inside when read 0-based": lambda p: dou_with(p, cen=np.array([[0, 3, 3], [5, 5, 5]])),
    "1 of 1 centers lie outside the 24 x 28 x 14 voxels, such as (60, 3, 3); correct": lambda p: dou_with(
        p, cen=np.array([[60, 3, 3]])
    ),
    "no voxel holds a number": dou_image(np.full(trees.SHAPE, np.nan, np.float32)),
    "every voxel is 3": dou_image(np.full(trees.SHAPE, 3, np.float32)),
    "is not a 3D image but": dou_image(np.zeros((8, 8, 8, 3), np.float32)),
    "a soft mask must lie in 0 to 1, but its largest value is 1.5": valdo_soft,
    "row 2: z of triplet 1 is blank": csiro_row("122_T1.nii.gz", 1, 2, " "),
    "row 2: y of triplet 1 is '2 or 3'": csiro_row("122_T1.nii.gz", 1, "2 or 3", 4),
    "row 2 has centers, but no file name": csiro_row(None, 1, 2, 3),
    "its first line is x, y, slice": yonsei_columns([["x", "y", "slice"], [1, 2, 3]]),
    "row 1 is shorter": yonsei_columns([[1, 2]]),
    "row 1: column is blank": yonsei_columns([[1, None, 3]]),
    "row 2: column is 'left'": yonsei_columns([[1, 2, 3], [1, "left", 3]]),
    "has 0 Excel tables": yonsei_no_table,
    "line 3: kind is empty; write cmb": csv_with("x_mm,y_mm,z_mm,kind\n1,2,3,cmb\n1,2,3,\n"),
    "no column x_mm, y_mm, z_mm": csv_with("x,y,z\n1,2,3\n"),
    "line 2: y_mm is 'nan'": csv_with("x_mm,y_mm,z_mm\n1,nan,3\n"),
    "line 2 has 2 values": csv_with("x_mm,y_mm,z_mm\n1,2\n"),
}


@pytest.mark.parametrize("message", SKIPPED)
def test_a_bad_case_is_skipped_and_listed(run, tmp_path, message):
    root = SKIPPED[message](tmp_path)
    code, out, err = run("check", root)
    assert code == 0, err
    listed = out.partition("skipped (1):\n")[2]
    assert message in listed.splitlines()[0]
    assert "Traceback" not in err


def test_images_that_lie_elsewhere_are_left_out_and_orientations_are_said(run, tmp_path):
    trees.yonsei(tmp_path)
    folder = tmp_path / "HR" / "Data" / "S001"
    trees.save(folder / "Phase.nii.gz", trees.brain(seed=1), trees.LPS @ np.diag([-1.0, 1, 1, 1]))
    trees.save(folder / "Mag.nii.gz", trees.brain(shape=(24, 28, 10)))
    trees.save(tmp_path / "LR" / "p2" / "p2_SWI.nii", trees.brain([(9, 3, 6)]), trees.OBLIQUE)
    code, out, _ = run("check", tmp_path)
    assert code == 0
    assert "left out (2):" in out
    assert "phase (RPS) lies up to" in out
    assert "magnitude has the shape (24, 28, 10)" in out
    assert "mixed orientations of the files (LPS 1, RAS 1)" in out


def test_an_image_that_is_gone_or_damaged(run, tmp_path):
    trees.dou(tmp_path)
    (tmp_path / "nii" / "01.nii").write_bytes(b"not an image" * 100)
    code, out, _ = run("check", tmp_path)
    assert code == 0
    assert "01: nii/01.nii: is not a NIfTI file" in out


def test_a_name_that_cannot_be_written(run, tmp_path):
    trees.folder(tmp_path)
    trees.save(tmp_path / "two\nlines_swi.nii", trees.brain())
    code, out, _ = run("check", tmp_path)
    assert code == 0
    assert "rename its files" in out
    assert r"two\nlines" in out


# nothing that can be used: one line


def test_folders_that_are_refused(run, tmp_path):
    refused(run("check", tmp_path / "none"), "no such folder")
    refused(run("check", tmp_path), "the folder is empty")
    (tmp_path / "readme.txt").write_text("hello")
    refused(run("check", tmp_path), "no NIfTI images")
    refused(run("check", tmp_path / "readme.txt"), "is a file")
    refused(run("check", tmp_path, "--kind", "dou"), "has no folders nii and ground_truth")
    refused(run("check", tmp_path, "--kind", "valdo"), "no case of the layout valdo")
    refused(run("index", tmp_path, "--kind", "yonsei", "--out", tmp_path / "i.json"), "no case of the layout")
    assert not (tmp_path / "i.json").exists()


def test_all_cases_bad(run, tmp_path):
    trees.dou(tmp_path)
    (tmp_path / "nii" / "02.nii.gz").unlink()
    savemat(tmp_path / "ground_truth" / "01.mat", {"cen": np.array([[0, 0, 0]])})
    refused(run("index", tmp_path, "--out", tmp_path / "i.json"), "no case can be used")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["Scan", "x", "y", "z"], ["122_T1.nii.gz", 1, 2, 3]], "lacks the expected columns"),
        ([], "lacks the expected columns"),
    ],
)
def test_a_csiro_table_of_another_form_is_refused(run, tmp_path, rows, message):
    root = trees.csiro(tmp_path) / "PublicDataShare_2020"
    (root / "rCMBInformationInfo.xlsx").unlink()
    trees.book(root / "rCMBInformationInfo.xlsx", rows)
    refused(run("check", tmp_path), message)
    (root / "rCMBInformationInfo.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 an old workbook")
    refused(run("check", tmp_path), "is not a readable Excel workbook")


def test_formulas_are_not_run(tmp_path):
    from cmb_jax.datasets.tables import read_sheet

    book = openpyxl.Workbook()
    book.active.append(["=1+1", "=cmd|' /C calc'!A0"])
    book.save(tmp_path / "a.xlsx")
    assert read_sheet(tmp_path / "a.xlsx") in ([], [()])
