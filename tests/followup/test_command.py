"""`cmb-jax compare` on small scans: what is written, what is refused."""

import csv
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from selectolax.lexbor import LexborHTMLParser

from cmb_jax.core.detection import RejectReason, detections_csv
from cmb_jax.followup.compare import COLUMNS
from cmb_jax.io.atomic import sha256_file
from tests.command_line import run_cli
from tests.followup.conftest import Head, centered_affine, rigid, row_at

SHAPE, SPACING = (66, 78, 29), (0.9, 0.9, 1.9)  # below 60 mm along z no region network is needed
MOTION = rigid((3.0, -2.0, 4.0), (5.0, -3.0, 2.0))
PLACES = np.array(
    [(12.0, 10.0, 5.0), (-14.0, 8.0, -4.0), (10.0, -14.0, 3.0), (-8.0, -12.0, 8.0), (0, 18.0, -9.0)]
)
TRUTH = ("stable", "new", "resolved", "uncertain", "stable")


class SmallHead(Head):
    lesion_mm = 4.0

    def scan(self, world, affine, shape=SHAPE, lesions_mm=(), noise=4.0, seed=0):
        scale = np.diag([2.3, 2.3, 2.3, 1.0])  # a head of 25 mm: the same pattern, finer
        big = [np.array(place) * 2.3 for place in lesions_mm]
        return super().scan(scale @ world @ np.linalg.inv(scale), scale @ affine, shape, big, noise, seed)


def write_scan(folder, rows, image, name, json_file=None, **changes):
    """An image and a result on it, as predict leaves them."""
    folder.mkdir()
    path = folder / name
    nib.save(image, path)
    if json_file is not None:
        path.with_name(name.replace(".nii.gz", ".json")).write_text(json.dumps(json_file))
    result = folder / "result"
    result.mkdir()
    (result / "detections.csv").write_text(detections_csv(tuple(rows)))
    record = {
        "version": "0.1.0",
        "weights": {"name": "small.safetensors", "sha256": "cd" * 32},
        "inputs": [{"role": "swi", "file": name, "sha256": sha256_file(path)}],
        "settings": {"score_threshold": "0.647"},
        "regions_trusted": False,
    } | changes
    (result / "detections.json").write_text(json.dumps(record))
    labels = np.zeros(image.shape, np.uint16)
    nib.save(nib.Nifti1Image(labels, image.affine), result / "labels.nii.gz")
    return result, path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    head = SmallHead(0)
    affine = centered_affine(SHAPE, SPACING)
    images = []
    for n, (world, absent) in enumerate(((np.eye(4), ("new", "uncertain")), (MOTION, ("resolved",)))):
        there = [p for p, status in zip(PLACES, TRUTH, strict=True) if status not in absent]
        volume, _ = head.scan(world, affine, lesions_mm=there, seed=n)
        images.append(nib.Nifti1Image(volume.data, affine))
    first = [row_at(n + 1, PLACES[n], diameter_mm=4.0) for n in (0, 2, 4)]
    first.append(
        row_at(
            9,
            PLACES[3],
            status="rejected",
            reason=RejectReason.LOW_SCORE.sentence,
            score=0.4,
            diameter_mm=4.0,
        )
    )
    second = [row_at(n + 1, apply_affine(MOTION, PLACES[n]), diameter_mm=4.0) for n in (0, 1, 3, 4)]
    facts = {"EchoTime": 0.02, "MagneticFieldStrength": 3.0, "AcquisitionDateTime": "2024-01-02T10:00:00"}
    write_scan(root / "one", first, images[0], "sub-01_ses-1_swi.nii.gz", facts)
    later = facts | {
        "EchoTime": 0.03,
        "MagneticFieldStrength": 1.5,
        "AcquisitionDateTime": "2025-01-02T10:00:00",
    }
    write_scan(root / "two", second, images[1], "sub-01_ses-2_T2starw.nii.gz", later)
    return root


@pytest.fixture
def pair(made, tmp_path):
    shutil.copytree(made, tmp_path / "pair")
    return tmp_path / "pair"


def arguments(root, **changes):
    given = {
        "baseline": root / "one" / "result",
        "followup": root / "two" / "result",
        "baseline-image": root / "one" / "sub-01_ses-1_swi.nii.gz",
        "followup-image": root / "two" / "sub-01_ses-2_T2starw.nii.gz",
        "out": root / "out",
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    return [word for key, value in given.items() for word in (f"--{key}", value)]


def test_known_change(pair, monkeypatch, capsys):
    code, out, err = run_cli(monkeypatch, capsys, "compare", *arguments(pair))
    assert code == 0, err
    assert "1 new, 1 no longer seen, 2 stable, 1 uncertain" in out
    assert "mild (1-4)" in out
    with open(pair / "out" / "comparison.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == COLUMNS
    for line in lines:
        number = int(line["followup_id"] or line["baseline_id"]) - 1
        assert line["status"] == TRUTH[number]
        mapped = [float(line[f"mapped_{axis}_mm"]) for axis in "xyz"]
        expected = (
            apply_affine(MOTION, PLACES[number]) if line["mapped_from"] == "baseline" else PLACES[number]
        )
        np.testing.assert_allclose(mapped, expected, atol=0.7)
    assert "below the operating point (score 0.40)" in next(x["reason"] for x in lines if x["reason"])
    summary = json.loads((pair / "out" / "comparison.json").read_text())
    assert summary["counts"] == {"new": 1, "resolved": 1, "stable": 2, "uncertain": 1}
    found = np.array(summary["registration"]["matrix"])
    assert summary["registration"]["trusted"]
    assert np.linalg.norm(apply_affine(found, PLACES) - apply_affine(MOTION, PLACES), axis=1).max() < 0.5
    for scan, folder in (("baseline", "one"), ("followup", "two")):
        (image,) = (pair / folder).glob("*.nii.gz")
        assert summary[scan]["inputs"][0]["sha256"] == sha256_file(image)
    warnings = " ".join(summary["warnings"])
    for word in (
        "field strength (3 and 1.5 T)",
        "echo time (20 and 30 ms)",
        "two to three times",
        "sequences differ",
    ):
        assert word in warnings
    assert "swapped" not in warnings
    text = "".join(path.read_text() for path in (pair / "out").glob("*.*") if path.suffix != ".gz")
    assert str(pair) not in text
    assert "2024-01-02" not in text  # a date tells of a person


def test_report_shows_each_changed_lesion_in_both_scans(pair, monkeypatch, capsys):
    assert run_cli(monkeypatch, capsys, "compare", *arguments(pair))[0] == 0
    page = (pair / "out" / "report.html").read_text()
    tree = LexborHTMLParser(page)
    cards = tree.css("article.card")
    assert len(cards) == 3
    for card in cards:
        assert len(card.css("img")) == 6
    assert len(tree.css("tr[data-status]")) == 5
    assert "Research use only" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert not tree.css("script")


SECOND_IMAGE = "two/sub-01_ses-2_T2starw.nii.gz"
FIRST_RECORD, SECOND_RECORD = "one/result/detections.json", "two/result/detections.json"


@pytest.mark.parametrize(
    ("given", "content", "words"),
    [
        ({"baseline": "none"}, {}, "no such folder"),
        ({"baseline": "one"}, {}, "detections.csv"),
        ({"baseline_image": SECOND_IMAGE}, {}, "is not the image that"),
        ({"followup_image": "gone.nii.gz"}, {}, "no such file"),
        ({"followup_image": FIRST_RECORD}, {}, "NIfTI"),
        ({"followup": "one/result", "followup_image": "one/sub-01_ses-1_swi.nii.gz"}, {}, "same image"),
        ({"out": "one"}, {}, "exists already"),
        ({}, {FIRST_RECORD: '{"inputs": [{"role": "swi"}]}'}, "detections.json"),
        ({}, {SECOND_RECORD: '["version"]'}, "detections.json"),
        ({}, {SECOND_IMAGE: "no image"}, "NIfTI"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(pair, monkeypatch, capsys, given, content, words):
    for name, text in content.items():
        (pair / name).write_text(text)
    changes = {option: pair / name for option, name in given.items()}
    code, _, err = run_cli(monkeypatch, capsys, "compare", *arguments(pair, **changes))
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in err
    assert not (pair / "out").exists()


def test_other_patient_order_weights_and_empty_results_are_said(pair, monkeypatch, capsys):
    for folder in ("one", "two"):
        result = pair / folder / "result"
        (result / "detections.csv").write_text(detections_csv(()))
    path = pair / "two" / "result" / "detections.json"
    record = json.loads(path.read_text())
    record["weights"]["sha256"] = "ef" * 32
    record["inputs"][0]["file"] = "sub-02_swi.nii.gz"
    record["inputs"].append({"role": "phase", "file": "sub-02_phase.nii.gz", "sha256": "0" * 64})
    path.write_text(json.dumps(record))
    sidecar = pair / "two" / "sub-01_ses-2_T2starw.json"
    sidecar.write_text(json.dumps({"AcquisitionDateTime": "2020-01-01T00:00:00"}))
    code, out, err = run_cli(monkeypatch, capsys, "compare", *arguments(pair))
    assert code == 0, err
    assert "Neither scan has a reported microbleed" in out
    for words in (
        "different weights (cdcdcdcd and efefefef)",
        "different subjects (sub-01 and sub-02)",
        "swapped",
        "Only the follow-up was searched with a phase image",
        "echo time is not known for both scans",
    ):
        assert words in err
    assert (pair / "out" / "comparison.csv").read_text().count("\n") == 1


def test_another_head_is_said_and_nothing_is_new(pair, monkeypatch, capsys):
    volume, _ = SmallHead(5).scan(MOTION, centered_affine(SHAPE, SPACING))
    shutil.rmtree(pair / "two")
    rows = [row_at(1, apply_affine(MOTION, PLACES[0]))]
    image = nib.Nifti1Image(volume.data, centered_affine(SHAPE, SPACING))
    write_scan(pair / "two", rows, image, "sub-01_ses-2_T2starw.nii.gz")
    code, out, err = run_cli(monkeypatch, capsys, "compare", *arguments(pair))
    assert code == 0
    assert "Do both scans show the same head?" in err
    assert "no class is given" in out
    counts = json.loads((pair / "out" / "comparison.json").read_text())["counts"]
    assert counts == {"new": 0, "resolved": 0, "stable": 0, "uncertain": 4}


@pytest.mark.parametrize("distance", ["0", "nan", "11"])
def test_impossible_distance(pair, monkeypatch, capsys, distance):
    code, _, err = run_cli(monkeypatch, capsys, "compare", *arguments(pair, match_mm=distance))
    assert code == 2
    assert f"--match-mm {distance}" in err
    assert not (pair / "out").exists()
