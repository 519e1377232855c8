"""What a report on one subject is made from."""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume


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
    viewer: str = ""  # name of the viewer's page beside the report, if there is one
    regions_trusted: bool = True  # False: zones, regions and sides are not reported

    def __post_init__(self) -> None:
        grids = {"brain_mask": self.brain_mask, "region_code": self.region_code}
        if self.phase is not None:
            grids["phase"] = self.phase.data
        for name, array in grids.items():
            if array is not None and array.shape != self.swi.shape:
                raise ValueError(f"{name} has shape {array.shape}, but swi has {self.swi.shape}")
