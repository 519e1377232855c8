"""Each kind of bad file: exit code 2, one line that names it and says what to do, and nothing written."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from cmb_jax.review.result import load_result
from tests.review.conftest import AFFINES, make_result
from tests.review.edits import at, fill, viewer_export


@pytest.fixture
def refused(run, exported, result, tmp_path):
    def check(*files, match, result=result, out=tmp_path / "t.csv", more=()):
        before = sorted(tmp_path.rglob("*"))
        done = run("import", *files, "--result", result, "--out", out, *more)
        assert done.code == 2
        (line,) = done.err.strip().splitlines()
        assert line.startswith("error: ")
        for text in (match,) if isinstance(match, str) else match:
            assert text in line
        assert sorted(tmp_path.rglob("*")) == before

    return check


def sheet_with(exported, cells, added=()):
    path = exported / "changed.xlsx"
    shutil.copy(exported / "review.xlsx", path)
    fill(path, cells, added)
    return path


SHEETS = {
    "unknown verdict": ({(3, "verdict"): "bleed"}, ("row 3", "microbleed, mimic, uncertain")),
    "unknown mimic": ({(3, "verdict"): "mimic", (3, "mimic"): "ghost"}, "allowed: vessel, calcification"),
    "mimic of a microbleed": ({(3, "verdict"): "microbleed", (3, "mimic"): "vessel"}, "verdict is not mimic"),
    "another subject": ({(4, "subjectid"): "sub-99_swi"}, ("row 4", "'sub-99_swi'", "'sub-07_ses-1_swi'")),
    "no subject": ({(4, "subjectid"): None}, "row 4"),
    "an id twice": ({(3, "id"): 1}, "candidate 1 is listed twice"),
    "an unknown id": ({(3, "id"): 44}, "candidate 44 is not in"),
    "an id that is text": ({(3, "id"): "three"}, "id is 'three'"),
    "an id that is not a whole number": ({(3, "id"): 2.5}, "id is 2.5"),
    "a coordinate that is text": ({(2, "RAS P-A A"): "left"}, ("row 2", "RAS P-A A", "must be a number")),
    "a blank coordinate": ({(2, "RAS I-S S"): None}, "RAS I-S S is blank"),
    "outside the volume": ({(2, "RAS I-S S"): 900}, ("row 2", "does not lie in the volume")),
    "far from its candidate": (
        {(2, "RAS L-R L"): 30.64, (2, "RAS P-A A"): -14.39},
        ("18 mm from candidate 1", "at most 10"),
    ),
    "verify against verdict": ({(2, "verdict"): "mimic", (2, "verify (yes=1)"): 1}, "correct one of them"),
    "verify is a word": ({(2, "verify (yes=1)"): "yes"}, "allowed: 1, 0"),
}


@pytest.mark.parametrize("what", SHEETS)
def test_spreadsheets(refused, exported, what):
    cells, match = SHEETS[what]
    refused(sheet_with(exported, cells), match=match)


def test_added_lesions_of_a_spreadsheet(refused, exported):
    place = at(12.0, 14.0, -20.0)
    refused(sheet_with(exported, {}, [place]), match="added without a verdict")
    negative = place | {"verdict": "microbleed", "diameter_mm": -1}
    refused(sheet_with(exported, {}, [negative]), match="diameter_mm is -1")
    refused(sheet_with(exported, {}, [{"verdict": "microbleed"}]), match="RAS L-R L is blank")


def test_files_that_are_none(refused, exported, result, tmp_path):
    text = exported / "a.xlsx"
    text.write_text("not a workbook")
    refused(text, match="not a readable Excel workbook")
    refused(tmp_path / "no.xlsx", match="no such file")
    (exported / "a.docx").write_text("")
    refused(exported / "a.docx", match=".mrk.json")
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    book.save(exported / "b.xlsx")
    refused(exported / "b.xlsx", match="neither the spreadsheet of cmb-jax review export")
    for content in (b"{", b"[]", b'{"markups": 3}', b"\xff\xfe", b"[" * 100_000):
        (exported / "a.mrk.json").write_bytes(content)
        refused(exported / "a.mrk.json", match="a.mrk.json")
    (exported / "a.nii.gz").write_text("no image")
    refused(exported / "a.nii.gz", match="a.nii.gz")
    refused(match="no file of a reader was given")
    refused(exported / "review.xlsx", match="such as sub-01_points.csv", out=tmp_path / "t.xlsx")


def points_with(exported, change):
    document = json.loads((exported / "microbleeds.mrk.json").read_text())
    change(document["markups"][0], document)
    path = exported / "changed.mrk.json"
    path.write_text(json.dumps(document))
    return path


MARKUPS = {
    "an unknown system": (lambda m, _: m.update(coordinateSystem="IJK"), "allowed: LPS, RAS"),
    "the other system": (lambda m, _: m.update(coordinateSystem="RAS"), "other system (LPS, RAS)"),
    "other units": (lambda m, _: m.update(coordinateUnits="um"), "allowed: mm"),
    "no points": (lambda m, _: m.update(type="Curve"), "only the point list"),
    "another schema": (lambda _, d: d.update({"@schema": "http://x"}), "no markups of 3D Slicer"),
    "an unknown word": (lambda m, _: m["controlPoints"][1].update(description="x"), "allowed: microb"),
    "a point twice": (lambda m, _: m["controlPoints"].append(m["controlPoints"][0]), "twice"),
    "an unknown candidate": (lambda m, _: m["controlPoints"][0].update(label="cmb-77"), "candidate 77"),
    "a position of two": (lambda m, _: m["controlPoints"][0].update(position=[1, 2]), "three numbers"),
    "a position of text": (lambda m, _: m["controlPoints"][0].update(position=["1", 2, 3]), "three numbers"),
    "a huge position": (
        lambda m, _: m["controlPoints"][0].update(position=[10**400, 2, 3]),
        "three numbers",
    ),
    "a label of 5000 digits": (
        lambda m, _: m["controlPoints"][0].update(label="cmb-" + "7" * 5000),
        "candidate 777",
    ),
    "a list where a word belongs": (lambda m, _: m["controlPoints"][1].update(description=[]), "descr"),
    "no list": (lambda m, _: m.update(controlPoints={"a": 1}), "not a list of points"),
    "outside": (
        lambda m, _: m["controlPoints"].append({"label": "new-1", "position": [999, 0, 0]}),
        "does not lie in the volume",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MARKUPS)
def test_markups(refused, exported, what):
    change, match = MARKUPS[what]
    refused(points_with(exported, change), match=("changed.mrk.json", match))


def test_labels(refused, exported, tmp_path):
    affine = AFFINES["oblique"]
    labels = np.asarray(nib.load(exported / "labels.nii.gz").dataobj)
    path = exported / "changed.nii.gz"

    def save(values, affine=affine):
        nib.save(nib.Nifti1Image(values, affine), path)
        return path

    refused(save(labels[:-2]), match=("changed.nii.gz: its shape is", "not resampled"))
    shifted = affine.copy()
    shifted[:3, 3] += 3
    refused(save(labels, shifted), match="voxels from")
    refused(save(labels * np.float32(0.5)), match="fractions")
    refused(save(-labels.astype(np.int16)), match="negative")
    refused(save(np.stack([labels] * 2, axis=-1)), match="not a volume of labels")


def test_exports_of_the_viewer(refused, result, tmp_path):
    read = load_result(result)
    path = tmp_path / "combined.xlsx"
    blocks = {"ann": [{"verify": 1}] * 5}
    viewer_export(path, read.rows, "another", blocks)
    refused(path, match="no row has the case_id 'sub-07_ses-1_swi'")
    viewer_export(path, read.rows, read.subject, {"ann": [{"verify": 7}] * 5})
    refused(path, match=("row 2", "verify is '7'"))
    moved = [dataclasses.replace(row, x_mm=row.x_mm + 1) for row in read.rows]
    viewer_export(path, moved, read.subject, blocks)
    refused(path, match="no candidate of")
    viewer_export(path, [*read.rows, read.rows[0]], read.subject, {"ann": [{"verify": 1}] * 6})
    refused(path, match="twice")


def test_results_that_are_none(refused, exported, result, tmp_path):
    sheet = exported / "review.xlsx"
    refused(sheet, match="no such folder", result=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    refused(sheet, match="detections.csv: no such file", result=tmp_path / "empty")
    for name in ("detections.json", "labels.nii.gz"):
        broken = make_result(tmp_path / f"without_{name}")
        (broken / name).unlink()
        refused(sheet, match=name, result=broken)
    wrong = make_result(tmp_path / "wrong")
    text = (wrong / "detections.csv").read_text()
    (wrong / "detections.csv").write_text(text.replace("possible", "perhaps"))
    refused(sheet, match="allowed: definite, possible", result=wrong)
    (wrong / "detections.csv").write_text(text.replace("\n2,", "\n1,"))
    refused(sheet, match="each once", result=wrong)
    (wrong / "detections.csv").write_text(text.replace(",kept,", ",rejected,"))
    refused(sheet, match="is not a kept candidate", result=wrong)
    refused(sheet, match="--subject", more=("--subject", "other"))


def test_an_import_that_was_killed_between_its_files_goes_on(run, exported, result, tmp_path):
    words = ("import", exported / "review.xlsx", "--result", result, "--out", tmp_path / "t.csv")
    assert run(*words).code == 0
    both = [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")]
    (tmp_path / "t.csv").unlink()
    assert run(*words).code == 0
    assert [(tmp_path / name).read_bytes() for name in ("t.csv", "t.json")] == both
    assert run(*words).code == 2  # now it is whole
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.json").write_bytes(both[1] + b" ")
    assert run(*words).code == 2


def test_outputs_that_exist(run, refused, exported, result, tmp_path):
    (tmp_path / "t.json").write_text("mine")
    refused(exported / "review.xlsx", match="t.json: exists already")
    assert run("export", result, "--out", exported).code == 2
    assert run("export", result, "--out", exported, "--overwrite").code == 0
    done = run(
        "import", exported / "review.xlsx", "--result", result, "--out", tmp_path / "t.csv", "--overwrite"
    )
    assert done.code == 0
    assert "4 of 4 kept candidates were read by nobody" in done.err
