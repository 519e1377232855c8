"""The files for readers, each against the format as its own program reads it."""

import dataclasses
import json
import re

import jsonschema
import nibabel as nib
import numpy as np
import openpyxl
import pytest

from cmb_jax.review.result import load_result
from cmb_jax.review.spreadsheet import spreadsheet
from tests.review.conftest import AFFINES, make_result, make_rows

# What schema version 1.0.3 of Slicer's markups says of the members that are written here.
NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
COLOR = NUMBERS | {"items": {"type": "number", "minimum": 0, "maximum": 1}}
POINT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: {"type": "string"} for name in ("id", "label", "description")},
        **{name: {"type": "boolean"} for name in ("selected", "locked", "visibility")},
        "position": NUMBERS,
        "positionStatus": {"enum": ["undefined", "preview", "defined"]},
    },
}
DISPLAY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: {"type": "boolean"} for name in ("visibility", "pointLabelsVisibility", "sliceProjection")},
        **dict.fromkeys(("color", "selectedColor"), COLOR),
        "glyphType": {"enum": ["Vertex2D", "Cross2D", "Circle2D", "Diamond2D", "Sphere3D", "Diamond3D"]},
    },
}
MARKUP = {
    "type": "object",
    "required": ["type"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"]},
        **{name: {"type": "string"} for name in ("name", "labelFormat")},
        **{name: {"type": "boolean"} for name in ("locked", "fixedNumberOfControlPoints")},
        "coordinateSystem": {"enum": ["LPS", "RAS"]},
        "coordinateUnits": {"enum": ["mm", "um"]},
        "controlPoints": {"type": "array", "items": POINT},
        "display": DISPLAY,
    },
}
SCHEMA = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {
        # the expression that Slicer accepts an identifier by
        "@schema": {"type": "string", "pattern": r".*markups-schema-v1\.[0-9]+\.[0-9]+\.json#*$"},
        "markups": {"type": "array", "items": MARKUP},
    },
}


def snap_labels(text):
    """{index: (red, green, blue, alpha, visible, mesh, label)} as ITK-SNAP's LoadFromFile takes them."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            numbers, rest = line.split('"', 1)
            index, red, green, blue, alpha, visible, mesh = numbers.split()
            label, tail = rest.split('"', 1)
            assert not tail
            color = (int(red), int(green), int(blue))
            assert all(0 <= part <= 255 for part in color)
            found[int(index)] = (*color, float(alpha), int(visible), int(mesh), label)
    return found


def test_what_is_written(exported, result):
    assert {path.name for path in exported.iterdir() if not path.name.startswith(".")} == {
        "labels.nii.gz",
        "labels_itksnap.txt",
        "microbleeds.mrk.json",
        "review.xlsx",
    }
    ours, theirs = nib.load(exported / "labels.nii.gz"), nib.load(result / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)


def test_itksnap_names_every_label_of_the_image(exported):
    text = (exported / "labels_itksnap.txt").read_text()
    assert text.startswith(
        "################################################\n# ITK-SnAP Label Description File\n"
    )
    labels = snap_labels(text)
    assert labels[0] == (0, 0, 0, 0.0, 0, 0, "Clear Label")
    values = set(np.unique(np.asarray(nib.load(exported / "labels.nii.gz").dataobj))) - {0}
    assert values == {1, 2, 3, 4}
    assert values < set(labels)
    assert labels[1][-1] == "1: definite, left frontal, 4.0 mm, score 0.95"
    assert [labels[value][-1] for value in (60001, 60002, 60003)] == [
        "reader: microbleed",
        "reader: uncertain",
        "reader: mimic",
    ]
    # the columns of ITK-SNAP's own writer
    assert re.search(r'^    1   230   60   60        1  1  1    "1: ', text, re.MULTILINE)


def test_markups_fit_the_schema_and_lie_in_lps(exported):
    document = json.loads((exported / "microbleeds.mrk.json").read_text())
    jsonschema.validate(document, SCHEMA)
    (points,) = document["markups"]
    assert points["coordinateSystem"] == "LPS"
    rows = make_rows(AFFINES["oblique"])
    assert [point["label"] for point in points["controlPoints"]] == [f"cmb-{row.id}" for row in rows]
    for point, row in zip(points["controlPoints"], rows, strict=True):
        np.testing.assert_allclose(point["position"], [-row.x_mm, -row.y_mm, row.z_mm], atol=1e-9)
        assert point["selected"] == point["visibility"] == (row.status == "kept")
        assert point["description"].startswith(f"{row.status}; {row.category}; ")
    assert points["controlPoints"][4]["description"].endswith("; inside a ventricle")


def test_spreadsheet_is_what_the_viewer_reads(exported):
    book = openpyxl.load_workbook(exported / "review.xlsx", read_only=True, data_only=True)
    rows = list(book["MCH-microhemorrage"].iter_rows(values_only=True))
    header = [str(value).strip() if value is not None else "" for value in rows[0]]
    needed = {"subjectid", "RAS L-R L", "RAS P-A A", "RAS I-S S", "verify (yes=1)"}
    assert needed <= set(header)
    filled = [dict(zip(header, row, strict=True)) for row in rows[1:] if any(v is not None for v in row)]
    expected = make_rows(AFFINES["oblique"])
    assert len(filled) == len(expected)
    for found, row in zip(filled, expected, strict=True):
        place = [float(found[name]) for name in ("RAS L-R L", "RAS P-A A", "RAS I-S S")]
        assert place == [row.x_mm, row.y_mm, row.z_mm]
        assert found["subjectid"] == "sub-07_ses-1_swi"
        assert found["verify (yes=1)"] is None
        assert found["slicecount"] == row.k


def test_spreadsheet_lets_choose_verdicts(exported):
    sheet = openpyxl.load_workbook(exported / "review.xlsx").worksheets[0]
    rules = {str(rule.sqref): rule for rule in sheet.data_validations.dataValidation}
    (verdicts,) = [rule for rule in rules.values() if "microbleed" in rule.formula1]
    assert verdicts.formula1 == '"microbleed,mimic,uncertain"'
    assert "C2" in verdicts.sqref
    assert "C50" in verdicts.sqref  # rows for lesions that are added
    assert all(len(rule.formula1) <= 257 for rule in rules.values())  # Excel takes 255 between the quotes


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+1", "-2", "@SUM(A1)", "\t=1"])
def test_no_text_becomes_a_formula(tmp_path, text):
    rows = make_rows(AFFINES["RAS"])
    rows = (*rows[:-1], dataclasses.replace(rows[-1], reason=text, region=text, zone="lobar"))
    folder = make_result(tmp_path / "r", rows, AFFINES["RAS"])
    (tmp_path / "a.xlsx").write_bytes(spreadsheet(load_result(folder, "=1+1")))
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").worksheets[0]
    texts = [cell for line in sheet.iter_rows() for cell in line if isinstance(cell.value, str)]
    assert all(cell.data_type == "s" and cell.quotePrefix for cell in texts)
    assert sum(cell.value == text.strip() for cell in texts) == 1
    assert sum(cell.value == "=1+1" for cell in texts) == 5


def test_quotes_in_a_region_do_not_break_the_label_file(tmp_path, run):
    rows = make_rows(AFFINES["RAS"])
    rows = (dataclasses.replace(rows[0], region='a"b" 9'), *rows[1:])
    folder = make_result(tmp_path / "r", rows, AFFINES["RAS"])
    assert run("export", folder, "--out", tmp_path / "e").code == 0
    assert "a'b' 9" in snap_labels((tmp_path / "e" / "labels_itksnap.txt").read_text())[1][-1]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-07_swi.nii.gz", "sub-07_swi"),
        ("swi.nii.gz", "scan-abababab"),
        ("DOE_JANE.nii.gz", "scan-abababab"),
    ],
)
def test_the_subject_is_a_pseudonym(tmp_path, name, subject):
    assert load_result(make_result(tmp_path / "r", name=name)).subject == subject
    assert load_result(tmp_path / "r", "as asked").subject == "as asked"
