"""No identifier that was planted in the inputs gets into an output, unless it is asked for.

Another kind of input is added by a function like `plant_nifti` in `SOURCES`.
"""

import json
import sys

import jax
import nibabel as nib
import numpy as np
import openpyxl
import pytest
from flax import nnx

from cmb_jax import cli
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.detector.network import Detector, Template
from cmb_jax.inference.bundle import save_bundle
from cmb_jax.viewer.page import embedded_in
from tests.privacy.planted import BIRTH, FOLDER, IDENTIFIERS, NAME, PATIENT, TEXT, image, leaks, plant_nifti
from tests.review.conftest import make_result
from tests.tiny import TINY_MODEL

SOURCES = {"nifti": plant_nifti}
KEEP = "--keep-identifiers"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    config = Config(model=TINY_MODEL, inference=InferenceConfig(candidate_threshold=0.0))
    shapes = Template.of(lambda: Detector(TINY_MODEL, rngs=nnx.Rngs(0))).shapes()
    rng = np.random.default_rng(0)  # what it finds does not matter here, and this needs no compiling
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    save_bundle(path, params, config)
    return path


@pytest.fixture(params=SOURCES)
def planted(request, tmp_path):
    return SOURCES[request.param](tmp_path)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmb-jax", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        assert not code, capsys.readouterr().err

    return call


def test_the_search_finds_what_was_planted(planted):
    folder = planted["magnitude"].parent
    assert {line.rpartition(" ")[2] for line in leaks(folder.parent)} == set(IDENTIFIERS)
    assert any("gunzipped" in line for line in leaks(planted["mask"]))


def test_predict_and_review(planted, run, weights, tmp_path):
    images = ("--swi", planted["magnitude"], "--phase", planted["phase"], "--magnitude", planted["magnitude"])
    common = (*images, "--phase-sign", "+1", "--weights", weights)  # it has no veins to tell by
    result = tmp_path / "result"
    run("predict", *common, "--out", result)
    assert leaks(result) == []
    summary = json.loads((result / "detections.json").read_text())
    assert any("NaN" in line for line in summary["warnings"])  # those that used to name their file
    assert summary["inputs"][0]["file"] == f"file-{summary['inputs'][0]['sha256'][:8]}.nii.gz"

    for name, content in embedded_in((result / "viewer.html").read_bytes())[0].items():
        (tmp_path / "shown").mkdir(exist_ok=True)
        (tmp_path / "shown" / f"{name}.nii.gz").write_bytes(content)
    assert len(list((tmp_path / "shown").iterdir())) >= 3
    assert leaks(tmp_path / "shown") == []

    readers = tmp_path / "readers"
    run("review", "export", result, "--out", readers)
    book = openpyxl.load_workbook(readers / "review.xlsx")
    book.worksheets[0]["E2"] = TEXT  # a comment
    book.worksheets[0]["C2"] = "microbleed"
    book.save(readers / f"{NAME}.xlsx")
    truth = tmp_path / "truth.csv"
    run("review", "import", readers / f"{NAME}.xlsx", "--result", result, "--out", truth)
    run("review", "agreement", truth.with_suffix(".json"), "--out", tmp_path / "agreement.json")
    written = [truth, truth.with_suffix(".json"), tmp_path / "agreement.json"]
    assert leaks(*written, *(path for path in readers.iterdir() if NAME not in path.name)) == []

    run("predict", *common, "--out", tmp_path / "named", KEEP)
    assert any("report.html" in line and NAME in line for line in leaks(tmp_path / "named"))
    assert not [line for line in leaks(tmp_path / "named") if FOLDER in line]  # never a path
    run("review", "export", tmp_path / "named", "--out", tmp_path / "named_readers")
    assert leaks(tmp_path / "named_readers") == []


def test_predict_with_own_labels(planted, run, weights, tmp_path):
    table = planted["mask"].with_name(f"{NAME}_labels.csv")
    table.write_text(f"label,region,side,comment\n1,frontal,left,{TEXT}\n")
    own = ("--regions", planted["mask"], "--region-labels", table)
    run("predict", "--swi", planted["magnitude"], *own, "--weights", weights, "--out", tmp_path / "result")
    assert leaks(tmp_path / "result") == []
    summary = json.loads((tmp_path / "result" / "detections.json").read_text())
    assert [each["role"] for each in summary["inputs"]] == ["swi", "regions"]
    kept = [row for row in summary["detections"] if row["status"] == "kept"]
    assert {(row["region"], row["side"], row["zone"]) for row in kept} <= {("frontal", "left", "lobar")}


def test_review_of_labels_with_a_telling_header(run, tmp_path):
    result = make_result(tmp_path / "result", name=f"{NAME}_swi.nii.gz")
    labels = nib.load(result / "labels.nii.gz")
    data = np.asarray(labels.dataobj)
    nib.save(image(data, labels.affine), result / "labels.nii.gz")
    assert leaks(result / "labels.nii.gz")
    run("review", "export", result, "--out", tmp_path / "readers")
    assert leaks(tmp_path / "readers") == []
    again = nib.load(tmp_path / "readers" / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), data)


def test_swi(planted, run, tmp_path):
    images = ("--magnitude", planted["magnitude"], "--phase", planted["phase"], "--phase-sign", "+1")
    run("swi", *images, "--out", tmp_path / "swi")
    assert leaks(tmp_path / "swi") == []
    run("swi", *images, "--out", tmp_path / "named", KEEP)
    assert {line.split()[0] for line in leaks(tmp_path / "named")} == {"swi.json"}


def test_implant(planted, run, tmp_path):
    table = planted["magnitude"].with_name(f"{NAME}_lesions.csv")
    table.write_text(f"x_mm,y_mm,z_mm,diameter_mm,comment\n0,0,0,3,{TEXT}\n")
    images = ("--magnitude", planted["magnitude"], "--phase", planted["phase"])
    more = ("--brain-mask", planted["mask"], "--lesions", table, "--phase-sign", "+1")
    run("implant", *images, *more, "--out", tmp_path / "out")
    assert leaks(tmp_path / "out") == []
    before, after = (nib.load(path).header for path in (planted["phase"], tmp_path / "out" / "phase.nii.gz"))
    for field in ("dim", "pixdim", "datatype", "srow_x", "quatern_b", "qform_code", "xyzt_units"):
        np.testing.assert_array_equal(before[field], after[field])
    run("implant", *images, *more, "--out", tmp_path / "named", KEEP)
    files = {line.split()[0] for line in leaks(tmp_path / "named")}
    assert {"magnitude.nii.gz", "phase.nii.gz", "implant.json"} <= files


def test_evaluate(planted, run, tmp_path):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for folder in (truth, predictions):
        folder.mkdir()
        for name in (f"{NAME}_{PATIENT}.nii.gz", f"{PATIENT}{BIRTH}.nii.gz"):
            if folder == truth or NAME in name:
                (folder / name).write_bytes(planted["mask"].read_bytes())
    common = ("--pred", predictions, "--truth", truth)
    run("evaluate", *common, "--out", tmp_path / "metrics.json", "--report", tmp_path / "report.html")
    assert leaks(tmp_path / "metrics.json") == leaks(tmp_path / "report.html") == []
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["subject"] for row in content["subjects"]] == ["subject-1", "subject-2"]
    assert content["scans_without_prediction"] == ["subject-1"]
    run("evaluate", *common, "--out", tmp_path / "named.json", KEEP)
    assert leaks(tmp_path / "named.json")


def test_data(planted, run, tmp_path):
    data = tmp_path / f"{FOLDER}_data"
    data.mkdir()
    for role, word in (("magnitude", "swi"), ("phase", "phase")):
        (data / f"{NAME}_{word}.nii.gz").write_bytes(planted[role].read_bytes())
    (data / f"{NAME}_points.csv").write_text(f"x_mm,y_mm,z_mm,comment\n0,0,0,{TEXT}\n")
    (data / "patients.csv").write_text(f"case_id,patient_id,birth\n{NAME},{PATIENT},{BIRTH}\n")
    for suffix in ("png", "html"):
        run("data", "check", data, "--out", tmp_path / f"sheet.{suffix}")
        assert leaks(tmp_path / f"sheet.{suffix}") == []
    run("data", "check", data, "--out", tmp_path / "named.html", KEEP)
    assert leaks(tmp_path / "named.html")
    # an index names files and patients, or it would be none; nothing else gets in
    run("data", "index", data, "--out", data / "index.json")
    found = {line.rpartition(" ")[2] for line in leaks(data / "index.json")}
    assert found == {NAME, PATIENT}
    assert str(tmp_path) not in (data / "index.json").read_text()
