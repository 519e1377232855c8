"""`cmb-jax predict` on images that are not what they are called: a reason, exit code 3, no count."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import Config
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_detections_csv
from cmb_jax.inference.bundle import save_bundle
from tests.command_line import run_cli
from tests.scan.heads import AFFINE, head
from tests.tiny import TINY_MODEL

HEAD = head()
IMAGES = {
    "swi": HEAD.swi,
    "phase": HEAD.phase,
    "noise": np.random.default_rng(0).uniform(-np.pi, np.pi, HEAD.swi.shape),
    "labels": (HEAD.magnitude > 0.4) * 3.0,
    "z-scored": (HEAD.swi - HEAD.swi.mean()) / HEAD.swi.std(),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    config = Config(model=TINY_MODEL)
    save_bundle(path, params_of(Detector(config.model, rngs=nnx.Rngs(0))), config)
    return path


@pytest.mark.parametrize(
    ("swi", "phase", "affine", "word"),
    [
        ("swi", "swi", AFFINE, "does not fill its range"),
        ("phase", "swi", AFFINE, "negative"),
        ("phase", None, AFFINE, "negative"),
        ("labels", None, AFFINE, "labels"),
        ("z-scored", "phase", AFFINE, "normalized"),
        ("noise", None, AFFINE, "negative"),
        ("swi", "phase", np.diag([0.001, 0.001, 0.001, 1.0]), "voxels of"),
        ("swi", "phase", np.diag([1e5, 1e5, 1e5, 1.0]), "voxels of"),
        ("swi", "phase", np.diag([3.0, 4.5, 2.0, 1.0]), "large"),
    ],
)
def test_no_count_but_a_reason(monkeypatch, capsys, tmp_path, weights, swi, phase, affine, word):
    arguments = ["--out", tmp_path / "out", "--weights", weights]
    for role, name in (("swi", swi), ("phase", phase)):
        if name is not None:
            path = tmp_path / f"{role}.nii.gz"
            nib.save(nib.Nifti1Image(IMAGES[name].astype(np.float32), affine), path)
            arguments += [f"--{role}", path]
    code, out, err = run_cli(monkeypatch, capsys, "predict", *arguments)
    assert code == 3, err
    assert word in err
    assert "kept" not in out
    record = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert record["status"] == "not analysable"
    assert word in record["reason"]
    assert "detections" not in record
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["reason"]) == ("not analysable", record["reason"])
    assert "no count is given" in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="not analysable"):
        read_detections_csv(tmp_path / "out" / "detections.csv", "sub-01")
