"""Mixed folders sorted into volumes; missing, repeated, damaged and foreign files named."""

import dataclasses
import shutil

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cmb_jax.dicom.folder import read_folder
from cmb_jax.dicom.stacks import same_grid, sort_into_stacks
from cmb_jax.errors import UserError
from tests.dicom.phantoms import (
    AXIAL,
    OBLIQUE,
    SAGITTAL,
    SIEMENS_PHASE,
    SIEMENS_SWI,
    Grid,
    write_series,
)


def stacks_of(folder):
    return sort_into_stacks(read_folder(folder).frames)


def test_a_mixed_folder_is_sorted_into_its_series(siemens):
    stacks = stacks_of(siemens)
    assert [(stack.key, stack.shape, stack.fault) for stack in stacks] == [
        ("4", (22, 26, 12), ""),
        ("5", (22, 26, 12), ""),
        ("6", (22, 26, 8), ""),
        ("7", (22, 26, 12), ""),
    ]
    assert same_grid(stacks[0], stacks[3])
    assert not same_grid(stacks[0], stacks[2])


@pytest.mark.parametrize("grid", [AXIAL, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_the_affine_places_every_voxel(tmp_path, phantom, grid):
    write_series(tmp_path, SIEMENS_SWI, phantom[0], grid)
    (stack,) = stacks_of(tmp_path)
    index = np.array([[0, 0, 0], [21, 25, 11], [3, 17, 5]], float)
    found = index @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    backwards = (index * [1, 1, -1] + [0, 0, 11]) @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    # slices run along the normal, which for a left-handed grid is from the last to the first
    handed = np.linalg.det(grid.directions) > 0
    np.testing.assert_allclose(found if handed else backwards, grid.ras(index), atol=1e-5)


@pytest.mark.parametrize(
    ("gone", "said"), [([4], "1 slice is missing (after slice 4 "), ([2, 3, 7], "3 slices are missing")]
)
def test_missing_slices_are_counted_and_placed(tmp_path, phantom, gone, said):
    write_series(tmp_path, SIEMENS_SWI, phantom[0], only=[k for k in range(12) if k not in gone])
    (stack,) = stacks_of(tmp_path)
    assert said in stack.fault
    assert stack.affine is None


def test_two_acquisitions_in_one_series_become_two_stacks(tmp_path, phantom):
    again = dataclasses.replace(SIEMENS_SWI, acquisition=2)
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, again, phantom[0])
    first, second = stacks_of(tmp_path)
    assert (first.key, second.key) == ("7.1", "7.2")
    assert first.fault == second.fault == ""
    assert {frame.acquisition for frame in first.frames} == {1}


def test_repeated_slices_that_nothing_tells_apart_are_a_fault(tmp_path, phantom):
    write_series(tmp_path / "a", SIEMENS_SWI, phantom[0])
    paths = write_series(tmp_path / "b", dataclasses.replace(SIEMENS_SWI, acquisition=2), phantom[0])
    for path in paths:
        dataset = dcmread(path)
        dataset.AcquisitionNumber = 1
        dataset.save_as(path)
    (stack,) = stacks_of(tmp_path)
    assert "12 of its 24 slices lie where another one lies" in stack.fault


def test_interleaved_acquisitions_become_two_stacks(tmp_path, phantom):
    between = Grid(spacing=AXIAL.spacing, origin=(-20.0, -30.0, 10.8))
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    write_series(tmp_path, dataclasses.replace(SIEMENS_SWI, acquisition=2), phantom[0], between)
    assert [(stack.key, stack.fault) for stack in stacks_of(tmp_path)] == [("7.1", ""), ("7.2", "")]


def test_rounded_positions_are_a_volume(tmp_path, phantom):
    """Some scanners round positions to 0.1 mm."""
    rounded = Grid(directions=OBLIQUE.directions, spacing=(0.8, 0.7, 1.97), origin=OBLIQUE.origin)
    for path in write_series(tmp_path, SIEMENS_SWI, phantom[0], rounded):
        dataset = dcmread(path)
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]
        dataset.save_as(path)
    (stack,) = stacks_of(tmp_path)
    assert stack.fault == ""
    assert abs(np.linalg.norm(stack.affine[:3, 2]) - 1.97) < 0.1 / 11 * 2


def test_uneven_and_shifted_slices_are_a_fault(tmp_path, phantom):
    apart = Grid(spacing=AXIAL.spacing, origin=(-20.0, -30.0, 10.7))
    write_series(tmp_path / "uneven" / "a", SIEMENS_SWI, phantom[0], only=[0, 1, 2, 3, 4])
    write_series(tmp_path / "uneven" / "b", SIEMENS_SWI, phantom[0], apart, only=[5, 6, 7])
    assert "2.00 to 2.70 mm apart, not evenly spaced" in stacks_of(tmp_path / "uneven")[0].fault
    sheared = tmp_path / "sheared"
    write_series(sheared / "a", SIEMENS_SWI, phantom[0], only=[0, 2, 3, 4, 5])
    aside = Grid(spacing=AXIAL.spacing, origin=(-17.0, -30.0, 10.0))
    write_series(sheared / "b", SIEMENS_SWI, phantom[0], aside, only=[1])
    assert "shifted against each other" in stacks_of(sheared)[0].fault


def test_a_single_slice_is_no_volume(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0], only=[3])
    assert stacks_of(tmp_path)[0].fault == "it is a single slice"


def test_echoes_and_components_of_one_series_lie_apart(tmp_path, phantom):
    for echo in (7.5, 15.0):
        series = dataclasses.replace(SIEMENS_SWI, echo_ms=echo, acquisition=round(echo))
        write_series(tmp_path, series, phantom[0])
    phase = dataclasses.replace(SIEMENS_PHASE, number=7, series_uid=SIEMENS_SWI.uid)
    write_series(tmp_path / "phase", phase, phantom[0])
    stacks = stacks_of(tmp_path)
    assert sorted((s.first.component, s.first.echo_ms) for s in stacks) == [
        ("MAGNITUDE", 7.5),
        ("MAGNITUDE", 15.0),
        ("PHASE", 20.0),
    ]


def test_what_is_no_image_is_named(siemens):
    (siemens / "notes.txt").write_text("no DICOM")
    (siemens / "more.zip").write_bytes(b"PK")
    (siemens / "DICOMDIR").write_bytes(b"index")
    deflated = dcmread(sorted(siemens.glob("*_5_*.dcm"))[0])
    deflated.SOPInstanceUID = deflated.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated.save_as(siemens / "deflated.dcm", enforce_file_format=True)
    copied = sorted(siemens.glob("*_7_*.dcm"))[0]
    (siemens / "sub").mkdir()
    shutil.copy(copied, siemens / "sub" / "copy")
    (siemens / "cut.dcm").write_bytes(copied.read_bytes()[:400])
    content = read_folder(siemens)
    said = {f"{problem.where}: {problem.what}" for problem in content.problems}
    assert "more.zip: is an archive, which is not opened; unpack it first" in said
    assert "1 file: is not a DICOM file" in said
    assert "1 file: is a second copy of an image" in said
    assert any(line.startswith("1 file: is deflated, which is not read") for line in said)
    assert any("cut.dcm" in line or "UID" in line or "holds no image" in line for line in said)
    assert len(content.frames) == 3 * 12 + 8


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is empty"):
        read_folder(tmp_path)
    (tmp_path / "x.dcm").write_text("no DICOM")
    with pytest.raises(UserError, match=r"1 file: is not a DICOM file"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        read_folder(tmp_path / "x.dcm")
