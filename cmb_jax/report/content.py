"""What a report on one subject is made from."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from cmb_jax.io.volume import Volume


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRow:
    """One candidate of the detector, kept or rejected; the fields are the columns of detections.csv."""

    id: int  # unique within the subject
    i: int  # native voxel indices, as in the input file
    j: int
    k: int
    x_mm: float  # centre in RAS mm
    y_mm: float
    z_mm: float
    diameter_mm: float
    volume_mm3: float
    score: float  # 0..1
    # of a true microbleed; None: weights not calibrated, or no place for one
    probability: float | None = None
    category: Literal["definite", "possible"]
    zone: Literal["lobar", "deep", "infratentorial", "none"]
    region: str  # lower-case name of a Region, e.g. basal_ganglia
    side: Literal["left", "right", "none"]
    status: Literal["kept", "rejected"]
    reason: str  # why it was rejected; empty when kept
    zone_border_mm: float = 0.0  # centre to the nearest tissue of another zone, at most 6; 0 without a zone
    # centre in MNI152NLin2009cAsym, see anatomy.mni; None: not known
    mni_x_mm: float | None = None
    mni_y_mm: float | None = None
    mni_z_mm: float | None = None

    @property
    def certainty(self) -> float:
        """The best that is known of how sure the detector is: the probability, else the score."""
        return self.score if self.probability is None else self.probability


DETECTION_COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(DetectionRow))
# Columns that results of earlier versions lack.
LATER_COLUMNS = frozenset({"probability", "zone_border_mm", "mni_x_mm", "mni_y_mm", "mni_z_mm"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that the page of one subject shows. Nothing is read from disk to render it."""

    subject: str
    rows: tuple[DetectionRow, ...]  # kept and rejected alike
    swi: Volume  # (X, Y, Z), axes R, A, S
    phase: Volume | None  # prepared phase in radians, paramagnetic positive, on swi's grid
    brain_mask: np.ndarray  # (X, Y, Z) bool on swi's grid
    region_code: np.ndarray | None  # (X, Y, Z) uint8 on swi's grid, 16 * side + region
    warnings: tuple[str, ...] = ()  # one line each
    settings: tuple[tuple[str, str], ...] = ()  # (name, value)
    inputs: tuple[tuple[str, str, str], ...] = ()  # (role, file name, sha256)
    weights_sha256: str = ""
    version: str = ""
    steps: tuple[str, ...] = ()  # processing steps in order
    timings: tuple[tuple[str, float], ...] = ()  # (name, seconds)
    partial_field_of_view: bool = False
    unlisted: int = 0  # rejected candidates beyond those in rows, which are the best
    regions_trusted: bool = True  # False: zones, regions and sides are not reported

    def __post_init__(self) -> None:
        grids = {"brain_mask": self.brain_mask, "region_code": self.region_code}
        if self.phase is not None:
            grids["phase"] = self.phase.data
        for name, array in grids.items():
            if array is not None and array.shape != self.swi.shape:
                raise ValueError(f"{name} has shape {array.shape}, but swi has {self.swi.shape}")
