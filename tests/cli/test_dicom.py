"""`cmb-jax dicom` and `cmb-jax predict --dicom` as a user runs them: as from NIfTI, nothing private."""

import csv
import dataclasses
import gzip
import json

import highdicom
import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from pydicom import dcmread

from cmb_jax.config import Config, InferenceConfig
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.bundle import save_bundle
from tests.command_line import run_cli as run
from tests.dicom.phantoms import (
    BIRTH_DATE,
    NAME,
    PATIENT_ID,
    SIEMENS_MIP,
    SIEMENS_PHASE,
    SIEMENS_SWI,
    Grid,
    stored_phase,
    turned,
    write_series,
)
from tests.tiny import TINY_MODEL

SHAPE = (56, 64, 26)
GRID = Grid(directions=turned(12, 5), spacing=(0.9, 0.9, 2.0), origin=(-24.0, -27.0, -20.0))
TINY = Config(
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights whose objectness is spread about one half, so that some candidates are kept."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "objectness" in str(path) and leaf.ndim == 1 else leaf,
        params_of(Detector(TINY.model, rngs=nnx.Rngs(3))),
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_bundle(path, params, TINY)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """One scan as a DICOM folder and as two NIfTI files that hold the same numbers."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("scan")
    swi = np.linspace(850, 1150, SHAPE[0])[:, None, None] + rng.normal(0, 50, SHAPE)
    phase = rng.normal(0, 0.3, SHAPE)
    for _ in range(12):
        i, j, k = (rng.integers(4, n - 4) for n in SHAPE)
        swi[i - 1 : i + 2, j - 1 : j + 2, k] = 100
        phase[i - 1 : i + 2, j - 1 : j + 2, k] = 1.2
    swi, phase = np.rint(swi).astype(np.uint16), stored_phase(phase, SIEMENS_PHASE)
    write_series(folder / "dicom", SIEMENS_SWI, swi, GRID)
    write_series(folder / "dicom", SIEMENS_PHASE, phase, GRID)
    write_series(folder / "dicom", SIEMENS_MIP, swi[:, :, :20], GRID)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ GRID.directions @ np.diag(GRID.spacing)
    affine[:3, 3] = GRID.ras(np.zeros(3))
    nib.save(nib.Nifti1Image(swi.astype(np.int16), affine), folder / "swi.nii.gz")
    nib.save(nib.Nifti1Image(phase.astype(np.int16) * 2 - 4096, affine), folder / "phase.nii.gz")
    return folder


def rows_of(folder):
    with (folder / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def labels_in_mm(folder):
    """Rounded RAS mm of every voxel of labels.nii.gz, by label in ascending order."""
    image = nib.load(folder / "labels.nii.gz")
    labels = np.asarray(image.dataobj)
    return [
        {tuple(np.round(image.affine @ [*index, 1], 1)[:3] + 0.0) for index in np.argwhere(labels == value)}
        for value in np.unique(labels[labels > 0])
    ]


def test_dicom_gives_what_nifti_gives(monkeypatch, capsys, tmp_path, scan, weights):
    shared = ("--weights", weights, "--phase-sign", "+1")
    nifti = ("--swi", scan / "swi.nii.gz", "--phase", scan / "phase.nii.gz", "--phase-range", "pm4096")
    assert run(monkeypatch, capsys, "predict", *nifti, *shared, "--out", tmp_path / "a")[0] == 0
    code, out, err = run(
        monkeypatch,
        capsys,
        "predict",
        "--dicom",
        scan / "dicom",
        *shared,
        "--out",
        tmp_path / "b",
        "--dicom-out",
    )
    assert code == 0, err
    expected, found = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert len(found) == len(expected) > 3
    for a, b in zip(expected, found, strict=True):
        assert (a["status"], a["reason"], a["category"]) == (b["status"], b["reason"], b["category"])
        for name, tolerance in (("x_mm", 0.02), ("y_mm", 0.02), ("z_mm", 0.02), ("score", 0.001)):
            assert abs(float(a[name]) - float(b[name])) <= tolerance

    segmentation = highdicom.seg.segread(tmp_path / "b" / "segmentation.dcm")
    volume = segmentation.get_volume()
    places = [set() for _ in range(segmentation.number_of_segments)]
    for *index, channel in np.argwhere(volume.array):
        x, y, z = volume.map_indices_to_reference(np.array([index]))[0]
        places[channel].add((round(-x, 1) + 0.0, round(-y, 1) + 0.0, round(z, 1) + 0.0))
    # a microbleed whose voxels all went to its neighbors has none of its own
    places = [place for place in places if place]
    labeled = labels_in_mm(tmp_path / "b")
    assert [len(place) for place in places] == [len(place) for place in labeled]
    for place, label in zip(places, labeled, strict=True):
        assert np.allclose(sorted(place), sorted(label), atol=0.11)
    image = nib.load(tmp_path / "b" / "swi.nii.gz")
    np.testing.assert_array_equal(image.affine, nib.load(tmp_path / "b" / "labels.nii.gz").affine)
    record = json.loads((tmp_path / "b" / "detections.json").read_text())
    assert [entry["role"] for entry in record["inputs"]] == ["swi", "phase"]
    assert any("stored as pm4096, by the headers" in step for step in record["steps"])
    kept = [row for row in found if row["status"] == "kept"]
    assert len(list((tmp_path / "b" / "key_images").glob("*.dcm"))) == min(len(kept), 50)
    check_nothing_private(tmp_path / "b", out + err)


def check_nothing_private(folder, printed):
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for private in (*NAME.split("^"), PATIENT_ID, BIRTH_DATE):
            assert private.lower().encode() not in content.lower(), path
            assert private.lower() not in printed.lower()
        if path.suffix != ".dcm":
            assert str(folder.parent).encode() not in content


def test_identifiers_if_wanted(monkeypatch, capsys, tmp_path, scan, weights):
    arguments = ("--weights", weights, "--phase-sign", "+1", "--dicom-out", "--keep-identifiers")
    code, _, err = run(
        monkeypatch, capsys, "predict", "--dicom", scan / "dicom", *arguments, "--out", tmp_path / "out"
    )
    assert code == 0, err
    assert dcmread(tmp_path / "out" / "report.dcm").PatientName == NAME
    assert PATIENT_ID in (tmp_path / "out" / "report.html").read_text()


def test_the_listing(monkeypatch, capsys, tmp_path, scan):
    write_series(
        tmp_path, dataclasses.replace(SIEMENS_SWI, description=f"SWI {PATIENT_ID}"), np.ones((8, 8, 9)), GRID
    )
    write_series(
        tmp_path, dataclasses.replace(SIEMENS_SWI, number=8), np.ones((8, 8, 9)), GRID, only=[0, 1, 2, 5, 6]
    )
    (tmp_path / f"{NAME.split('^')[0]}.zip").write_bytes(b"PK")
    code, out, _ = run(monkeypatch, capsys, "dicom", tmp_path)
    assert code == 0
    assert "7: swi, 8 x 8 x 9, TE 20 ms, SWI [removed] (image type SWI)" in out
    assert "skipped: series 8: 2 slices are missing (after slice 3 of the 5 that there are)" in out
    assert "would use: swi 7" in out
    assert "skipped: [removed].zip: is an archive" in out
    assert PATIENT_ID not in out
    assert run(monkeypatch, capsys, "dicom", scan / "dicom")[1].count("\n") == 5
    code, out, err = run(monkeypatch, capsys, "dicom", tmp_path, "--series", "8")
    assert code == 2
    assert err.startswith("error: nothing would be used: series 8: 2 slices are missing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dicom", "SCAN/dicom", "--swi", "SCAN/swi.nii.gz"), "takes the place of --swi"),
        (("--swi", "SCAN/swi.nii.gz", "--dicom-out"), "go with --dicom"),
        (("--swi", "SCAN/swi.nii.gz", "--series", "7"), "go with --dicom"),
        ((), "give the scan"),
        (("--dicom", "SCAN/none"), "no such folder"),
        (("--dicom", "SCAN/swi.nii.gz"), "is a file"),
        (("--dicom", "SCAN/dicom", "--series", "12"), "--series 12: there is no such series"),
        (("--dicom", "SCAN/dicom", "--series", "5"), "no susceptibility-weighted series"),
    ],
)
def test_refusals(monkeypatch, capsys, tmp_path, scan, arguments, said):
    arguments = [argument.replace("SCAN", str(scan)) for argument in arguments]
    code, _, err = run(monkeypatch, capsys, "predict", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
