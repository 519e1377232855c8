"""`cmb-jax swi` from files to files, and on a real multi-echo acquisition."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import fft, ndimage

import cmb_jax
from cmb_jax.cli.swi import SwiOptions, run
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_echoes
from cmb_jax.scan.phase_range import detect_phase_range, phase_to_radians
from cmb_jax.scan.phase_sign import decide_phase_sign

TE_MS = (4.0, 8.0, 12.0)


def run_swi(magnitude, phase, out, te_ms=(), **options):
    """The command; gives its folder."""
    run(SwiOptions(magnitude=magnitude, phase=phase, out=out, te_ms=te_ms, **options))
    return out


@pytest.fixture(scope="module")
def real_gre() -> Path:
    """The folder of the real 3-echo crop, or a skip that says how to have it."""
    beside = Path(cmb_jax.__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CMB_SHARED_DATA", beside)) / "real-gre"
    if not (folder / "phase.nii.gz").is_file():
        pytest.skip("no real-gre data: set CMB_SHARED_DATA to the folder that holds real-gre/")
    return folder


def laplacian_unwrap(phase):
    """Phase (X, Y, Z) without wraps (Schofield & Zhu 2003): Poisson's equation of its wrapped differences."""
    laplacian, eigenvalues = np.zeros(phase.shape), np.zeros((1, 1, 1))
    for axis, length in enumerate(phase.shape):
        flux = np.angle(np.exp(1j * np.diff(phase, axis=axis)))
        edges = [(1, 1) if each == axis else (0, 0) for each in range(3)]  # none through the faces
        laplacian += np.diff(np.pad(flux, edges), axis=axis)
        waves = 2 * np.cos(np.pi * np.arange(length) / length) - 2
        eigenvalues = eigenvalues + waves.reshape([-1 if each == axis else 1 for each in range(3)])
    eigenvalues[0, 0, 0] = np.inf  # the constant is open
    unwrapped = fft.idctn(fft.dctn(laplacian, norm="ortho") / eigenvalues, norm="ortho")
    return unwrapped + np.angle(np.mean(np.exp(1j * (phase - unwrapped))))


def test_unwrapped_phase_scales_with_echo_time(real_gre):
    echoes = read_echoes(real_gre / "phase.nii.gz")
    stored = np.stack([echo.data for echo in echoes])
    peak = float(np.abs(stored).max())
    found = detect_phase_range(stored)
    assert (found.low, found.high) == pytest.approx((-peak, peak), rel=0.01)
    radians = phase_to_radians(stored, found)
    unwrapped = [laplacian_unwrap(np.asarray(echo, np.float64)) for echo in radians]
    for echo, flat in zip(unwrapped, radians, strict=True):  # still the measured phase, modulo whole turns
        assert np.abs(np.exp(1j * echo) - np.exp(1j * flat)).max() < 1e-3
    first, second, third = (echo - echo.mean() for echo in unwrapped)  # the receiver's offset is no matter
    assert np.sum(third * first) / np.sum(first * first) == pytest.approx(12 / 4, rel=0.05)
    assert np.sum(second * first) / np.sum(first * first) == pytest.approx(8 / 4, rel=0.05)
    assert third.std() / first.std() == pytest.approx(12 / 4, rel=0.05)


def test_veins_of_a_real_scan_get_darker_against_their_surroundings(real_gre, tmp_path):
    out = run_swi(real_gre / "magnitude.nii.gz", real_gre / "phase.nii.gz", tmp_path / "out", TE_MS)
    record = json.loads((out / "swi.json").read_text())
    assert record["phase_sign"] == 1
    swi = nib.load(out / "swi.nii.gz").get_fdata()
    echoes = nib.load(real_gre / "magnitude.nii.gz").get_fdata()
    combined = np.sqrt(np.average(echoes**2, axis=3, weights=TE_MS))
    # veins: the darkest thin structures of the last echo's magnitude; surroundings: a ring about them
    closed = ndimage.grey_closing(echoes[..., 2], (9, 9, 1))
    darkness = (closed - echoes[..., 2]) / closed
    veins = darkness > np.percentile(darkness, 98)
    near = ndimage.binary_dilation(veins, np.ones((3, 3, 1)))
    ring = ndimage.binary_dilation(veins, np.ones((7, 7, 3))) & ~near

    def contrast(image):
        return 1 - image[veins].mean() / image[ring].mean()

    assert contrast(swi) > contrast(combined) + 0.03
    assert contrast(swi) > 1.1 * contrast(combined)


def test_sign_of_the_real_scan_turns_with_the_data(real_gre):
    magnitude = read_echoes(real_gre / "magnitude.nii.gz")[2]
    stored = np.stack([echo.data for echo in read_echoes(real_gre / "phase.nii.gz")])
    phase = phase_to_radians(stored, detect_phase_range(stored))[2]
    for sign in (1, -1):
        decision = decide_phase_sign(sign * phase, magnitude.data, magnitude.spacing_mm)
        assert (decision.sign, decision.confident) == (sign, True)


def test_real_scan_asks_for_echo_times(real_gre, tmp_path):
    inputs = (real_gre / "magnitude.nii.gz", real_gre / "phase.nii.gz", tmp_path / "out")
    with pytest.raises(UserError, match="--te-ms"):
        run_swi(*inputs)
    with pytest.raises(UserError, match="3 echoes but 2 echo times"):
        run_swi(*inputs, te_ms=(4.0, 8.0))
    with pytest.raises(UserError, match="no echo 4"):
        run_swi(*inputs, echo=4)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def scan(tmp_path, rng):
    """A left-handed, flipped single-echo scan: magnitude, phase in +-4096 and the native affine."""
    affine = np.array([[0, 0.5, 0, -3], [-0.6, 0, 0, 9], [0, 0, -2.0, 5], [0, 0, 0, 1]])
    # brighter along the first axis; the phase turns along the slices, which no high-pass within one sees
    magnitude = (np.linspace(300, 600, 24)[:, None, None] + rng.normal(0, 15, (24, 20, 6))).astype(np.int16)
    angle = rng.normal(scale=200, size=magnitude.shape) + np.linspace(-4096, 4096, 6)
    angle[10:12, 10:12, 3] -= 1800  # a paramagnetic spot as this scanner stores it
    phase = ((np.rint(angle) + 4096) % 8192 - 4096).astype(np.int16)
    phase[0, 0, 0], phase[1, 0, 0] = -4096, 4095
    for name, data in (("mag", magnitude), ("phase", phase)):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_single_echo_on_the_native_grid(scan):
    out = run_swi(scan / "mag.nii.gz", scan / "phase.nii.gz", scan / "out", phase_sign="-1")
    assert out == scan / "out"
    source = nib.load(scan / "mag.nii.gz")
    images = {name: nib.load(out / f"{name}.nii.gz") for name in ("swi", "phase", "minip")}
    for image in images.values():
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
    swi, phase, minip = (images[name].get_fdata() for name in ("swi", "phase", "minip"))
    np.testing.assert_allclose(phase[10:12, 10:12, 3], 1800 * np.pi / 4096, atol=0.3)  # turned positive
    mask = np.where(phase > 0, 1 - phase / np.pi, 1)
    np.testing.assert_allclose(swi, source.get_fdata() * mask**4, rtol=1e-3, atol=0.1)
    # 8 mm are 4 slices; on the flipped axis the slab reaches two slices down and one up in file order
    np.testing.assert_allclose(minip[:, :, 3], swi[:, :, 1:5].min(axis=2))
    record = json.loads((out / "swi.json").read_text())
    assert record["phase_range"] == "pm4096"
    assert record["phase_sign"] == -1
    assert "Research use only" in record["notice"]
    assert [entry["file"] for entry in record["inputs"]] == ["mag.nii.gz", "phase.nii.gz"]


def test_a_sign_that_is_open_is_asked_for(scan):
    with pytest.raises(UserError, match="give --phase-sign"):
        run_swi(scan / "mag.nii.gz", scan / "phase.nii.gz", scan / "out")
    assert not (scan / "out").exists()


def test_one_echo_of_several_equals_that_echo_alone(real_gre, tmp_path):
    whole = run_swi(real_gre / "magnitude.nii.gz", real_gre / "phase.nii.gz", tmp_path / "a", echo=2)
    for name in ("magnitude", "phase"):
        image = nib.load(real_gre / f"{name}.nii.gz")
        data = np.asarray(image.dataobj)
        data = data * (np.pi / np.abs(data).max()) if name == "phase" else data
        nib.save(nib.Nifti1Image(data[..., 1].astype(np.float32), image.affine), tmp_path / f"{name}.nii")
    alone = run_swi(tmp_path / "magnitude.nii", tmp_path / "phase.nii", tmp_path / "b")
    for name in ("swi", "phase"):
        a, b = (nib.load(folder / f"{name}.nii.gz").get_fdata() for folder in (whole, alone))
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


def test_bad_input_writes_nothing(scan, monkeypatch):
    before = sorted(scan.iterdir())
    shifted = nib.load(scan / "phase.nii.gz")
    shifted.affine[0, 3] += 5
    moved = nib.Nifti1Image(np.asarray(shifted.dataobj), shifted.affine)
    small = nib.Nifti1Image(np.asarray(shifted.dataobj)[:12], shifted.affine)
    nib.save(moved, scan / "moved.nii")
    nib.save(small, scan / "small.nii")
    before = sorted(scan.iterdir())
    mag, phase, out = scan / "mag.nii.gz", scan / "phase.nii.gz", scan / "out"
    cases = [
        (lambda: run_swi(scan / "none.nii", phase, out), "no such file"),
        (lambda: run_swi(mag, scan / "moved.nii", out), "mm apart"),
        (lambda: run_swi(mag, scan / "small.nii", out), "shapes differ"),
        (lambda: run_swi(mag, phase, out, phase_sign="2"), "auto"),
        (lambda: run_swi(mag, phase, out, te_ms=(-4.0,)), "1 to 200 ms"),
        (lambda: run_swi(mag, phase, mag / "out"), "cannot be written"),
        (lambda: run_swi(mag, phase, scan, overwrite=True), "not written by cmb-jax"),
    ]
    for call, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert sorted(scan.iterdir()) == before

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        run_swi(mag, phase, out, phase_sign="+1")


def test_folder_that_exists(scan):
    mag, phase, out = scan / "mag.nii.gz", scan / "phase.nii.gz", scan / "out"
    run_swi(mag, phase, out, phase_sign="+1")
    first = (out / "swi.nii.gz").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        run_swi(mag, phase, out, phase_sign="-1")
    assert (out / "swi.nii.gz").read_bytes() == first
    run_swi(mag, phase, out, phase_sign="-1", overwrite=True)
    assert (out / "swi.nii.gz").read_bytes() != first
