"""train.py and eval.py on own scans, as a user runs them, with a tiny network and a few steps."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from cmb_jax import cli
from cmb_jax.inference.bundle import load_bundle
from tests.training.own_site import add_scan, edit, make_index, make_site, split_file

CONFIG = """
from cmb_jax.config import Config, DataConfig, InferenceConfig, PhantomConfig, TrainConfig
from tests.tiny import TINY_MODEL

def get_config():
    return Config(
        name="tiny",
        model=TINY_MODEL,
        data=DataConfig(patch_shape=(16, 32, 32), batch_size=2, max_truths=4),
        train=TrainConfig(steps=4, warmup_steps=1, checkpoint_every=2, evaluate_every=100, log_every=2),
        inference=InferenceConfig(max_detections=40, max_candidates=256),
    )
"""


def call(command, *arguments):
    """Exit code of `cmb-jax train` or `cmb-jax eval`."""
    try:
        cli.main([command, *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A site of four scans, its index, a split table and a configuration."""
    folder = tmp_path_factory.mktemp("place")
    make_site(folder)
    split_file(folder / "split.csv", train=("p1", "p2"), val=("p3",), test=("p4",))
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def arguments(place, workdir, *more):
    named = ("--config", place / "tiny.py", "--workdir", workdir, "--data.index", place / "site.json")
    return *named, *more


def with_split(place, workdir, *more):
    return arguments(place, workdir, "--data.split-file", place / "split.csv", *more)


@pytest.fixture(scope="module")
def trained(place):
    """The folder of a whole run."""
    assert call("train", *with_split(place, place / "run")) == 0
    return place / "run"


def refused(capsys, code, match):
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert match in errors[0]
    assert "Traceback" not in err
    assert out == ""


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_run_leaves_weights_their_record_and_the_split(place, trained):
    bundle = load_bundle(trained / "weights.safetensors")
    assert bundle.config.name == "tiny"
    assert str(place).encode() not in (trained / "weights.safetensors").read_bytes()
    text = (trained / "weights.json").read_text()
    assert str(place) not in text
    record = json.loads(text)
    assert record["steps"] == 4
    assert "2 scans of 2 patients with 6 microbleeds of an index of kind folder" in record["training_data"]
    assert record["validation_data"].startswith("1 scans of 1 patients with 3 microbleeds")
    assert record["use"].startswith("research use only")
    with (trained / "split.csv").open(newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert {name: row["split"] for name, row in rows.items()} == {
        "p1": "train",
        "p2": "train",
        "p3": "val",
        "p4": "test",
    }
    assert [len(rows[name]["image_sha256"]) for name in ("p1", "p2", "p3", "p4")] == [64, 64, 64, 0]


def test_a_stopped_run_goes_on_to_the_same_weights(place, trained, tmp_path):
    workdir = tmp_path / "stopped"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "weights.safetensors").unlink()
    assert call("train", *with_split(place, workdir)) == 0
    whole, continued = (load_bundle(run / "weights.safetensors") for run in (trained, workdir))
    assert equal(whole.params, continued.params)
    assert whole.config == continued.config


def test_a_run_starts_from_given_weights(place, trained, tmp_path):
    named = ("--train.init-from", trained / "weights.safetensors")
    assert call("train", *with_split(place, tmp_path / "same", *named, "--train.steps", "0")) == 0
    first, second = (load_bundle(run / "weights.safetensors") for run in (trained, tmp_path / "same"))
    assert equal(first.params, second.params)
    record = json.loads((tmp_path / "same" / "weights.json").read_text())
    assert record["started_from"] == {"name": "weights", "sha256": first.sha256}
    assert second.config.inference.score_threshold == first.config.inference.score_threshold  # same scans
    assert "2 false positives per validation scan; 3 lesions" in record["operating_point"]


def test_without_lesions_to_validate_on_nothing_is_validated(place, trained, tmp_path, capsys):
    table = split_file(tmp_path / "split.csv", train=("p1",), test=("p4",))
    first = load_bundle(trained / "weights.safetensors")
    code = call(
        "train",
        *arguments(place, tmp_path / "run", "--data.split-file", table, "--train.steps", "0"),
        *("--train.init-from", trained / "weights.safetensors"),
    )
    assert code == 0
    assert "no lesion in the 0 validation scans" in capsys.readouterr().err
    second = load_bundle(tmp_path / "run" / "weights.safetensors")
    assert second.config.inference == first.config.inference
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["validation_data"] == "none"


def test_evaluation_is_on_the_test_part(place, trained, capsys):
    weights = trained / "weights.safetensors"
    assert call("eval", *with_split(place, trained, "--baseline", weights)) == 0
    values = json.loads((trained / "eval" / "metrics.json").read_text())
    assert [row["subject"] for row in values["subjects"]] == ["p4"]
    assert values["lesions"] == 3
    assert str(place) not in (trained / "eval" / "report.html").read_text()
    comparison = json.loads((trained / "eval" / "comparison.json").read_text())
    assert {metric["paired"]["difference"]["value"] for metric in comparison["metrics"]} <= {0.0, None}
    assert "weights against weights: 1 scans, 3 microbleeds" in capsys.readouterr().out
    refused(capsys, call("eval", *with_split(place, trained)), "exists already; add --overwrite")


def test_scans_of_training_are_not_evaluated_on(place, trained, capsys):
    code = call(
        "eval",
        *arguments(place, trained, "--data.split-fractions", "0", "0", "1", "--overwrite"),
    )
    refused(capsys, code, "was trained or validated on 3 of the 4 test scans, such as p1")


def test_another_set_can_be_evaluated_whole(place, trained, tmp_path, capsys):
    """Names as in training, other scans; one of them cannot be used and is left out."""
    root = tmp_path / "other"
    root.mkdir()
    for name, seed in (("p1", 21), ("p2", 22)):
        add_scan(root, name, seed=seed, truth="mask")
    index = make_index(root, tmp_path / "other.json")
    (root / "p2_swi.nii.gz").write_bytes(b"no image")
    whole = ("--data.split-fractions", "0", "0", "1", "--overwrite")
    named = ("--config", place / "tiny.py", "--workdir", trained, "--data.index", index)
    assert call("eval", *named, *whole) == 0
    values = json.loads((trained / "eval" / "metrics.json").read_text())
    assert [row["subject"] for row in values["subjects"]] == ["p1"]
    assert "skipped: p2: " in capsys.readouterr().err
    (root / "p1_phase.nii.gz").write_bytes(b"no image")
    refused(capsys, call("eval", *named, *whole), "no test scan could be evaluated")


def gone(place, tmp_path):
    index = tmp_path / "site.json"
    content = json.loads((place / "site.json").read_text())
    content["root"] = str(place / "site")
    index.write_text(json.dumps(content))
    edit(index, lambda cases: cases["p2"]["images"].update(swi="p9_swi.nii.gz"))
    return ("--data.index", index)


def straddling(place, tmp_path):
    index = tmp_path / "site.json"
    content = json.loads((place / "site.json").read_text())
    content["root"] = str(place / "site")
    index.write_text(json.dumps(content))
    edit(index, lambda cases: cases["p3"].update(patient_id="p1"))
    return ("--data.index", index)


def without_lesions(place, tmp_path):
    root = tmp_path / "site"
    root.mkdir()
    add_scan(root, "p1", count=0)
    table = split_file(tmp_path / "none.csv", train=("p1",))
    return ("--data.index", make_index(root, tmp_path / "site.json"), "--data.split-file", table)


def unknown(place, tmp_path):
    return ("--data.split-file", split_file(tmp_path / "bad.csv", train=("p1", "p77")))


def no_training(place, tmp_path):
    return ("--data.split-file", split_file(tmp_path / "bad.csv", test=("p1",)))


def other_network(place, tmp_path):
    return ("--train.init-from", "small")


def no_weights(place, tmp_path):
    return ("--train.init-from", "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gone, "p2: p9_swi.nii.gz is gone"),
        (straddling, "patient p1 is in train and in val"),
        (without_lesions, "the 1 scans of the training part hold no lesion"),
        (unknown, "the index has no case 'p77'"),
        (no_training, "is in the training part"),
        (other_network, "cannot start from these weights: their model.widths is"),
        (no_weights, "nothing: no such weights"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(place, tmp_path, capsys, change, message):
    settings = change(place, tmp_path)
    code = call("train", *with_split(place, tmp_path / "run", *settings))
    refused(capsys, code, message)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_run_does_not_go_on_as_another(place, trained, tmp_path, capsys):
    table = split_file(tmp_path / "split.csv", train=("p1", "p4"), val=("p3",), test=("p2",))
    code = call("train", *arguments(place, trained, "--data.split-file", table))
    refused(capsys, code, "begun with another split")
    named = ("--train.init-from", trained / "weights.safetensors")
    refused(capsys, call("train", *with_split(place, trained, *named)), "begun with other weights")
    without_index = ("--config", place / "tiny.py", "--workdir", trained)
    refused(capsys, call("train", *without_index), "begun with other data")


def test_what_is_missing_is_said(place, capsys, tmp_path):
    refused(capsys, call("train", "--config", place / "tiny.py"), "give --config NAME and --workdir DIR")
    refused(
        capsys,
        call("eval", *arguments(place, tmp_path / "none")),
        "no trained weights; run cmb-jax train",
    )
    share = ("--config", place / "tiny.py", "--workdir", tmp_path / "run", "--data.phantom-share", "0.2")
    refused(capsys, call("train", *share), "give --data.index FILE too")
