"""What `make demo` shows: the bundled subject through the bundled weights, as a user runs it."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cmb_jax
from cmb_jax.inference.bundle import BUNDLED, bundled_names, load_bundle

PACKAGE = Path(cmb_jax.__file__).parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "output"
    # default flags: this is what a user gets
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "cmb_jax.cli", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_demo_finds_its_microbleeds(demo):
    out, stdout = demo
    metrics = json.loads((out / "metrics.json").read_text())
    headline = metrics["rules"]["center3"] if isinstance(metrics["rules"], dict) else metrics["rules"][0]
    assert headline["sensitivity"]["value"] >= 0.8
    assert headline["fp_per_scan"]["value"] <= 5
    assert "report.html" in stdout
    assert stdout.splitlines()[-1].endswith(f"view {out / 'sub-0001'}")
    assert (out / "sub-0001" / "viewer.html").stat().st_size < 15e6
    assert "esearch use only" in stdout


def test_the_phase_of_the_demo_is_read_as_its_sidecar_says(demo):
    """Its sign is decided from the image alone; a phase that was stored wrong decides nothing."""
    out, _ = demo
    sidecar = PACKAGE / "demo" / "sub-0001" / "anat" / "sub-0001_part-phase_T2starw.json"
    facts = json.loads(sidecar.read_text())
    record = json.loads((out / "sub-0001" / "detections.json").read_text())
    read = next(step for step in record["steps"] if step.startswith("phase read as"))
    assert read.startswith(
        f"phase read as {facts['PhaseStorage']}, sign {facts['ParamagneticPhaseSign']:+d} ("
    )
    assert not any("phase" in warning for warning in record["warnings"])


def test_the_demo_report_needs_no_network_and_shows_every_kept_row(demo):
    out, _ = demo
    page = (out / "sub-0001" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']https?:", page)
    with (out / "sub-0001" / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["status"] == "kept" for row in rows) >= 5
    assert all(row["reason"] for row in rows if row["status"] == "rejected")


def test_bundled_files_are_small_and_hash_to_their_records():
    assert sum(path.stat().st_size for path in (PACKAGE / "demo").rglob("*") if path.is_file()) < 15e6
    assert bundled_names() == ("base", "small")
    for path in BUNDLED.glob("*.safetensors"):
        assert path.stat().st_size < 10e6
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "research use only" in record["use"]


@pytest.mark.parametrize(("name", "made_by"), [("small", "small"), ("base", "base_further")])
def test_bundled_weights_are_those_of_their_configuration_and_card(name, made_by):
    from cmb_jax.config_load import config_from_file

    config = config_from_file(PACKAGE.parent / "configs" / f"{made_by}.py")
    bundle = load_bundle(name)
    assert (bundle.config.name, bundle.config.model, bundle.config.loss) == (name, config.model, config.loss)
    assert bundle.config.train.steps == config.train.steps
    assert bundle.calibration is not None
    assert f"sha256 `{bundle.sha256}`" in (BUNDLED / f"{name}.md").read_text()
