"""Each kind of bad input: one line that says what and what to do, exit code 2, nothing half-written."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from flax import nnx

from cmb_jax import cli
from cmb_jax.config import Config, ModelConfig
from cmb_jax.config_load import config_to_json
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import CONFIG_KEY, load_bundle, save_bundle, with_config
from cmb_jax.io import weights as weights_file
from cmb_jax.io.weights import relabeled_weights, save_weights
from tests.command_line import run_cli as run
from tests.tiny import TINY_MODEL

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
TINY = Config(model=TINY_MODEL)


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


@pytest.fixture
def good(tmp_path, rng):
    return save(
        tmp_path / "good.nii.gz", np.linspace(40, 60, 32)[:, None, None] + rng.normal(size=(32, 36, 20))
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_bundle(path, params_of(Detector(TINY.model, rngs=nnx.Rngs(0))), TINY)
    return path


def refused(monkeypatch, capsys, tmp_path, *arguments, match):
    before = set(tmp_path.rglob("*"))
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    lines = err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in err
    assert match in errors[0]
    assert set(tmp_path.rglob("*")) == before


def make_text(path):
    path.write_text("these are notes, not an image\n" * 20)


def make_truncated(path):
    save(path.with_name("whole.nii.gz"), np.random.default_rng(0).normal(size=(30, 30, 30)))
    whole = path.with_name("whole.nii.gz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def make_huge_claim(path):
    header = bytearray(nib.Nifti1Header().binaryblock)
    struct.pack_into("<8h", header, 40, 3, 4096, 2048, 1200, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(header) + b"\0" * 4096))


BAD_IMAGES = {
    "text": make_text,
    "truncated": make_truncated,
    "2d": lambda path: save(path, np.random.default_rng(0).normal(size=(30, 30))),
    "series": lambda path: save(path, np.random.default_rng(0).normal(size=(10, 10, 10, 5))),
    "zeros": lambda path: save(path, np.zeros((20, 20, 20))),
    "nan": lambda path: save(path, np.full((20, 20, 20), np.nan)),
    "40 GB": make_huge_claim,
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("role", ["swi", "phase"])
def test_bad_images(monkeypatch, capsys, tmp_path, good, kind, role):
    bad = tmp_path / "bad.nii.gz"
    BAD_IMAGES[kind](bad)
    files = ("--swi", bad) if role == "swi" else ("--swi", good, "--phase", bad)
    refused(monkeypatch, capsys, tmp_path, "predict", *files, "--out", tmp_path / "out", match="bad.nii.gz")


def test_missing_file_and_folder_instead_of_file(monkeypatch, capsys, tmp_path, good):
    out = ("--out", tmp_path / "out")
    refused(
        monkeypatch, capsys, tmp_path, "predict", "--swi", tmp_path / "no.nii", *out, match="no such file"
    )
    refused(monkeypatch, capsys, tmp_path, "predict", "--swi", tmp_path, *out, match="folder")


@pytest.mark.parametrize("what", ["shape", "affine"])
def test_swi_and_phase_must_share_a_grid(monkeypatch, capsys, tmp_path, good, weights, rng, what):
    shape = (32, 36, 18) if what == "shape" else (32, 36, 20)
    affine = AFFINE if what == "shape" else np.diag([1.2, 1.0, 2.0, 1.0])
    other = save(tmp_path / "other.nii.gz", rng.uniform(-3, 3, shape), affine)
    arguments = ("predict", "--swi", good, "--phase", other, "--weights", weights, "--out", tmp_path / "out")
    refused(monkeypatch, capsys, tmp_path, *arguments, match="other.nii.gz")


def test_a_link_as_output_is_refused_before_anything_is_read(monkeypatch, capsys, tmp_path, good):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("cmb_jax.io.nifti.open_nifti", lambda *_: pytest.fail("the image was read"))
    arguments = ("predict", "--swi", good, "--out", tmp_path / "out", "--overwrite")
    refused(monkeypatch, capsys, tmp_path, *arguments, match="is a link")


def test_an_output_folder_that_exists_is_left_alone(monkeypatch, capsys, tmp_path, good):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    refused(monkeypatch, capsys, tmp_path, "predict", "--swi", good, "--out", out, match="exists")
    # not even --overwrite removes a folder that this program did not make
    arguments = ("simulate", "--out", out, "--subjects", "1", "--overwrite")
    refused(monkeypatch, capsys, tmp_path, *arguments, match="was not written by cmb-jax")
    assert (out / "mine.txt").read_text() == "precious"


def test_a_place_that_cannot_be_written(monkeypatch, capsys, tmp_path, good):
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder should be")
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        "predict",
        "--swi",
        good,
        "--out",
        blocker / "out",
        match="cannot be written",
    )


def test_weights_of_another_configuration(monkeypatch, capsys, tmp_path, good, weights):
    other = Config(model=ModelConfig())
    wrong = tmp_path / "wrong.safetensors"
    save_bundle(wrong, params_of(Detector(TINY.model, rngs=nnx.Rngs(0))), other)
    out = ("--out", tmp_path / "out")
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        "predict",
        "--swi",
        good,
        "--weights",
        wrong,
        *out,
        match="wrong.safetensors",
    )
    plain = tmp_path / "plain.safetensors"
    save_weights(plain, {"a": np.ones(3, np.float32)}, {})
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        "predict",
        "--swi",
        good,
        "--weights",
        plain,
        *out,
        match="not weights of a detector",
    )
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        "predict",
        "--swi",
        good,
        "--weights",
        "nope",
        *out,
        match="no such weights",
    )


def test_weights_for_an_older_input_are_refused_by_their_version(monkeypatch, capsys, tmp_path, good):
    """Those of this version say so in the file; those that say nothing, as the first ones, are version 1."""
    old, new, silent = (tmp_path / f"{name}.safetensors" for name in ("old", "new", "silent"))
    save_bundle(old, params_of(Detector(TINY.model, rngs=nnx.Rngs(0))), TINY)
    silent.write_bytes(relabeled_weights(old, {CONFIG_KEY: config_to_json(TINY)}))
    now = weights_file.INPUT_VERSION
    with monkeypatch.context() as lenient:
        lenient.setattr(weights_file, "OLDEST_INPUT_VERSION", 1)
        # another operating point or calibration does not change what the network was trained on
        new.write_bytes(with_config(load_bundle(silent), TINY))
        assert [load_bundle(path).input_version for path in (old, silent, new)] == [now, 1, 1]
    assert load_bundle(old).input_version == now
    for path in (silent, new):
        with pytest.raises(UserError, match=f"for input version 1, but .* makes input version {now};"):
            load_bundle(path)
    monkeypatch.setattr(weights_file, "INPUT_VERSION", now + 1)
    monkeypatch.setattr(weights_file, "OLDEST_INPUT_VERSION", now + 1)
    for path, version in ((old, now), (silent, 1), (new, 1)):
        refused(
            monkeypatch,
            capsys,
            tmp_path,
            "predict",
            "--swi",
            good,
            "--weights",
            path,
            "--out",
            tmp_path / "out",
            match=f"{path.name}: these weights are for input version {version}, but this cmb-jax makes input "
            f"version {now + 1};",
        )


def test_numbers_out_of_range(monkeypatch, capsys, tmp_path, good):
    out = ("--out", tmp_path / "out")
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        "predict",
        "--swi",
        good,
        "--threshold",
        "1.5",
        *out,
        match="between 0 and 1",
    )
    refused(monkeypatch, capsys, tmp_path, "simulate", "--subjects", "0", *out, match="at least 1")
    refused(monkeypatch, capsys, tmp_path, "simulate", "--seed", "-3", *out, match="0 or more")
    for option, value, words in (
        ("--protocol", ["x"], "iso05"),
        ("--tier", ["x"], "easy, hard"),
        ("--te-ms", ["0", "0"], "1 to 100 ms"),
        ("--te-ms", ["nan", "5"], "--te-ms nan: give a finite number"),
        ("--b0-t", ["-inf"], "--b0-t -inf: give a finite number"),
        ("--snr", ["-1", "5"], "allowed: 1"),
        ("--diameters-mm", ["2", "200"], "0.2 to 10 mm"),
        ("--anatomy", ["x"], "mni2009c"),
    ):
        refused(monkeypatch, capsys, tmp_path, "simulate", option, *value, *out, match=words)


def test_evaluate_refuses_empty_folders(monkeypatch, capsys, tmp_path):
    (tmp_path / "pred").mkdir()
    (tmp_path / "truth").mkdir()
    arguments = (
        "evaluate",
        "--pred",
        tmp_path / "pred",
        "--truth",
        tmp_path / "truth",
        "--out",
        tmp_path / "m.json",
    )
    refused(monkeypatch, capsys, tmp_path, *arguments, match="truth")


def test_help_and_version(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert code == 0
    assert "research use only" in out
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    for command in cli.COMMANDS:
        assert command in out
    assert "--version" in out


def test_unknown_arguments_exit_with_2(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "predict", "--color", "red")
    assert code == 2
    assert "Traceback" not in err


def test_own_labels(monkeypatch, capsys, tmp_path, good, weights):
    common = ("predict", "--swi", good, "--weights", weights, "--out", tmp_path / "out")
    labels = save(tmp_path / "labels.nii.gz", np.where(np.indices((32, 36, 20))[0] > 8, 999_999, 0))
    refused(monkeypatch, capsys, tmp_path, *common, "--regions", labels, match="labels 999999 are not in")
    refused(monkeypatch, capsys, tmp_path, *common, "--regions", tmp_path / "none.nii", match="no such")
    refused(monkeypatch, capsys, tmp_path, *common, "--region-labels", labels, match="goes with --regions")
    refused(
        monkeypatch,
        capsys,
        tmp_path,
        *common,
        *("--regions", labels, "--region-labels", labels),
        match="give a CSV file",
    )
