"""Converted voxels against pydicom's own pixels, place against the headers, phase against what was stored."""

import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from cmb_jax.dicom.choose import choose
from cmb_jax.dicom.convert import convert, frame_mapping
from cmb_jax.dicom.folder import read_folder
from cmb_jax.dicom.load import alternates, load, stated_phase_range, without_alternation
from cmb_jax.dicom.stacks import sort_into_stacks
from cmb_jax.errors import UserError
from cmb_jax.scan.phase_range import PhaseRange, detect_phase_range, phase_to_radians
from tests.dicom.phantoms import (
    AXIAL,
    GE_PHASE,
    GE_SWAN,
    OBLIQUE,
    PHILIPS_MAGNITUDE,
    PHILIPS_PHASE,
    SAGITTAL,
    SIEMENS_MAGNITUDE,
    SIEMENS_PHASE,
    SIEMENS_SWI,
    stored_phase,
    write_enhanced,
    write_series,
)
from tests.dicom.reading import found_in, loaded

GRIDS = {"axial": AXIAL, "oblique": OBLIQUE, "sagittal": SAGITTAL}


def pixels(stack):
    """(frames, rows, columns) as pydicom reads them, slope and intercept of the headers applied."""
    arrays = {}
    planes = []
    for frame in stack.frames:
        path = frame.instance.path
        array = arrays.setdefault(path, dcmread(path).pixel_array)
        plane = array if array.ndim == 2 else array[frame.number]
        planes.append(plane * frame.slope + frame.intercept)
    return np.stack(planes)


def angle_between(a, b):
    return np.abs(np.angle(np.exp(1j * (a - b))))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("series", [SIEMENS_SWI, GE_SWAN, PHILIPS_MAGNITUDE], ids=lambda s: s.manufacturer)
def test_voxels_and_their_places(tmp_path, phantom, series, grid):
    write_series(tmp_path, series, phantom[0], grid)
    (stack,) = sort_into_stacks(read_folder(tmp_path).frames)
    volume = convert(stack)
    in_frames = frame_mapping(volume, stack).to_frames(volume.data)
    np.testing.assert_allclose(in_frames, pixels(stack), rtol=1e-6)
    brightest = np.argwhere(volume.data == volume.data.max())[0]
    place = volume.affine @ [*brightest, 1]
    expected = grid.ras(np.argwhere(phantom[0] == phantom[0].max())[:1].astype(float))[0]
    np.testing.assert_allclose(place[:3], expected, atol=1e-3)


def as_jpeg_2000(dataset):
    stream = io.BytesIO()
    Image.fromarray(dataset.pixel_array.astype(np.uint16)).save(stream, "JPEG2000", no_jp2=True)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


def as_big_endian(dataset):
    dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


def as_implicit(dataset):
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def as_deflated(dataset):
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


SYNTAXES = {
    "RLE": lambda dataset: dataset.compress(RLELossless),
    "JPEG-LS": lambda dataset: dataset.compress(JPEGLSLossless),
    "JPEG 2000": as_jpeg_2000,
    "big endian": as_big_endian,
    "implicit": as_implicit,
    "deflated": as_deflated,
}
REFUSED = {"deflated": "deflated"}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_is_read_to_the_voxel_or_refused_in_one_line(tmp_path, phantom, syntax):
    write_series(tmp_path / "plain", SIEMENS_SWI, phantom[0])
    (plain,) = sort_into_stacks(read_folder(tmp_path / "plain").frames)
    expected = pixels(plain)
    for path in write_series(tmp_path / "other", SIEMENS_SWI, phantom[0]):
        dataset = dcmread(path)
        SYNTAXES[syntax](dataset)
        uid = dataset.file_meta.TransferSyntaxUID
        dcmwrite(
            path,
            dataset,
            implicit_vr=uid.is_implicit_VR,
            little_endian=uid.is_little_endian,
            force_encoding=True,
        )
    if syntax in REFUSED:
        with pytest.raises(UserError, match=REFUSED[syntax]) as caught:
            read_folder(tmp_path / "other")
        assert "\n" not in str(caught.value)
        return
    (stack,) = sort_into_stacks(read_folder(tmp_path / "other").frames)
    volume = convert(stack)
    np.testing.assert_array_equal(frame_mapping(volume, stack).to_frames(volume.data), expected)


def test_damaged_pixels_are_refused(tmp_path, phantom):
    paths = write_series(tmp_path, SIEMENS_SWI, phantom[0])
    for path in paths[:6]:
        path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(UserError, match="series 7: "):
        loaded(tmp_path)


PHASES = {
    "Siemens": (SIEMENS_SWI, SIEMENS_PHASE, "pm4096"),
    "Siemens without rescaling": (
        SIEMENS_SWI,
        dataclasses.replace(SIEMENS_PHASE, slope=None, intercept=None),
        "0-4095",
    ),
    "GE": (GE_SWAN, GE_PHASE, "milliradians"),
    "Philips": (PHILIPS_MAGNITUDE, dataclasses.replace(PHILIPS_PHASE, number=1202), "milliradians"),
}


@pytest.mark.parametrize("vendor", PHASES)
def test_phase_of_each_vendor(tmp_path, phantom, vendor):
    intensity, series, unit = PHASES[vendor]
    write_series(tmp_path, intensity, phantom[0], OBLIQUE)
    write_series(tmp_path, series, stored_phase(phantom[1], series), OBLIQUE)
    images = loaded(tmp_path)
    found = images.mapping.to_frames(images.phase.data)
    assert angle_between(found, phantom[1].transpose(2, 1, 0)).max() < 1.1 * 2 * math.pi / 4096
    assert any(f"stored as {unit}, by the headers" in step for step in images.steps)


@pytest.mark.parametrize("vendor", ["Siemens", "Philips"])
def test_headers_tell_the_unit_of_high_passed_phase(tmp_path, phantom, vendor):
    intensity, series, _ = PHASES[vendor]
    # thins out within a quarter of a radian, as what is left of a phase does: no extreme is reached
    small = np.random.default_rng(0).normal(0, 0.06, phantom[1].shape)
    write_series(tmp_path, intensity, phantom[0])
    write_series(tmp_path, series, stored_phase(small, series))
    images = loaded(tmp_path)
    found = images.mapping.to_frames(images.phase.data)
    assert angle_between(found, small.transpose(2, 1, 0)).max() < 1.1 * 2 * math.pi / 4096


def test_unknown_storage_is_left_to_the_data(tmp_path, phantom):
    series = dataclasses.replace(SIEMENS_PHASE, bits=16, slope=1.0, intercept=0.0)
    write_series(tmp_path, series, phantom[0])
    (stack,) = sort_into_stacks(read_folder(tmp_path).frames)
    assert stated_phase_range(stack, peak=9000.0) is None
    write_series(tmp_path / "siemens", dataclasses.replace(SIEMENS_PHASE, number=6), phantom[0])
    (stack,) = sort_into_stacks(read_folder(tmp_path / "siemens").frames)
    assert stated_phase_range(stack, peak=3.1) is None  # radians already
    assert stated_phase_range(stack, peak=300.0) is PhaseRange.PLUS_MINUS_4096


def test_milliradians_are_told_from_the_data(phantom):
    stored = np.rint(phantom[1] * 1000)
    assert detect_phase_range(stored) is PhaseRange.MILLIRADIANS
    assert angle_between(phase_to_radians(stored, PhaseRange.MILLIRADIANS), phantom[1]).max() < 6e-4


def test_an_enhanced_object_that_holds_magnitude_and_phase(tmp_path, phantom):
    parts = [(PHILIPS_MAGNITUDE, phantom[0]), (PHILIPS_PHASE, stored_phase(phantom[1], PHILIPS_PHASE))]
    write_enhanced(tmp_path / "one.dcm", parts, OBLIQUE)
    images = load(choose(found_in(tmp_path)))
    assert images.reference.instance.multi_frame
    assert [frame.number for frame in images.reference.frames] == list(range(0, 24, 2))
    np.testing.assert_allclose(images.mapping.to_frames(images.swi.data), pixels(images.reference), rtol=1e-6)
    found = images.mapping.to_frames(images.phase.data)
    assert angle_between(found, phantom[1].transpose(2, 1, 0)).max() < 1.1 * 2 * math.pi / 4096


def test_echoes_of_an_enhanced_object_stay_apart(tmp_path, phantom):
    magnitude, phase = phantom
    parts = []
    for factor, echo in ((2, 7.5), (1, 20.0)):
        parts.append((dataclasses.replace(PHILIPS_MAGNITUDE, echo_ms=echo), magnitude // factor))
        stored = stored_phase(phase / factor, PHILIPS_PHASE)
        parts.append((dataclasses.replace(PHILIPS_PHASE, echo_ms=echo), stored))
    write_enhanced(tmp_path / "one.dcm", parts)
    found = found_in(tmp_path)
    assert [(c.stack.key, c.role.value) for c in found] == [
        ("1201.1", "swi"),
        ("1201.2", "swi"),
        ("1201.3", "phase"),
        ("1201.4", "phase"),
    ]
    assert [c.stack.first.echo_ms for c in found] == [7.5, 20.0, 7.5, 20.0]
    choice = choose(found, ("1201.2",))
    assert choice.phase[0].key == "1201.4"
    for candidate in found:
        volume = convert(candidate.stack)
        in_frames = frame_mapping(volume, candidate.stack).to_frames(volume.data)
        np.testing.assert_allclose(in_frames, pixels(candidate.stack), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("alternating", [False, True])
def test_real_and_imaginary_parts_become_swi(tmp_path, phantom, alternating):
    """The made SWI is that of magnitude and phase, whether or not every second slice has the wrong sign."""
    magnitude = phantom[0].astype(float)
    signal = magnitude * np.exp(1j * phantom[1])
    signs = (-1.0) ** np.arange(12) if alternating else np.ones(12)
    for number, part in ((31, signal.real), (32, signal.imag)):
        series = dataclasses.replace(GE_SWAN, number=number, ge_component=number - 29)
        write_series(tmp_path / "complex", series, np.rint(part * signs).astype(np.int16))
    write_series(tmp_path / "polar", SIEMENS_MAGNITUDE, phantom[0])
    write_series(tmp_path / "polar", SIEMENS_PHASE, stored_phase(phantom[1], SIEMENS_PHASE))
    made, expected = (
        load(choose(found_in(tmp_path / kind)), phase_sign="+1") for kind in ("complex", "polar")
    )
    assert made.paramagnetic_positive
    assert any("alternated" in step for step in made.steps) is alternating
    np.testing.assert_allclose(made.swi.data, expected.swi.data, atol=0.02 * expected.swi.data.max())
    np.testing.assert_array_equal(made.swi.affine, expected.swi.affine)
    assert [role for role, _, _ in made.inputs] == ["real", "imaginary"]


def test_several_echoes_are_combined(tmp_path, phantom):
    for echo in (10.0, 20.0):
        phase = (phantom[1] * echo / 10.0 + np.pi) % (2 * np.pi) - np.pi
        for series, stored in (
            (SIEMENS_MAGNITUDE, phantom[0]),
            (SIEMENS_PHASE, stored_phase(phase, SIEMENS_PHASE)),
        ):
            write_series(tmp_path, dataclasses.replace(series, echo_ms=echo, acquisition=int(echo)), stored)
    images = load(choose(found_in(tmp_path)), phase_sign="+1")  # a phantom without a head tells none
    assert images.swi.shape == images.phase.shape
    assert any("made from 2 echo(es)" in step for step in images.steps)


def test_alternation_is_found_and_undone(phantom):
    magnitude, phase = phantom[0].astype(float), phantom[1]
    flipped = phase + np.pi * (np.arange(12) % 2)
    assert alternates(magnitude, flipped, 2)
    assert not alternates(magnitude, phase, 2)
    assert angle_between(without_alternation(flipped, 2), phase).max() < 1e-5


def test_neutral_names_stand_for_the_files(siemens):
    images = loaded(siemens)
    assert {role: name for role, name, _ in images.inputs} == {
        "swi": "series 7 (12 images)",
        "phase": "series 5 (12 images)",
        "magnitude": "series 4 (12 images)",
    }
    assert len({digest for _, _, digest in images.inputs}) == 3


def test_a_real_series(real_series):
    """GE, 1.5 T, axial oblique spin echo: no SWI, but real headers."""
    (candidate,) = found_in(real_series)
    assert candidate.role.value == "other"
    assert "no sign of susceptibility weighting" in candidate.reason
    stack = candidate.stack
    assert stack.shape == (256, 256, 20)
    volume = convert(stack)
    np.testing.assert_array_equal(frame_mapping(volume, stack).to_frames(volume.data), pixels(stack))
    # positions are rounded to 0.1 mm, and the converter extrapolates from the first two
    assert "up to 1.3 mm from where dcm2niix put it" in volume.warnings[0]
    inverse = np.linalg.inv(volume.affine)
    for number, frame in enumerate(stack.frames):
        x, y, z = frame.position_mm
        index = inverse @ [-x, -y, z, 1]
        assert abs(index[2] - number) < 0.15 / 7
    assert choose([candidate], ("2",)).swi is stack
    with pytest.raises(UserError, match="no susceptibility-weighted series"):
        choose([candidate])


def test_each_slice_has_the_values_of_its_own_header(tmp_path, phantom):
    """Odd slices hold half the numbers and twice the slope, as some exports write them."""
    for k in range(phantom[0].shape[2]):
        factor = 1 + k % 2
        series = dataclasses.replace(SIEMENS_SWI, slope=float(factor), intercept=0.0)
        write_series(tmp_path, series, phantom[0] // 2 * 2 // factor, only=[k])
    (stack,) = sort_into_stacks(read_folder(tmp_path).frames)
    volume = convert(stack)
    frames = frame_mapping(volume, stack).to_frames(volume.data)
    np.testing.assert_allclose(frames, pixels(stack), rtol=1e-6)
    np.testing.assert_allclose(frames, (phantom[0] // 2 * 2).transpose(2, 1, 0), rtol=1e-6)


@pytest.mark.parametrize("cut", [128, 132])
def test_files_whose_preamble_was_cut_off_are_read(tmp_path, phantom, cut):
    write_series(tmp_path / "whole", SIEMENS_SWI, phantom[0])
    (tmp_path / "cut").mkdir()
    for path in (tmp_path / "whole").iterdir():
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes()[cut:])
    (tmp_path / "cut" / "notes.txt").write_text("no DICOM file, though it lies here")
    (tmp_path / "cut" / "zeros.bin").write_bytes(bytes(5000))
    whole, cut_off = (
        convert(sort_into_stacks(read_folder(tmp_path / name).frames)[0]) for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(whole.data, cut_off.data)
    np.testing.assert_allclose(whole.affine, cut_off.affine)
    assert any("2 files" in problem.where for problem in read_folder(tmp_path / "cut").problems)
