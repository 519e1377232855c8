"""Files of the viewer: what is in them comes back, and what does not belong is refused in one line."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.datasets.folder import find
from cmb_jax.evaluation.read import find_truth
from cmb_jax.io.atomic import sha256_file
from cmb_jax.review.reading import read_readings
from cmb_jax.review.result import load_result
from cmb_jax.review.verdicts import MIMIC_KINDS, parse_verdicts
from tests.review.conftest import AFFINES, make_result, make_rows


def mark(row, verdict, **more):
    return {"candidate": row.id, "verdict": verdict, "position_mm": [row.x_mm, row.y_mm, row.z_mm]} | more


def content(folder, marks, added=(), reader="AB", **changes):
    return {
        "format": "cmb-jax verdicts",
        "format_version": 1,
        "swi_sha256": "ab" * 32,
        "detections_sha256": sha256_file(folder / "detections.csv"),
        "reader": reader,
        "saved": "2026-01-01T00:00:00Z",
        "coordinates": "RAS mm",
        "marks": list(marks),
        "added": list(added),
    } | changes


def save(path, *arguments, **changes):
    path.write_text(json.dumps(content(*arguments, **changes)))
    return path


ROWS = make_rows(AFFINES["oblique"])


def test_what_was_said_comes_back(result, tmp_path):
    place = [
        round((a + b) / 2, 2)
        for a, b in zip(
            (ROWS[0].x_mm, ROWS[0].y_mm, ROWS[0].z_mm),
            (ROWS[3].x_mm, ROWS[3].y_mm, ROWS[3].z_mm),
            strict=True,
        )
    ]
    marks = [
        mark(ROWS[0], "microbleed", certainty="possible", comment="faint"),
        mark(ROWS[1], "mimic", mimic="vessel"),
        mark(ROWS[2], "uncertain"),
        mark(ROWS[4], "microbleed"),
    ]
    added = [{"verdict": "microbleed", "certainty": "definite", "position_mm": place, "diameter_mm": 3.5}]
    path = save(tmp_path / "ab.json", result, marks, added)
    (reading,) = read_readings(path, load_result(result))
    said = [(each.verdict, each.mimic, each.certainty) for each in reading.marks]
    assert said == [
        ("microbleed", "", "possible"),
        ("mimic", "vessel", ""),
        ("uncertain", "", ""),
        (None, "", ""),
        ("microbleed", "", ""),
    ]
    assert [(each.position_mm, each.diameter_mm) for each in reading.added] == [(tuple(place), 3.5)]
    assert reading.reader == "AB"


def test_import_writes_truth_for_training_and_evaluation(run, result, tmp_path):
    """The table goes to the reader of own folders, the labels to that of truth; both say the same places."""
    first = [
        mark(ROWS[0], "microbleed", certainty="definite"),
        mark(ROWS[1], "microbleed", certainty="possible"),
        mark(ROWS[2], "mimic", mimic="vessel"),
        mark(ROWS[3], "microbleed"),
    ]
    second = [
        mark(ROWS[0], "microbleed", certainty="possible"),
        mark(ROWS[1], "microbleed", certainty="possible"),
        mark(ROWS[2], "mimic"),
        mark(ROWS[3], "mimic"),
    ]
    files = [save(tmp_path / "a.json", result, first), save(tmp_path / "b.json", result, second, reader="CD")]
    site, labels = tmp_path / "site", tmp_path / "truth" / "sub-07_ses-1.nii.gz"
    site.mkdir()
    out = site / "sub-07_ses-1_points.csv"
    outcome = run("import", *files, "--result", result, "--out", out, "--labels", labels)
    assert outcome.code == 0, outcome.err
    assert "readers 1 and 2" in outcome.out
    lines = list(csv.DictReader(out.open()))
    assert [(line["kind"], line["mimic"], line["certainty"]) for line in lines] == [
        ("cmb", "", "possible"),
        ("cmb", "", "possible"),
        ("mimic", "vessel", ""),
        ("uncertain", "", ""),
    ]
    # a reader's initials and comments stay in the reader's own file
    assert "AB" not in out.read_text()
    assert '"AB"' not in out.with_suffix(".json").read_text()

    (source,) = find_truth(labels.parent)
    truth = source.read()
    assert source.subject == "sub-07_ses-1"
    expected = [(row.x_mm, row.y_mm, row.z_mm) for row in ROWS[:2]]
    voxel = np.linalg.norm(nib.load(labels).header.get_zooms())
    np.testing.assert_allclose(np.sort(truth.centers_mm, axis=0), np.sort(expected, axis=0), atol=voxel / 2)

    image = nib.load(labels)
    there = np.argwhere(np.asarray(image.dataobj) == 1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    every = np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    inside = np.linalg.norm(every - expected[0], axis=-1) <= ROWS[0].diameter_mm / 2
    assert len(there) == inside.sum() > 10

    nib.save(
        nib.Nifti1Image(np.ones(image.shape, np.float32), image.affine), site / "sub-07_ses-1_swi.nii.gz"
    )
    (case,) = find(site).cases
    assert case.truth is not None
    np.testing.assert_allclose(case.truth.points, expected, atol=0.01)
    assert len(case.truth.mimics) == 1
    again = run("import", *files, "--result", result, "--out", out, "--labels", labels)
    assert again.code == 2
    assert "exists already" in again.err
    elsewhere = site / "elsewhere.csv"
    again = run("import", *files, "--result", result, "--out", elsewhere, "--labels", labels)
    assert again.code == 2
    assert f"{labels}: exists already" in again.err
    assert not elsewhere.exists()  # one that exists stops all three
    more = ("--labels", labels, "--overwrite")
    assert run("import", *files, "--result", result, "--out", out, *more).code == 0


def test_a_scan_without_microbleeds_gives_empty_labels(run, result, tmp_path):
    path = save(tmp_path / "a.json", result, [mark(row, "mimic") for row in ROWS])
    out, labels = tmp_path / "sub-07_points.csv", tmp_path / "sub-07.nii.gz"
    assert run("import", path, "--result", result, "--out", out, "--labels", labels).code == 0
    assert not np.asarray(nib.load(labels).dataobj).any()
    assert run("import", path, "--result", result, "--out", tmp_path / "b.csv", "--labels", "x.png").code == 2


def test_two_readers_with_one_name(run, result, tmp_path):
    files = [save(tmp_path / name, result, [mark(ROWS[0], "microbleed")]) for name in ("a.json", "b.json")]
    outcome = run("import", *files, "--result", result, "--out", tmp_path / "points.csv")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "reader AB: two of the files are by this reader" in outcome.err
    assert not (tmp_path / "points.csv").exists()


def test_another_scan_and_another_run(run, result, tmp_path):
    for name, told in (
        ("swi_sha256", "on another scan"),
        ("detections_sha256", "on another run of this scan"),
    ):
        path = save(tmp_path / "a.json", result, [mark(ROWS[0], "microbleed")], **{name: "cd" * 32})
        outcome = run("import", path, "--result", result, "--out", tmp_path / "points.csv")
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
        assert str(path) in outcome.err
        assert told in outcome.err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"coordinates": "LPS mm"}, "not RAS mm"),
        ({"reader": ""}, "its reader is ''"),
        ({"reader": "a/b"}, "its reader is 'a/b'"),
        ({"swi_sha256": "xyz"}, "swi_sha256 is not a SHA-256"),
        ({"marks": None}, "its marks are not a list"),
        ({"marks": ["x"]}, "is not an entry"),
        ({"marks": [mark(ROWS[0], "microbleed", candidate="1")]}, "its candidate is '1'"),
        ({"marks": [mark(ROWS[0], "microbleed", candidate=True)]}, "its candidate is True"),
        ({"marks": [mark(ROWS[0], "yes")]}, "verdict is 'yes'"),
        ({"marks": [mark(ROWS[0], "mimic", mimic="ghost")]}, "kind of mimic is 'ghost'"),
        ({"marks": [mark(ROWS[0], "uncertain", mimic="vessel")]}, "the verdict is not mimic"),
        ({"marks": [mark(ROWS[0], "mimic", certainty="definite")]}, "certainty is 'definite'"),
        ({"marks": [mark(ROWS[0], "microbleed", certainty="sure")]}, "certainty is 'sure'"),
        ({"marks": [mark(ROWS[0], "microbleed", comment=7)]}, "must be texts"),
        ({"marks": [mark(ROWS[0], "microbleed", position_mm=[1, 2])]}, "its position is [1, 2]"),
        ({"marks": [mark(ROWS[0], "microbleed", position_mm=[1, 2, float("nan")])]}, "must be three numbers"),
        ({"marks": [mark(ROWS[0], "microbleed", diameter_mm=0)]}, "its diameter is 0"),
        ({"marks": [mark(ROWS[0], "mimic")] * 2}, "judges a candidate twice"),
        ({"added": [mark(ROWS[0], None)]}, "added without a verdict"),
    ],
)
def test_damaged_files_are_named(run, result, tmp_path, changes, told):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(result, []) | changes))
    outcome = run("import", path, "--result", result, "--out", tmp_path / "points.csv")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert str(path) in outcome.err
    assert told in outcome.err


def test_kinds_and_certainties_are_all_read(result):
    for kind in MIMIC_KINDS:
        text = json.dumps(content(result, [mark(ROWS[0], "mimic", mimic=kind)]))
        assert parse_verdicts(text, "x").marks[0].mimic == kind


def test_verdicts_are_not_lost_with_the_folder(run, tmp_path, monkeypatch, capsys):
    import sys

    from cmb_jax import cli

    out = make_result(tmp_path / "out")
    (out / "verdicts").mkdir()
    save(out / "verdicts" / "AB.json", out, [])
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "swi.nii.gz")
    for folder in (out, tmp_path):  # a prediction, and a folder of predictions
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "cmb-jax",
                "predict",
                "--swi",
                str(tmp_path / "swi.nii.gz"),
                "--out",
                str(folder),
                "--overwrite",
            ],
        )
        with pytest.raises(SystemExit):
            cli.main()
        assert "verdicts of a reader would be lost" in capsys.readouterr().err
    assert (out / "verdicts" / "AB.json").exists()
