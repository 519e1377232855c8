"""`cmb-jax evaluate --baseline`: two folders of predictions on the same scans, counted by hand."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.command_line import run_cli as run

SHAPE = (24, 24, 12)


def save(folder, name, *centers):
    folder.mkdir(exist_ok=True)
    labels = np.zeros(SHAPE, np.uint8)
    for number, (x, y, z) in enumerate(centers, start=1):
        labels[x : x + 2, y : y + 2, z : z + 2] = number
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{name}.nii.gz")


@pytest.fixture
def folders(tmp_path):
    """Three scans with four lesions; ours finds all and invents none, theirs finds two and invents one."""
    lesions = {"sub-01": [(4, 4, 4), (14, 14, 4)], "sub-02": [(8, 8, 6)], "sub-03": [(4, 12, 2)]}
    for name, centers in lesions.items():
        save(tmp_path / "truth", name, *centers)
        save(tmp_path / "ours", name, *centers)
    save(tmp_path / "theirs", "sub-01", (4, 4, 4), (20, 4, 8))
    save(tmp_path / "theirs", "sub-02", (8, 8, 6))
    save(tmp_path / "theirs", "sub-03")
    return tmp_path


def call(monkeypatch, capsys, folder, *more):
    return run(
        monkeypatch,
        capsys,
        *("evaluate", "--pred", folder / "ours", "--truth", folder / "truth", "-o", folder / "scores.json"),
        *("--baseline", folder / "theirs", *more),
    )


def test_both_are_counted_and_compared(monkeypatch, capsys, folders):
    code, out, err = call(monkeypatch, capsys, folders)
    assert code == 0, err
    assert "ours against theirs: 3 scans, 4 microbleeds" in out
    compared = json.loads((folders / "scores.comparison.json").read_text())
    metrics = {metric["name"]: metric for metric in compared["metrics"]}
    sensitivity, false = metrics["sensitivity"], metrics["fp_per_scan"]
    assert (sensitivity["first"]["value"], sensitivity["second"]["value"]) == (1.0, 0.5)
    assert (false["first"]["value"], false["second"]["value"]) == (0.0, pytest.approx(1 / 3))
    assert sensitivity["paired"]["difference"]["value"] == pytest.approx(0.5)


def test_what_cannot_be_compared_is_refused_before_anything_is_written(monkeypatch, capsys, folders):
    for more in (("--threshold", "0.5"), ("--rule", "valdo")):
        code, _, err = call(monkeypatch, capsys, folders, *more)
        assert code == 2
        assert "--baseline compares both at their own operating points" in err
    assert not (folders / "scores.json").exists()
    (folders / "scores.comparison.json").write_text("mine")
    assert call(monkeypatch, capsys, folders)[0] == 2
    assert (folders / "scores.comparison.json").read_text() == "mine"
