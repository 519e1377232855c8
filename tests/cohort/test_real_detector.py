"""The whole way with a real, if untrained, detector: echoes, phase, regions, labels."""

import csv
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx

from cmb_jax.anatomy.own_regions import regions_from_labels
from cmb_jax.cli.bids import Lines
from cmb_jax.cohort.participants import Selection, run_participants
from cmb_jax.cohort.result import Status
from cmb_jax.cohort.scan_images import read_region_labels
from cmb_jax.cohort.scan_work import detector_pipeline
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.core.detection import detections_tsv
from cmb_jax.datasets.bids.layout import read_layout
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.bundle import save_bundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import CmbDetector
from cmb_jax.io.nifti import read_volume
from tests.datasets.bids import tree
from tests.datasets.trees import SHAPE, brain
from tests.tiny import TINY_MODEL

CONFIG = Config(
    name="tiny",
    model=TINY_MODEL,
    inference=InferenceConfig(
        score_threshold=0.0, definite_threshold=0.6, candidate_threshold=0.0, max_detections=20
    ),
)


def outputs(out):
    files = {path.relative_to(out): path for path in out.rglob("*.*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "logs"}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_bundle(path, params_of(Detector(CONFIG.model, rngs=nnx.Rngs(0))), CONFIG)
    return path


def test_echoes_to_labels_on_the_grid_of_the_scan(tmp_path, weights, capsys):
    root = tree.description(tmp_path / "study")
    tree.echoes(root, count=2, times_s=(0.01, 0.02), ParamagneticPhaseSign=1)
    run = run_participants(
        read_layout(root),
        tmp_path / "out",
        Selection(participants=("01",)),
        detector_pipeline(ScanOptions(weights=str(weights)), jax.local_devices()[:1]),
        progress=Lines(),
    )
    said = capsys.readouterr().err
    (outcome,) = run.outcomes
    assert outcome.status is Status.DONE, outcome.reason
    anat = tmp_path / "out/sub-01/anat"
    labels = nib.load(anat / "sub-01_desc-cmb_dseg.nii.gz")
    scan = nib.load(root / "sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz")
    assert labels.shape == scan.shape
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    with (anat / "sub-01_desc-cmb_detections.tsv").open(newline="") as file:
        kept = {int(row["id"]) for row in csv.DictReader(file, delimiter="\t") if row["status"] == "kept"}
    assert set(np.unique(labels.dataobj).tolist()) - {0} <= kept
    assert "sub-01: takes " in said
    assert "searching for microbleeds" in said
    sidecar = (anat / "sub-01_desc-cmb_detections.json").read_text()
    assert "SWI made from magnitude and phase of 2 echoes" in sidecar
    assert "stored with sign +1" in sidecar


def test_devices_share_the_scans_and_change_no_byte(tmp_path, weights):
    root = tree.description(tmp_path / "study")
    for number in range(4):
        tree.image(root, f"sub-{number}/anat/sub-{number}_swi", brain([(9, 9, 7)], seed=number))
    layout, devices = read_layout(root), jax.local_devices()
    for name, own in (("one", devices[:1]), ("two", devices[1:3])):
        pipeline = detector_pipeline(ScanOptions(weights=str(weights), viewer=False), own)
        selection = Selection(participants=layout.participants)
        run = run_participants(layout, tmp_path / name, selection, pipeline, progress=Lines())
        assert {outcome.status for outcome in run.outcomes} == {Status.DONE}
    assert set(outputs(tmp_path / "one")) == {
        Path(f"sub-{number}/anat/sub-{number}_desc-cmb_{file}")
        for number in range(4)
        for file in (
            "detections.tsv",
            "detections.json",
            "dseg.nii.gz",
            "dseg.json",
            "report.html",
            "overview.jpg",
            "prov.jsonld",
        )
    }
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


@pytest.mark.parametrize("own_labels", [False, True])
def test_a_cohort_finds_what_a_single_prediction_finds(tmp_path, weights, own_labels):
    root = tree.description(tmp_path / "study")
    image = tree.image(root, "sub-1/anat/sub-1_swi")
    swi, region_map, regions = read_volume(image), None, None
    if own_labels:
        data = np.zeros(SHAPE, np.int16)
        data[1:-1, 1:-1, 1:-1] = 1022  # parietal, left
        labels = tree.image(tmp_path / "labels", "sub-1/anat/sub-1_dseg", data)
        regions = read_region_labels(tmp_path / "labels", None)
        region_map = regions_from_labels(read_volume(labels), regions.table, swi)
    layout = read_layout(root)
    pipeline = detector_pipeline(ScanOptions(weights=str(weights)), jax.local_devices()[:1], regions)
    run_participants(layout, tmp_path / "out", Selection(participants=("1",)), pipeline, progress=Lines())
    prediction = CmbDetector.load(ScanOptions(weights=str(weights))).predict(swi, region_map=region_map)
    assert len(prediction.rows) > 5
    assert ({row.region for row in prediction.kept} == {"parietal"}) == own_labels
    assert (tmp_path / "out/sub-1/anat/sub-1_desc-cmb_detections.tsv").read_text() == detections_tsv(
        prediction.rows
    )
