"""`cmb-jax bids ... participant` split over processes, resumed, interrupted."""

import csv
import gc
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cmb_jax import progress
from cmb_jax.cohort.participants import process_share
from tests.cohort import app
from tests.command_line import run_cli
from tests.datasets.bids import tree
from tests.datasets.trees import SHAPE, brain, refused

COUNT, MANY = 6, 12


def make_study(root, count):
    tree.description(root)
    for number in range(count):
        tree.image(root, f"sub-{number:02d}/anat/sub-{number:02d}_swi", brain([(5, 6, 7)], seed=number))
    return root


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study", COUNT)


@pytest.fixture
def cohort(bids):
    """Runs `cmb-jax bids ... participant` with the stub."""

    def run(root, out, *more):
        return bids(root, out, "participant", *more)

    return run


def contents(out):
    """Bytes of every file but the logs, which hold times."""
    files = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "logs"}


def test_a_bar_on_a_terminal_and_lines_elsewhere(bids, cohort, study, tmp_path, monkeypatch):
    code, stdout, stderr = cohort(study, tmp_path / "lines")
    assert code == 0, stderr
    assert stdout.startswith(f"{COUNT} done\n")
    assert "reading the images" in stderr
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    _, _, stderr = cohort(study, tmp_path / "bar")
    assert f"{COUNT}/{COUNT}" in stderr
    assert "of it beside other work" in stderr
    assert "reading the images" not in stderr
    found = contents(tmp_path / "bar")
    assert len(found) == 4 + 7 * COUNT
    assert found == contents(tmp_path / "lines")
    code, stdout, _ = bids(study, tmp_path / "bar", "group")
    assert (code, stdout.splitlines()[0]) == (0, f"{COUNT} done")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_no_scan_leaves_a_file_open(cohort, tmp_path):
    cohort(make_study(tmp_path / "first", 1), tmp_path / "warm")  # what is opened once for all
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert cohort(make_study(tmp_path / "study", 2 * COUNT), tmp_path / "out")[0] == 0
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_shares_are_the_whole(cohort, study, tmp_path, stub):
    out = tmp_path / "out"
    for index in range(5):
        share = len(range(index, COUNT, 5))
        assert cohort(study, out, "--process", f"{index}/5")[1].startswith(f"{share} done\n")
    assert len(stub.seen) == COUNT
    assert cohort(study, out, "--process", "14/15")[:2] == (0, cohort(study, out, "--process", "13/15")[1])
    assert cohort(study, out)[1].startswith(f"{COUNT} skipped\n")
    assert len(stub.seen) == COUNT


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_each_participant_is_in_one_share(count):
    labels = tuple(str(n) for n in range(33))
    shares = [process_share(labels, index, count) for index in range(count)]
    assert sorted(label for share in shares for label in share) == sorted(labels)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_failures_stand_in_a_table_until_they_are_put_right(cohort, study, tmp_path, stub):
    out = tmp_path / "out"
    bad = "sub-03/anat/sub-03_swi"
    tree.image(study, bad, np.full(SHAPE, 7.0, np.float32))
    code, stdout, stderr = cohort(study, out)
    assert code == 1
    assert stdout.startswith(f"{COUNT - 1} done, 1 failed\n")
    assert "sub-03: failed: sub-03/anat/sub-03_swi.nii.gz: every voxel is 7" in stderr
    with (out / "logs" / "failed.tsv").open(newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["scan"] == "sub-03"
    assert row["reason"].startswith("sub-03/anat/sub-03_swi.nii.gz: every voxel is 7")
    # a run over another share keeps the line
    assert cohort(study, out, "--participant-label", "04")[0] == 0
    assert (out / "logs" / "failed.tsv").is_file()
    tree.image(study, bad)
    assert cohort(study, out)[:2][0] == 0
    assert not (out / "logs" / "failed.tsv").exists()


def test_other_weights_do_not_pass_for_finished(cohort, study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cohort(study, out, "--participant-label", "00", "01")
    before = contents(out)
    monkeypatch.setattr(app, "BUNDLE", app.dataclasses.replace(app.BUNDLE, sha256="6b" * 32))
    code, stdout, _ = cohort(study, out, "--participant-label", "00", "01", "02")
    assert code == 1
    assert stdout.startswith("1 done, 2 made otherwise\n")
    assert "sub-00: made otherwise: weights changed since; make it again with --overwrite" in stdout
    methods = before.pop(Path("methods.md")).decode()
    assert ("5a5a5a" in methods, "6b6b6b" in methods, "ways" in methods) == (True, False, False)
    assert before.items() <= contents(out).items()
    methods = (out / "methods.md").read_text()  # of what is there, whichever run made it
    assert "2 of 3 scans (sub-00, sub-01): " in methods
    assert "1 of 3 scans (sub-02): " in methods
    assert ("5a5a5a" in methods, "6b6b6b" in methods) == (True, True)
    assert cohort(study, out, "--overwrite")[1].startswith(f"{COUNT} done\n")
    for file in ("sub-00/anat/sub-00_desc-cmb_detections.json", "methods.md"):
        assert "6b6b6b" in (out / file).read_text()
    assert " ways" not in (out / "methods.md").read_text()


@pytest.mark.parametrize(("field", "value"), [("flips", "xyz"), ("precision", "bfloat16")])
def test_other_settings_do_not_pass_for_finished(cohort, study, tmp_path, monkeypatch, field, value):
    out = tmp_path / "out"
    usual = app.BUNDLE
    config = usual.config
    config = app.dataclasses.replace(
        config, inference=app.dataclasses.replace(config.inference, **{field: value})
    )
    some = ("--participant-label", "00", "01")
    monkeypatch.setattr(app, "BUNDLE", app.dataclasses.replace(usual, config=config))
    assert cohort(study, out, "--participant-label", "00")[0] == 0
    assert cohort(study, out, "--participant-label", "00")[1].startswith("1 skipped\n")
    monkeypatch.setattr(app, "BUNDLE", usual)
    stdout = cohort(study, out, *some)[1]
    assert stdout.startswith("1 done, 1 made otherwise\n")
    assert f"made otherwise: {field} changed since" in stdout
    methods = (out / "methods.md").read_text()
    assert f", {field} {value})" in methods.partition("1 of 2 scans (sub-00):")[2].partition("\n")[0]
    assert f"{field} {value}" not in methods.partition("1 of 2 scans (sub-01):")[2].partition("\n")[0]


def test_bad_shares_are_refused(cohort, study, tmp_path):
    for text in ("3/3", "x", "1/0", "-1/2", "1"):
        refused(cohort(study, tmp_path / "out", f"--process={text}"), "number/count")
    refused(cohort(study, tmp_path / "out", "--process", "0/2", "--distributed"), "give one of them")
    refused(cohort(study, tmp_path / "out", "--distributed"), "--process")
    assert not (tmp_path / "out").exists()


def test_the_earlier_command_names_the_one_of_today(study, tmp_path, monkeypatch, capsys):
    given = ("predict-cohort", "--bids", study, "--out", tmp_path / "out")
    refused(run_cli(monkeypatch, capsys, *given), "is now: cmb-jax bids DIR OUT participant")
    assert not (tmp_path / "out").exists()


def test_an_earlier_option_names_the_one_of_today(monkeypatch, capsys):
    refused(run_cli(monkeypatch, capsys, "plan", "--compute-dtype", "bfloat16"), "is now --precision")


def test_the_earlier_module_of_the_study_names_the_command():
    module = "cmb_jax.experiments.ablation"
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "now the command: cmb-jax ablate" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_killed_in_the_middle_and_started_again(tmp_path):
    study = make_study(tmp_path / "study", MANY)
    command = [sys.executable, "-m", "tests.cohort.killed", study]
    straight, out = tmp_path / "straight", tmp_path / "out"
    home = Path(__file__).parents[2]
    subprocess.run([*command, straight], check=True, cwd=home, capture_output=True)
    killed = subprocess.Popen([*command, out], cwd=home, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(done := list(out.glob("sub-*/anat/*_detections.json"))) < MANY // 3:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    done = list(out.glob("sub-*/anat/*_detections.json"))
    assert len(done) < MANY
    stamps = [path.stat().st_mtime_ns for path in done]
    # as if it had been killed while it wrote
    half = out / f"sub-{MANY - 1}" / "anat" / f".sub-{MANY - 1}_desc-cmb_report.html.abc.part"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text("<ht")
    again = subprocess.run([*command, out], check=True, cwd=home, capture_output=True, text=True)
    assert again.stdout.split() == [str(MANY - len(done)), str(len(done))]
    assert [path.stat().st_mtime_ns for path in done] == stamps
    assert contents(out) == contents(straight)


@pytest.mark.parametrize("writes", [0, 1, 4, 9, 17])
def test_a_disk_that_fills_up_is_one_line_and_the_next_run_goes_on(
    cohort, study, tmp_path, monkeypatch, writes
):
    straight = tmp_path / "straight"
    assert cohort(study, straight)[0] == 0
    out, left = tmp_path / "out", [writes]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        code, _, stderr = cohort(study, out)
    assert code in (1, 2)
    assert "Traceback" not in stderr
    assert "No space left on device" in stderr
    assert not list(out.rglob("*.part"))
    assert cohort(study, out)[0] == 0
    assert contents(out) == contents(straight)
    assert not (out / "logs" / "failed.tsv").exists()
