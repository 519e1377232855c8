"""Segmentation and report read back by highdicom, voxel by voxel and in mm; codes, validator, privacy."""

import dataclasses
import shutil
import subprocess

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr import _concepts_dict
from pydicom.sr.coding import Code
from scipy import ndimage

from cmb_jax.anatomy.regions import Region
from cmb_jax.core.detection import DetectionRow
from cmb_jax.dicom import codes
from cmb_jax.dicom.choose import choose
from cmb_jax.dicom.identity import scrubbed
from cmb_jax.dicom.load import load
from cmb_jax.dicom.objects import Finding, key_picture
from cmb_jax.dicom.results import prepare_results
from cmb_jax.errors import UserError
from tests.dicom.phantoms import (
    AXIAL,
    BIRTH_DATE,
    GE_SWAN,
    NAME,
    OBLIQUE,
    PATIENT_ID,
    PHILIPS_MAGNITUDE,
    PHILIPS_PHASE,
    SAGITTAL,
    SIEMENS_SWI,
    STUDY_UID,
    stored_phase,
    write_enhanced,
    write_series,
)
from tests.dicom.reading import found_in

IDS = (2, 7, 11)
FILES = ("segmentation.dcm", "report.dcm", "key_images/001.dcm")
PRIVATE = (*NAME.split("^"), PATIENT_ID, BIRTH_DATE, "ACC99", "Ward Twelve", "Curie", "20240506")


def row(number, **changes):
    fields = {
        "id": number,
        "diameter_mm": 3.2 + number,
        "volume_mm3": 20.5 * number,
        "score": 0.9123,
        "category": "definite",
        "zone": "lobar",
        "region": "frontal",
        "side": "left",
        "status": "kept",
        "reason": "",
    } | changes
    return DetectionRow(i=0, j=0, k=0, x_mm=0.0, y_mm=0.0, z_mm=0.0, **fields)


ROWS = (
    row(2),
    row(7, zone="deep", region="thalamus", side="right", category="possible", score=0.31, probability=0.155),
    row(9, status="rejected", reason="CSF"),
    row(11, zone="none", region="none", side="none"),
)


def labels_on(shape):
    """Boxes without symmetry, one of a single voxel at a corner."""
    labels = np.zeros(shape, np.uint16)
    labels[2:5, 3:9, 1:3] = 2
    labels[6:7, 2:4, 5:8] = 7
    labels[-1, -1, -1] = 11
    return labels


@pytest.fixture(scope="module", params=["axial", "oblique", "sagittal", "enhanced"])
def written(request, tmp_path_factory, phantom):
    """(images, labels, folder with the DICOM files) for a source of each kind."""
    grid = {"axial": AXIAL, "oblique": OBLIQUE, "sagittal": SAGITTAL, "enhanced": OBLIQUE}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    if request.param == "enhanced":
        parts = [(PHILIPS_MAGNITUDE, phantom[0]), (PHILIPS_PHASE, stored_phase(phantom[1], PHILIPS_PHASE))]
        write_enhanced(source / "one.dcm", parts, grid)
    else:
        write_series(source, GE_SWAN if request.param == "sagittal" else SIEMENS_SWI, phantom[0], grid)
    return (*results(source, folder / "out"), folder / "out")


def results(source, out, rows=ROWS, keep_identifiers=False):
    out.mkdir()
    images = load(choose(found_in(source)))
    labels = labels_on(images.swi.shape)
    prepared = prepare_results(images.reference, keep_identifiers=keep_identifiers)
    brain = np.ones(images.swi.shape, bool)
    more = {"swi": images.swi, "brain_mask": brain, "trusted": True}
    prepared.write(out, rows, labels, images.mapping, "0123456789abcdef" * 4, **more)
    return images, labels


def test_the_segmentation_comes_back_voxel_for_voxel_and_in_mm(written):
    images, labels, out = written
    segmentation = highdicom.seg.segread(out / "segmentation.dcm")
    assert segmentation.number_of_segments == len(IDS)
    volume = segmentation.get_volume()
    found = {number: set() for number in range(1, len(IDS) + 1)}
    for *index, channel in np.argwhere(volume.array):
        x, y, z = volume.map_indices_to_reference(np.array([index]))[0]
        found[channel + 1].add((round(-x, 2) + 0.0, round(-y, 2) + 0.0, round(z, 2) + 0.0))
    for number, identifier in enumerate(IDS, 1):
        index = np.argwhere(labels == identifier)
        expected = index @ images.swi.affine[:3, :3].T + images.swi.affine[:3, 3]
        assert len(found[number]) == len(index)
        for point in expected:
            assert min(np.linalg.norm(np.array(list(found[number])) - point, axis=1)) < 0.02


def test_the_segmentation_lies_on_the_source_frames(written):
    images, labels, out = written
    segmentation = highdicom.seg.segread(out / "segmentation.dcm")
    frames = images.reference.frames
    options = {"combine_segments": True, "ignore_spatial_locations": True}
    if images.reference.instance.multi_frame:
        found = segmentation.get_pixels_by_source_frame(
            frames[0].instance.sop_uid, [frame.number + 1 for frame in frames], **options
        )
    else:
        found = segmentation.get_pixels_by_source_instance(
            [frame.instance.sop_uid for frame in frames],
            assert_missing_frames_are_empty=True,
            **options,
        )
    expected = images.mapping.to_frames(labels)
    for number, identifier in enumerate(IDS, 1):
        np.testing.assert_array_equal(found == number, expected == identifier)
    for number, frame in enumerate(frames):  # pixel for pixel in the source's own rows and columns
        plane = dcmread(frame.instance.path).pixel_array
        plane = plane if plane.ndim == 2 else plane[frame.number]
        np.testing.assert_allclose(
            images.mapping.to_frames(images.swi.data)[number],
            plane * frame.slope + frame.intercept,
            rtol=1e-6,
        )


def test_the_report_says_what_was_found(written):
    _, _, out = written
    report = highdicom.sr.srread(out / "report.dcm")
    segmentation = dcmread(out / "segmentation.dcm")
    counts = report.content.get_image_measurement_groups()[0].get_measurements()
    assert {m.name: m.value for m in counts} == dict(zip(codes.COUNTS.values(), (3, 1, 1, 0), strict=True))
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(IDS)
    kept = [r for r in ROWS if r.status == "kept"]
    for number, (group, expected, segment) in enumerate(
        zip(groups, kept, segmentation.SegmentSequence, strict=True), 1
    ):
        assert group.tracking_identifier == segment.TrackingID == f"Microbleed {expected.id}"
        assert group.tracking_uid == segment.TrackingUID
        reference = group.reference_type
        assert reference == Code("121191", "DCM", "Referenced Segment")
        item = group.referenced_segment
        assert item.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert item.referenced_segment_numbers == [number]
        values = {m.name: (m.value, m.unit) for m in group.get_measurements()}
        assert values[codes.DIAMETER] == (expected.diameter_mm, codes.MILLIMETER)
        assert values[codes.VOLUME] == (expected.volume_mm3, codes.CUBIC_MILLIMETER)
        assert values[codes.CERTAINTY][0] == pytest.approx(15.5 if expected.id == 7 else 91.23)
        answers = {e.name: e.value for e in group.get_qualitative_evaluations()}
        assert answers[codes.CATEGORY] == codes.CATEGORIES[expected.category]
        assert answers[codes.ZONE] == codes.ZONES[expected.zone]
        assert answers[codes.REGION] == codes.MARS_REGIONS[expected.region]
        site = group.finding_sites[0]
        assert site.value == codes.REGIONS.get(expected.region, codes.BRAIN)
        assert site.laterality == codes.SIDES.get(expected.side)


def test_results_belong_to_the_study_but_not_to_the_patient(written):
    images, _, out = written
    for name in FILES:
        content = (out / name).read_bytes()
        for private in PRIVATE:
            assert private.encode() not in content
        dataset = dcmread(out / name)
        assert dataset.StudyInstanceUID == STUDY_UID
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.PatientBirthDate == ""
        assert dataset.PatientID.startswith("CMB-")
    segmentation = dcmread(out / "segmentation.dcm")
    assert segmentation.FrameOfReferenceUID == images.reference.instance.frame_of_reference
    assert segmentation.ContentQualification == "RESEARCH"


def test_key_images_show_each_finding_the_best_first(written):
    images, _, out = written
    shown = [dcmread(path) for path in sorted((out / "key_images").iterdir())]
    assert [image.ImageComments.split(".")[0] for image in shown] == [
        f"Microbleed {number}"
        for number in (2, 11, 7)  # scores 0.91, 0.91, 0.31
    ]
    assert len({image.SeriesInstanceUID for image in shown}) == 1
    assert [image.InstanceNumber for image in shown] == [1, 2, 3]
    assert shown[0].SeriesNumber == 9002 + images.reference.instance.series_number
    assert shown[0].BurnedInAnnotation == "NO"
    pixels = shown[0].pixel_array
    assert pixels.shape == (300, 768)


def test_a_key_image_shows_the_voxels_around_its_finding(written):
    images, _, _ = written
    swi = images.swi
    center = np.array(swi.shape) // 2
    x, y, z = swi.affine[:3, :3] @ center + swi.affine[:3, 3]
    finding = Finding(row=dataclasses.replace(ROWS[0], x_mm=x, y_mm=y, z_mm=z), tracking_uid="1.2")
    low, high = float(swi.data.min()), float(swi.data.max())
    picture = key_picture(swi, finding, (low, high), trusted=True)
    # 256 pixels are 24 mm, the right of the patient is on the left, pixel centers are at halves
    right, back = (128 - 106.5) * 24 / 256, 0.5 * 24 / 256
    index = center + np.array([right, -back, 0.0]) / swi.spacing_mm
    value = ndimage.map_coordinates(swi.data.astype(float), index[:, None], order=1)[0]
    assert picture[128, 106] == pytest.approx(255 * (value - low) / (high - low), abs=2)


def test_identifiers_are_kept_if_wanted(tmp_path, phantom):
    write_series(tmp_path / "source", SIEMENS_SWI, phantom[0])
    results(tmp_path / "source", tmp_path / "out", keep_identifiers=True)
    for name in FILES:
        dataset = dcmread(tmp_path / "out" / name)
        assert dataset.PatientName == NAME
        assert (dataset.PatientID, dataset.PatientBirthDate) == (PATIENT_ID, BIRTH_DATE)
        assert (dataset.AccessionNumber, dataset.StudyID) == ("ACC99", "77")
        assert "PatientIdentityRemoved" not in dataset


def test_headers_that_results_cannot_refer_to_are_refused(tmp_path, phantom):
    for path in write_series(tmp_path, SIEMENS_SWI, phantom[0]):
        dataset = dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    stack = found_in(tmp_path)[0].stack
    with pytest.raises(
        UserError, match=r"series 7: .* \(without FrameOfReferenceUID\); leave out --dicom-out"
    ):
        prepare_results(stack, keep_identifiers=False)


def test_odd_identifiers_are_kept_without_a_word(tmp_path, phantom, recwarn):
    for path in write_series(tmp_path / "source", SIEMENS_SWI, phantom[0]):
        dataset = dcmread(path)
        dataset.PatientName = "Quisling"  # of one component: the library remarks on it
        dataset.save_as(path)
    results(tmp_path / "source", tmp_path / "out", keep_identifiers=True)
    assert dcmread(tmp_path / "out" / "report.dcm").PatientName == "Quisling"
    assert not [warning for warning in recwarn if "Quisling" in str(warning.message)]


def test_nothing_found_is_a_report_of_zero(tmp_path, phantom):
    write_series(tmp_path / "source", SIEMENS_SWI, phantom[0])
    results(tmp_path / "source", tmp_path / "out", rows=(ROWS[2],))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.dcm"]
    report = highdicom.sr.srread(tmp_path / "out" / "report.dcm")
    (group,) = report.content.get_image_measurement_groups()
    assert [m.value for m in group.get_measurements()] == [0, 0, 0, 0]
    assert report.content.get_volumetric_roi_measurement_groups() == []


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed"
)
def test_the_validator_finds_no_error(written):
    _, _, out = written
    for name in FILES:
        done = subprocess.run(["dciodvfy", str(out / name)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert any(
            line in ("Segmentation", "ComprehensiveSR", "SCImage") for line in lines
        )  # it knew what it read


def public_codes():
    constants = [value for value in vars(codes).values() if isinstance(value, Code)]
    tables = [codes.SIDES, codes.REGIONS]
    return constants + [code for table in tables for code in table.values()]


def test_public_codes_are_those_of_the_standard():
    known = {
        (scheme, value): meaning
        for scheme, names in _concepts_dict.concepts.items()
        for entries in names.values()
        for value, (meaning, groups) in entries.items()
        if groups
    }
    for code in public_codes():
        if code.scheme_designator != codes.SCHEME:
            assert (code.scheme_designator, code.value) in known


def test_own_codes_fit_and_differ():
    own = [code for table in (codes.ZONES, codes.COUNTS, codes.MARS_REGIONS) for code in table.values()] + [
        codes.CATEGORY,
        codes.ZONE,
        codes.REGION,
    ]
    assert all(code.scheme_designator == codes.SCHEME and len(code.value) <= 16 for code in own)
    assert len({code.value for code in own}) == len(own)
    regions = {region.name.lower() for region in Region if region is not Region.OUTSIDE}
    assert regions | {"none"} == set(codes.MARS_REGIONS)


def test_names_are_scrubbed_from_free_text(tmp_path, phantom):
    write_series(tmp_path, SIEMENS_SWI, phantom[0])
    names = found_in(tmp_path)[0].stack.instance.identifiers
    assert scrubbed("SWI QUISLING, pid-4711-x, quisling", names) == "SWI [removed], [removed], [removed]"
    assert scrubbed("SWI_Images", names) == scrubbed("SWI_Images", ()) == "SWI_Images"
