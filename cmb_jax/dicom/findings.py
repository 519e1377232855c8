"""What the DICOM objects of one result share: the findings with names of their own, and who made them."""

from __future__ import annotations

import dataclasses

import highdicom
from pydicom.uid import generate_uid

import cmb_jax
from cmb_jax.core.detection import DetectionRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A kept detection that can be tracked from object to object."""

    row: DetectionRow
    tracking_uid: str

    @property
    def name(self) -> str:
        """Its identifier for people, by the id of detections.csv."""
        return f"Microbleed {self.row.id}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
    """The device that makes the objects."""

    series_number: int  # of the segmentation; the report takes the next
    serial_number: str  # start of the weights' sha256: the device is program and weights
    manufacturer: str = "cmb_jax maintainers"
    model: str = "cmb-jax"
    version: str = cmb_jax.__version__
    notice: str = "Research use only, not a diagnosis"

    @property
    def device_uid(self) -> str:
        """The same for the same version and weights."""
        return str(generate_uid(entropy_srcs=[self.model, self.version, self.serial_number]))


def findings_of(rows: tuple[DetectionRow, ...]) -> tuple[Finding, ...]:
    """The kept rows with new tracking UIDs."""
    return tuple(Finding(row=row, tracking_uid=str(highdicom.UID())) for row in rows if row.status == "kept")
