"""A prediction's folder as `cmb-jax predict` leaves it, on any grid."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmb_jax import cli
from cmb_jax.core.detection import DetectionRow, detections_csv

SHAPE = (36, 40, 30)  # of the file's own array
PLACES = (  # fractions of the volume's edges, apart by more than 6 mm
    (0.25, 0.30, 0.30),
    (0.70, 0.30, 0.55),
    (0.30, 0.70, 0.60),
    (0.72, 0.75, 0.30),
    (0.50, 0.50, 0.75),
)


def oblique_affine(spacing=(0.9, 0.8, 1.5)):
    """Axes to left, superior, posterior, tipped by 25 degrees about z and 10 about x; off the origin."""
    a, b = np.radians(25), np.radians(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    axes = np.array([[-1, 0, 0], [0, 0, -1], [0, 1, 0]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ axes @ np.diag(spacing)
    affine[:3, 3] = (40.0, 18.0, -31.0)
    return affine


AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.2, 1.0]),
    "LPS": np.array([[-1.0, 0, 0, 15], [0, -1.0, 0, 22], [0, 0, 1.2, -17], [0, 0, 0, 1]]),
    "oblique": oblique_affine(),
}


def make_rows(affine, statuses=("kept", "kept", "kept", "kept", "rejected"), shape=SHAPE):
    rows = []
    for index, (status, place) in enumerate(zip(statuses, PLACES, strict=False)):
        ijk = np.array(place) * (np.array(shape) - 1) + 0.13 * index
        x, y, z = (round(float(v), 2) for v in affine[:3, :3] @ ijk + affine[:3, 3])
        i, j, k = (int(v) for v in np.rint(ijk))
        rows.append(
            DetectionRow(
                **{"id": index + 1, "i": i, "j": j, "k": k, "x_mm": x, "y_mm": y, "z_mm": z},
                diameter_mm=4.0 + 0.5 * index,
                volume_mm3=33.5,
                score=round(0.95 - 0.1 * index, 4),
                category="definite" if index < 2 else "possible",
                zone=("lobar", "deep", "infratentorial", "lobar", "none")[index],  # type: ignore[arg-type]
                region=("frontal", "thalamus", "cerebellum", "occipital", "none")[index],
                side="left",
                status=status,  # type: ignore[arg-type]
                reason="" if status == "kept" else "inside a ventricle",
            )
        )
    return tuple(rows)


def draw_labels(rows, affine, shape=SHAPE):
    """Spheres of the kept rows on the file's own array, by brute force, and the voxel at each center."""
    ijk = np.moveaxis(np.indices(shape), 0, -1)
    world = ijk @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint16)
    for row in rows:
        if row.status == "kept":
            apart = np.linalg.norm(world - (row.x_mm, row.y_mm, row.z_mm), axis=-1)
            labels[apart <= row.diameter_mm / 2] = row.id
            labels[np.unravel_index(apart.argmin(), shape)] = row.id
    return labels


def make_result(folder: Path, rows=None, affine=None, name="sub-07_ses-1_swi.nii.gz", shape=SHAPE) -> Path:
    affine = AFFINES["oblique"] if affine is None else affine
    rows = make_rows(affine) if rows is None else rows
    folder.mkdir(parents=True)
    (folder / "detections.csv").write_text(detections_csv(tuple(rows)))
    inputs = [{"role": "swi", "file": name, "sha256": "ab" * 32}]
    (folder / "detections.json").write_text(json.dumps({"inputs": inputs}))
    nib.save(nib.Nifti1Image(draw_labels(rows, affine, shape), affine), folder / "labels.nii.gz")
    return folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("export", ...)`: exit code, stdout, stderr of `cmb-jax review`."""

    def call(*arguments) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cmb-jax", "review", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def result(tmp_path) -> Path:
    return make_result(tmp_path / "result")


@pytest.fixture
def exported(run, result, tmp_path) -> Path:
    outcome = run("export", result, "--out", tmp_path / "exported")
    assert outcome.code == 0, outcome.err
    return tmp_path / "exported"
