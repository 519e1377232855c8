"""Findings as a DICOM Segmentation: one segment a microbleed, on the frames of the source series."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from highdicom import UID
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset

from cmb_jax.dicom import codes, identity
from cmb_jax.dicom.findings import Finding, Maker


def make_segmentation(
    sources: Sequence[Dataset],
    frame_numbers: Sequence[int],
    labels: np.ndarray,
    findings: Sequence[Finding],
    maker: Maker,
    *,
    keep_identifiers: bool,
) -> Segmentation:
    """A binary segmentation (PS3.3 A.51) of all findings.

    Args:
        sources: headers of the source objects: one a frame, or the one multi-frame object.
        frame_numbers: for a multi-frame source the number (from 0) of each plane of `labels` in it.
        labels: (frames, rows, columns) with the findings' ids.
        findings: at least one.
        maker: who made it.
        keep_identifiers: whether `sources` still name the patient.
    """
    planes = np.zeros(labels.shape, np.uint8 if len(findings) < 256 else np.uint16)
    for number, finding in enumerate(findings, 1):
        planes[labels == finding.row.id] = number
    algorithm = AlgorithmIdentificationSequence(
        name=maker.model,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=maker.version,
        source=maker.manufacturer,
    )
    segments = [
        SegmentDescription(
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
    multi_frame = "PerFrameFunctionalGroupsSequence" in sources[0]
    result = Segmentation(
        source_images=[_frames_of(sources[0], frame_numbers)] if multi_frame else sources,
        pixel_array=planes,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=UID(),
        series_number=maker.series_number,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer=maker.manufacturer,
        manufacturer_model_name=maker.model,
        software_versions=maker.version,
        device_serial_number=maker.serial_number,
        content_label="MICROBLEEDS",
        content_description=maker.notice,
        content_qualification="RESEARCH",
        series_description=f"{maker.model} microbleeds",
    )
    if multi_frame:
        _refer_to(result, frame_numbers)
    identity.mark(result, keep_identifiers)
    return result


def _frames_of(source: Dataset, numbers: Sequence[int]) -> Dataset:
    """The header of a multi-frame object as if it held only these frames.

    Positions repeat where an object holds magnitude and phase, and highdicom takes an object as one volume.
    """
    part = copy.copy(source)
    groups = source.PerFrameFunctionalGroupsSequence
    part.PerFrameFunctionalGroupsSequence = [groups[number] for number in numbers]
    part.NumberOfFrames = len(numbers)
    return part


def _refer_to(segmentation: Segmentation, numbers: Sequence[int]) -> None:
    """Turns references to frames of `_frames_of` into references to the object's own frames."""
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1] + 1
