"""What a report on two time points is made from."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume

Status = Literal["stable", "new", "resolved", "uncertain"]
STATUSES: tuple[Status, ...] = ("new", "resolved", "stable", "uncertain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One lesion at two time points."""

    id: int
    status: Status
    reason: str  # of an uncertain one; empty otherwise
    baseline: DetectionRow | None  # None: the baseline's result has nothing there
    followup: DetectionRow | None
    baseline_mm: np.ndarray  # (3,) in the baseline's RAS mm; brought there from the follow-up where it is new
    followup_mm: np.ndarray  # (3,) in the follow-up's RAS mm, likewise
    distance_mm: float | None  # between the two after registration; None where one is missing

    @property
    def row(self) -> DetectionRow:
        """The candidate that speaks for the lesion: a kept one, of the follow-up if both are."""
        pair = [row for row in (self.followup, self.baseline) if row is not None]
        return next((row for row in pair if row.status == "kept"), pair[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanContent:
    """One time point."""

    name: str  # "baseline" or "follow-up"
    subject: str  # pseudonym
    image: Volume
    brain: np.ndarray  # (X, Y, Z) bool on the image's grid
    inputs: tuple[tuple[str, str, str], ...]  # (role, file name, sha256) of its prediction
    version: str
    weights_sha256: str
    kept: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonContent:
    """Everything that the page shows. Nothing is read from disk to render it."""

    baseline: ScanContent
    followup: ScanContent
    changes: tuple[Change, ...]
    matrix: np.ndarray  # (4, 4) baseline RAS mm -> follow-up RAS mm
    trusted: bool  # of the registration
    quality: tuple[tuple[str, str], ...]  # (name, value) of the registration
    statement: tuple[str, ...]  # plain sentences
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    version: str

    def count(self, status: Status) -> int:
        """Lesions of a status."""
        return sum(change.status == status for change in self.changes)
