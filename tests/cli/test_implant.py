"""`cmb-jax implant` from files to files, and each kind of bad input."""

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest

from cmb_jax import cli
from cmb_jax.evaluation.read import find_truth
from cmb_jax.io.header import open_nifti
from cmb_jax.io.nifti import shifted_phase
from cmb_jax.phantom.types import LesionRow
from cmb_jax.scan.phase_range import PhaseRange, detect_phase_range, phase_to_radians

SHAPE, SPACING = (48, 44, 40), (0.7, 0.7, 0.8)
DIAMETER, CHI, TE_MS, B0_T = 3.0, 0.6, 15.0, 3.0


def oblique_affine():
    """Voxel axes (left, posterior, superior), tipped by 20 degrees about x and 10 about y."""
    a, b = np.radians(20), np.radians(10)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_y @ np.diag([-1, -1, 1]) @ np.diag(SPACING)
    affine[:3, 3] = (12.0, 20.0, -9.0)
    return affine


STORAGE = {  # radians in -pi..pi -> what is stored
    "radians": lambda x: x.astype(np.float32),
    "0-4095": lambda x: np.floor((x + np.pi) / (2 * np.pi) * 4096).clip(0, 4095).astype(np.int16),
    "pm4096": lambda x: np.rint(x / np.pi * 4096).astype(np.int16),
    "milliradians": lambda x: np.rint(x * 1000).astype(np.int16),
    "0-2pi": lambda x: (x % (2 * np.pi)).astype(np.float64),
    "degrees": lambda x: np.degrees(x).astype(np.float32),
}


@pytest.fixture
def scan(tmp_path):
    """Writes a scan in a storage form; returns the paths. Smooth phase that wraps, some noise."""

    def write(form="radians", affine=None, echoes=1, notes=None):
        rng = np.random.default_rng(1)
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
        image = [
            (900 + 60 * x - 40 * z**2) * np.exp(1j * (e + 1) * (3.5 * y + 2 * z * x))
            + 15 * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
            for e in range(echoes)
        ]
        image = np.stack(image, axis=-1) if echoes > 1 else image[0]
        affine = oblique_affine() if affine is None else affine
        paths = tmp_path / "mag.nii.gz", tmp_path / "phase.nii.gz"
        magnitude = nib.Nifti1Image(np.rint(np.abs(image)).astype(np.int16), affine)
        magnitude.header.set_slope_inter(0.5, 0.0)
        stored = STORAGE[form](np.angle(image))
        nib.save(magnitude, paths[0])
        nib.save(nib.Nifti1Image(stored, affine), paths[1])
        if notes is not None:
            (tmp_path / "mag.json").write_text(json.dumps(notes))
        return paths

    return write


def table(tmp_path, affine, index=(24.3, 21.2, 20.4), line=f"{DIAMETER},cmb,{CHI}"):
    x, y, z = (affine @ [*index, 1])[:3]
    path = tmp_path / "lesions.csv"
    path.write_text(f"x_mm,y_mm,z_mm,diameter_mm,kind,chi_ppm\n{x},{y},{z},{line}\n")
    return path


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["cmb-jax", "implant", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def common(paths, out):
    return ("--magnitude", paths[0], "--phase", paths[1], "--out", out)


PHYSICS = ("--te-ms", TE_MS, "--b0-t", B0_T)


def dipole(affine, index, sign=1):
    """Phase of the sphere at the voxels' centers, and their distance over its radius; field along RAS z."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    away = (grid - np.array(index)) @ affine[:3, :3].T
    r = np.linalg.norm(away, axis=-1)
    a = DIAMETER / 2
    field = CHI / 3 * (a / r) ** 3 * (3 * (away[..., 2] / r) ** 2 - 1)
    return sign * 2 * np.pi * 42.577 * B0_T * TE_MS / 1000 * field, r / a


@pytest.mark.parametrize("form", STORAGE)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_difference_is_the_dipole_in_the_same_storage(monkeypatch, capsys, tmp_path, scan, form, sign):
    affine, index, out = oblique_affine(), (24.3, 21.2, 20.4), tmp_path / "out"
    paths = scan(form)
    told = ("--phase-sign", f"{sign:+d}", "--lesions", table(tmp_path, affine, index))
    code, _, err = run(monkeypatch, capsys, *common(paths, out), *PHYSICS, *told)
    assert (code, "warning" in err) == (0, False)
    before, after = nib.load(paths[1]), nib.load(out / "phase.nii.gz")
    assert after.get_data_dtype() == before.get_data_dtype()
    np.testing.assert_array_equal(after.affine, before.affine)
    assert {k: str(v) for k, v in after.header.items()} == {k: str(v) for k, v in before.header.items()}
    old, new = np.asarray(before.dataobj), np.asarray(after.dataobj)
    kind = detect_phase_range(old)
    assert detect_phase_range(new).turn == pytest.approx(kind.turn, rel=0.01)
    if form == "0-4095":
        assert new.min() >= 0
        assert new.max() <= 4095
    difference = np.angle(
        np.exp(1j * (phase_to_radians(new, kind) - phase_to_radians(old, kind).astype(float)))
    )
    expected, r = dipole(affine, index, sign)
    step = 2 * np.pi / 4096
    peak = 2 * np.pi * 42.577 * B0_T * TE_MS / 1000 * CHI * 2 / 3
    error = np.abs(np.angle(np.exp(1j * (difference - expected))))
    assert error[r >= 1.5].max() < 0.02 * peak + step
    assert error[r >= 4].max() < 1e-3 * peak + (step if form in ("0-4095", "pm4096") else 0)

    sizes = nib.load(paths[0]), nib.load(out / "magnitude.nii.gz")
    assert sizes[1].get_data_dtype() == np.int16
    assert sizes[1].dataobj.slope == 0.5
    raw = [np.asarray(image.dataobj.get_unscaled()) for image in sizes]
    np.testing.assert_array_equal(raw[0][r >= 4], raw[1][r >= 4])
    assert raw[1][r < 0.6].max() < 0.6 * raw[0].mean()


def test_truth_seed_and_record(monkeypatch, capsys, tmp_path, scan):
    paths = scan()
    drawn = ("--count", 2, "--mimics", 2, "--diameters-mm", 1, 1.5, "--phase-sign", "+1")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        code, _, err = run(
            monkeypatch, capsys, *common(paths, tmp_path / name), *PHYSICS, *drawn, "--seed", seed
        )
        assert (code, "warning" in err) == (0, False)
    first, again, other = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b", "c")
    )
    assert set(first) == {
        ".cmb_jax_output",
        "implant.json",
        "labels.nii.gz",
        "magnitude.nii.gz",
        "mimics.nii.gz",
        "phase.nii.gz",
        "truth.csv",
    }
    assert first == again
    assert first["truth.csv"] != other["truth.csv"]
    assert first["phase.nii.gz"] != other["phase.nii.gz"]

    out = tmp_path / "a"
    with open(out / "truth.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == LesionRow._fields
    assert [row["kind"] for row in rows] == ["cmb", "cmb", "calcification_parenchymal", "medullary_vein"]
    labels = nib.load(out / "labels.nii.gz")
    np.testing.assert_allclose(labels.affine, oblique_affine(), atol=1e-5)
    values = np.asarray(labels.dataobj)
    for row in rows[:2]:
        center = np.linalg.inv(labels.affine) @ [*(float(row[f"{axis}_mm"]) for axis in "xyz"), 1]
        middle = np.argwhere(values == int(row["id"])).mean(axis=0)
        assert np.abs(middle - center[:3]).max() <= 0.5
    (source,) = find_truth(out)
    truth = source.read()
    assert (truth.subject, len(truth.centers_mm), truth.zones) == ("a", 2, None)
    assert {source.subject for source in find_truth(tmp_path)} == {"a", "b", "c"}
    record = json.loads((out / "implant.json").read_text())
    assert "Research use only" in record["notice"]
    assert record["settings"]["seed"] == 5
    assert [each["role"] for each in record["inputs"]] == ["magnitude", "phase"]
    assert all(len(each["sha256"]) == 64 for each in record["inputs"])


def test_echoes_each_with_its_time_from_the_sidecar(monkeypatch, capsys, tmp_path, scan):
    paths = scan(echoes=2, notes={"EchoTime": [0.0075, 0.015], "MagneticFieldStrength": 3})
    affine, index, out = oblique_affine(), (24.3, 21.2, 20.4), tmp_path / "out"
    told = ("--phase-sign", "+1", "--lesions", table(tmp_path, affine, index))
    assert run(monkeypatch, capsys, *common(paths, out), *told)[0] == 0
    old, new = (np.asarray(nib.load(p).dataobj, float) for p in (paths[1], out / "phase.nii.gz"))
    difference = np.angle(np.exp(1j * (new - old)))
    expected, r = dipole(affine, index)
    for echo, share in enumerate((0.5, 1.0)):
        error = np.abs(np.angle(np.exp(1j * (difference[..., echo] - share * expected))))
        assert error[r >= 2].max() < 0.02
    assert json.loads((out / "implant.json").read_text())["settings"]["te_ms"] == [7.5, 15.0]


def test_unwrapped_radians_and_the_top_of_a_range(tmp_path):
    data = np.linspace(-9, 9, 64).reshape(4, 4, 4)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "unwrapped.nii")
    moved = shifted_phase(
        open_nifti(tmp_path / "unwrapped.nii"), np.full((4, 4, 4, 1), 3.0), PhaseRange.RADIANS.turn
    )
    np.testing.assert_allclose(moved, data + 3.0)
    whole = np.full((4, 4, 4), 4095.0, np.float32)  # integers in a file of floats
    whole[0] = 0
    nib.save(nib.Nifti1Image(whole, np.eye(4)), tmp_path / "whole.nii")
    shift = np.full((4, 4, 4, 1), 0.6 * 2 * np.pi / 4096)
    moved = shifted_phase(open_nifti(tmp_path / "whole.nii"), shift, PhaseRange.ZERO_4095.turn)
    assert (np.unique(moved[0]), np.unique(moved[1:])) == (1, 0)


@pytest.fixture
def bad(monkeypatch, capsys, tmp_path, scan):
    paths = scan()

    def check(*arguments, match, files=None, physics=PHYSICS):
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        out = tmp_path / "made" / "out"
        code, _, err = run(
            monkeypatch, capsys, *common(files or paths, out), "--phase-sign", "+1", *physics, *arguments
        )
        assert code == 2
        (line,) = [line for line in err.splitlines() if line.strip() and not line.startswith("computing on")]
        assert line.startswith("error: ")
        assert match in line
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    return check, paths


def test_bad_files(bad, tmp_path):
    check, paths = bad
    check(match="no such file", files=(tmp_path / "no.nii.gz", paths[1]))
    check("--lesions", tmp_path / "no.csv", match="no such file")
    check("--brain-mask", tmp_path / "no.nii.gz", match="no such file")
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).uniform(0, 3, (48, 44, 30)), oblique_affine()), other)
    check(match="shapes differ", files=(paths[0], other))
    series = tmp_path / "series.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).uniform(-3, 3, (*SHAPE, 2)), oblique_affine()), series)
    check(match="1 and 2 echoes", files=(paths[0], series))
    check("--brain-mask", other, match="shapes differ")


def test_bad_physics(bad, tmp_path):
    check, _ = bad
    check(match="--te-ms", physics=("--b0-t", 3))
    check(match="--b0-t", physics=("--te-ms", 15))
    check(match="1 to 200 ms", physics=("--te-ms", 0, "--b0-t", 3))
    check(match="1 to 200 ms", physics=("--te-ms", -4, "--b0-t", 3))
    check(match="give milliseconds, not seconds", physics=("--te-ms", 0.02, "--b0-t", 3))
    check(match="1 to 200 ms", physics=("--te-ms", 20000, "--b0-t", 3))
    for value in ("nan", "inf"):
        check(match=f"--te-ms {value}: give a finite number", physics=("--te-ms", value, "--b0-t", 3))
        check(match=f"--b0-t {value}: give a finite number", physics=("--te-ms", 15, "--b0-t", value))
    check(match="--te-ms 1e+30: allowed are 1 to 200 ms", physics=("--te-ms", "1e30", "--b0-t", 3))
    check(match="allowed are 0.1 to 14 tesla", physics=("--te-ms", 15, "--b0-t", "1e30"))
    check(match="must rise from echo to echo", physics=("--te-ms", 20, 20, 20, "--b0-t", 3))
    check(match="0.1 to 14 tesla", physics=("--te-ms", 15, "--b0-t", 90))
    check(match="1 echoes but 2 echo times", physics=("--te-ms", 5, 10, "--b0-t", 3))
    (tmp_path / "mag.json").write_text("[3")
    check(match="mag.json", physics=())


def test_a_lesion_below_the_noise_is_not_written(monkeypatch, capsys, tmp_path, scan):
    affine = oblique_affine()
    lines = [f"{x},{y},{z}" for x, y, z, _ in (affine @ np.array([[24, 21, 20, 1], [14, 21, 12, 1]]).T).T]
    (tmp_path / "lesions.csv").write_text(
        f"x_mm,y_mm,z_mm,diameter_mm,kind,chi_ppm\n{lines[0]},{DIAMETER},cmb,{CHI}\n{lines[1]},0.5,cmb,0.001\n"
    )
    told = ("--phase-sign", "+1", "--lesions", tmp_path / "lesions.csv")
    code, _, err = run(monkeypatch, capsys, *common(scan(), tmp_path / "out"), *PHYSICS, *told)
    assert code == 0
    assert "1 of 2 lesions change the image less than its noise" in err
    assert len((tmp_path / "out" / "truth.csv").read_text().splitlines()) == 2
    assert np.asarray(nib.load(tmp_path / "out" / "labels.nii.gz").dataobj).max() == 1


def test_bad_lesions(bad, tmp_path):
    check, _ = bad
    check("--diameters-mm", 20, 20, match="found room in the mask")
    check("--diameters-mm", 2, 80, match="<= 20")
    check("--diameters-mm", 4, 2, match="low <= high")
    check("--count", 400, "--diameters-mm", 1, 1, match="of at most")
    check("--count", 501, match="0 to 500")
    check("--count", 0, match="nothing to implant")
    check("--seed", -1, match="0 or more")
    affine = oblique_affine()
    check("--lesions", table(tmp_path, affine, (24, 21, 90)), match="outside the image; it covers x")
    check("--lesions", table(tmp_path, affine, line="80,cmb,1"), match="larger than the brain")
    check(
        "--lesions", table(tmp_path, affine, line="3,bleed,1"), match="allowed: cmb, calcification_pallidum"
    )
    check("--lesions", table(tmp_path, affine, line="3,cmb,-1"), match="chi_ppm is -1")
    check("--lesions", table(tmp_path, affine, line="0.1,cmb,1"), match="from 0.5 on")


def test_an_output_that_exists(bad, tmp_path):
    check, _ = bad
    (tmp_path / "made" / "out").mkdir(parents=True)
    (tmp_path / "made" / "out" / "mine.txt").write_text("precious")
    check(match="exists already")
    check("--overwrite", "--count", 1, "--diameters-mm", 1, 1, match="not written by cmb-jax")
