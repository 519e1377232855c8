"""DICOM objects of a result: segmentation, structured report and key images."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import highdicom
import numpy as np
from highdicom import seg, sr
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import generate_uid

import cmb_jax
from cmb_jax.core.detection import DetectionRow
from cmb_jax.dicom import codes, identity
from cmb_jax.io.volume import Volume
from cmb_jax.report.drawing import PLANES, choose_windows
from cmb_jax.report.lesion_sheet import FIELD_OF_VIEW_MM, marked_plane
from cmb_jax.report.summary import location_text

MOST_KEY_IMAGES = 50
"""Findings that get a picture, by descending score; all are in the segmentation and the report."""

_NOTICE = "Research use only, not a diagnosis"
_MANUFACTURER, _MODEL, _VERSION = "cmb_jax maintainers", "cmb-jax", cmb_jax.__version__
_PLANE_PX = 256
_CAPTION_PX = 44


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A kept detection, with its UID in all DICOM objects."""

    row: DetectionRow
    tracking_uid: str

    @property
    def name(self) -> str:
        """Its human-readable identifier, by the id of detections.csv."""
        return f"Microbleed {self.row.id}"


def findings_of(rows: tuple[DetectionRow, ...]) -> tuple[Finding, ...]:
    """The kept rows with new tracking UIDs."""
    kept = [row for row in rows if row.status == "kept"]
    return tuple(Finding(row=row, tracking_uid=str(highdicom.UID())) for row in kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Shared by all objects of one result: the referenced images, and the device."""

    headers: Sequence[Dataset]  # of the source objects: one per frame, or the one multi-frame object
    series_number: int  # of the segmentation; report and key images take the next two
    keep_identifiers: bool  # whether `headers` still name the patient
    serial_number: str = ""  # start of the weights' sha256: the device is program plus weights

    @property
    def multi_frame(self) -> bool:
        """Whether one object holds all frames."""
        return "PerFrameFunctionalGroupsSequence" in self.headers[0]

    def attributes(self, offset: int, description: str) -> dict[str, Any]:
        """Keyword arguments for the series, the object and its manufacturer."""
        return {
            "series_number": self.series_number + offset,
            "sop_instance_uid": highdicom.UID(),
            "manufacturer": _MANUFACTURER,
            "manufacturer_model_name": _MODEL,
            "software_versions": _VERSION,
            "series_description": f"{_MODEL} microbleed{description}",
        }


def make_segmentation(
    source: Source, frame_numbers: Sequence[int], labels: np.ndarray, findings: Sequence[Finding]
) -> seg.Segmentation:
    """A binary segmentation (PS3.3 A.51), one segment per finding, on the frames of the source series.

    Args:
        source: of the result.
        frame_numbers: for a multi-frame source, the frame (from 0) of each plane of `labels`.
        labels: (frames, rows, columns) with the findings' ids.
        findings: at least one.
    """
    # segments are numbered from 1 without gaps, ids of findings are not
    planes = np.zeros(labels.shape, np.uint8 if len(findings) < 256 else np.uint16)
    for number, finding in enumerate(findings, 1):
        planes[labels == finding.row.id] = number
    algorithm = AlgorithmIdentificationSequence(
        name=_MODEL,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=_VERSION,
        source=_MANUFACTURER,
    )
    segments = [
        seg.SegmentDescription(
            segment_number=number,
            segment_label=finding.name,
            segmented_property_category=codes.ABNORMAL_STRUCTURE,
            segmented_property_type=codes.HEMORRHAGE,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=finding.tracking_uid,
            tracking_id=finding.name,
            anatomic_regions=[codes.REGIONS.get(finding.row.region, codes.BRAIN)],
        )
        for number, finding in enumerate(findings, 1)
    ]
    images = [_frames_of(source.headers[0], frame_numbers)] if source.multi_frame else source.headers
    result = seg.Segmentation(
        source_images=images,
        pixel_array=planes,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        instance_number=1,
        device_serial_number=source.serial_number,
        content_label="MICROBLEEDS",
        content_description=_NOTICE,
        content_qualification="RESEARCH",
        **source.attributes(0, "s"),
    )
    if source.multi_frame:
        _refer_to(result, frame_numbers)
    identity.mark(result, source.keep_identifiers)
    return result


def _frames_of(header: Dataset, numbers: Sequence[int]) -> Dataset:
    """The header of a multi-frame object reduced to these frames.

    highdicom expects one volume per object, but an object with magnitude and phase has every position twice.
    """
    part = copy.copy(header)
    groups = header.PerFrameFunctionalGroupsSequence
    part.PerFrameFunctionalGroupsSequence = [groups[number] for number in numbers]
    part.NumberOfFrames = len(numbers)
    return part


def _refer_to(segmentation: seg.Segmentation, numbers: Sequence[int]) -> None:
    """Turn references to frames of `_frames_of` into references to the object's own frames, from 1."""
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1] + 1


def make_report(
    source: Source, segmentation: seg.Segmentation | None, findings: Sequence[Finding]
) -> sr.ComprehensiveSR:
    """A structured report (TID 1500, PS3.16): counts for the brain, then each finding with its segment.

    Args:
        source: of the result.
        segmentation: of the findings, in their order; None if there are none.
        findings: may be empty: the report then says that none was kept.
    """
    # the same version and weights always give the same UID
    device_uid = str(generate_uid(entropy_srcs=[_MODEL, _VERSION, source.serial_number]))
    observer = sr.ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid,
            name=_MODEL,
            manufacturer_name=_MANUFACTURER,
            model_name=_VERSION,
        ),
    )
    algorithm = sr.AlgorithmIdentification(name=_MODEL, version=_VERSION, parameters=[_NOTICE])
    groups: list = [_counts(findings, algorithm)]
    if segmentation is not None:
        groups += [
            _measurements(finding, number, segmentation, source, algorithm)
            for number, finding in enumerate(findings, 1)
        ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.MRI,
        imaging_measurements=groups,
        # highdicom's image library supports only single-frame images; the evidence lists all
        referenced_images=None if source.multi_frame else source.headers,
    )
    result = sr.ComprehensiveSR(
        evidence=[*source.headers, *([] if segmentation is None else [segmentation])],
        content=content[0],
        series_instance_uid=highdicom.UID(),
        instance_number=1,
        device_serial_number=source.serial_number,
        coding_schemes=[codes.scheme_identification()],
        is_complete=True,
        **source.attributes(1, " report"),
    )
    identity.mark(result, source.keep_identifiers)
    return result


def _counts(
    findings: Sequence[Finding], algorithm: sr.AlgorithmIdentification
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Numbers of microbleeds in the brain, overall and by zone (TID 1501)."""
    zones = Counter[str](finding.row.zone for finding in findings)
    numbers = {name: zones.total() if name == "all" else zones[name] for name in codes.COUNTS}
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier="Microbleed counts"),
        algorithm_id=algorithm,
        finding_type=codes.HEMORRHAGE,
        finding_sites=[sr.FindingSite(anatomic_location=codes.BRAIN)],
        measurements=[
            sr.Measurement(name=codes.COUNTS[name], value=number, unit=codes.NO_UNITS)
            for name, number in numbers.items()
        ],
    )


def _measurements(
    finding: Finding,
    segment: int,
    segmentation: seg.Segmentation,
    source: Source,
    algorithm: sr.AlgorithmIdentification,
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """One microbleed (TID 1411): segment, location, size, score and rating."""
    row = finding.row
    site = sr.FindingSite(
        anatomic_location=codes.REGIONS.get(row.region, codes.BRAIN), laterality=codes.SIDES.get(row.side)
    )
    measured = (
        (codes.DIAMETER, row.diameter_mm, codes.MILLIMETER),
        (codes.VOLUME, row.volume_mm3, codes.CUBIC_MILLIMETER),
        (codes.CERTAINTY, round(100 * row.certainty, 2), codes.PERCENT),
    )
    evaluated = (
        (codes.CATEGORY, codes.CATEGORIES[row.category]),
        (codes.ZONE, codes.ZONES[row.zone]),
        (codes.REGION, codes.MARS_REGIONS[row.region]),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=finding.tracking_uid, identifier=finding.name),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=segment,
            source_series=sr.SourceSeriesForSegmentation(str(source.headers[0].SeriesInstanceUID)),
        ),
        finding_category=codes.ABNORMAL_STRUCTURE,
        finding_type=codes.HEMORRHAGE,
        finding_sites=[site],
        algorithm_id=algorithm,
        measurements=[sr.Measurement(name=name, value=value, unit=unit) for name, value, unit in measured],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=name, value=value) for name, value in evaluated
        ],
    )


def make_key_images(
    source: Source, swi: Volume, brain_mask: np.ndarray, findings: Sequence[Finding], *, trusted: bool
) -> Iterator[SCImage]:
    """Three planes of each finding as Secondary Capture, for any viewer, all of one series.

    Args:
        source: of the result.
        swi: (X, Y, Z) image that was searched.
        brain_mask: (X, Y, Z) bool on its grid.
        findings: the highest scores first; at most `MOST_KEY_IMAGES` are drawn.
        trusted: whether the region map is trusted; otherwise regions are not named.
    """
    window = choose_windows(swi.data, None, brain_mask).swi
    series_uid = highdicom.UID()
    for number, finding in enumerate(findings[:MOST_KEY_IMAGES], start=1):
        image = SCImage.from_ref_dataset(
            source.headers[0],
            key_picture(swi, finding, window, trusted),
            photometric_interpretation="MONOCHROME2",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series_uid,
            instance_number=number,
            **source.attributes(2, " key images"),
        )
        image.add_new("PatientOrientation", "CS", "")  # a picture of three planes has none
        image.BodyPartExamined = "BRAIN"
        image.BurnedInAnnotation = "NO"  # nothing that identifies the patient
        image.ImageComments = f"{finding.name}. {_NOTICE}"
        identity.mark(image, source.keep_identifiers)
        yield image


def key_picture(swi: Volume, finding: Finding, window: tuple[float, float], trusted: bool) -> np.ndarray:
    """Axial, coronal and sagittal plane with a caption, (rows, columns) uint8."""
    row = finding.row
    center = (np.linalg.inv(swi.affine) @ (row.x_mm, row.y_mm, row.z_mm, 1.0))[:3]
    planes = [marked_plane(swi, plane, center, *window, px=_PLANE_PX) for plane in PLANES]
    caption = Image.new("L", (len(planes) * _PLANE_PX, _CAPTION_PX))
    draw, font = ImageDraw.Draw(caption), ImageFont.load_default(size=14)
    place = f"{row.category}, {location_text(row, trusted)}, score {row.score:.2f}, {row.diameter_mm:.1f} mm"
    draw.text((8, 4), f"{finding.name}: {place}", fill=255, font=font)
    shown = f"Axial, coronal, sagittal; {FIELD_OF_VIEW_MM:g} mm wide, the patient's right on the left."
    draw.text((8, 23), f"{shown} {_NOTICE}.", fill=190, font=font)
    return np.concatenate([np.concatenate(planes, axis=1), np.asarray(caption)])
