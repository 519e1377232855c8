"""Key images: three planes of each finding as DICOM Secondary Capture, for any viewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import UID
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from cmb_jax.dicom import identity
from cmb_jax.dicom.findings import Finding, Maker
from cmb_jax.io.volume import Volume
from cmb_jax.report.lesion_sheet import FIELD_OF_VIEW_MM, marked_plane
from cmb_jax.report.slices import PLANES, choose_windows
from cmb_jax.report.summary import location_text

MOST = 50
"""Findings with a picture, the highest scores first; all are in the segmentation and the report."""
_PLANE_PX = 256
_CAPTION_PX = 44


def make_key_images(
    sources: Sequence[Dataset],
    swi: Volume,
    brain_mask: np.ndarray,
    findings: Sequence[Finding],
    maker: Maker,
    *,
    trusted: bool,
    keep_identifiers: bool,
) -> Iterator[SCImage]:
    """One image of each finding, all of one series.

    Args:
        sources: headers of the source objects.
        swi: (X, Y, Z) image that was searched.
        brain_mask: (X, Y, Z) bool on its grid.
        findings: best scores first, at most `MOST` are drawn.
        maker: who made them.
        trusted: whether places are told.
        keep_identifiers: whether `sources` still name the patient.
    """
    window = choose_windows(swi.data, None, brain_mask).swi
    series = UID()
    for number, finding in enumerate(findings[:MOST], start=1):
        image = SCImage.from_ref_dataset(
            sources[0],
            key_picture(swi, finding, window, trusted),
            photometric_interpretation="MONOCHROME2",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series,
            series_number=maker.series_number + 2,
            sop_instance_uid=UID(),
            instance_number=number,
            manufacturer=maker.manufacturer,
            manufacturer_model_name=maker.model,
            software_versions=maker.version,
            series_description=f"{maker.model} microbleed key images",
        )
        image.add_new("PatientOrientation", "CS", "")  # three planes in one picture have none
        image.BodyPartExamined = "BRAIN"
        image.BurnedInAnnotation = "NO"  # none that names the patient
        image.ImageComments = f"{finding.name}. {maker.notice}"
        identity.mark(image, keep_identifiers)
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
    draw.text((8, 23), f"{shown} Research use only, not a diagnosis.", fill=190, font=font)
    return np.concatenate([np.concatenate(planes, axis=1), np.asarray(caption)])
