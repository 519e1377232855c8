"""What is compared: the detections and the true lesions of one subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from nibabel.affines import voxel_sizes

# Values of SubjectDetections.status.
KEPT = "kept"
CANDIDATE = "candidate"  # listed, but its score is below the operating point: it counts in the FROC curve
REJECTED = "rejected"  # removed by a rule (outside the brain, in a ventricle, ...): it counts nowhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledVolume:
    """Lesions as voxels. Row r of the record that holds it is the voxels with label r + 1."""

    labels: np.ndarray  # (X, Y, Z) int32, 0 is background
    affine: np.ndarray  # (4, 4) float64, voxel index (integer = voxel center) -> RAS mm
    values: np.ndarray | None = None  # (X, Y, Z) float32 as stored (probabilities, rater means); None = 0/1
    note: str = ""  # how unclear numbers were taken

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel edge lengths along the array's axes, (3,) float64, mm."""
        return voxel_sizes(self.affine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimicMap:
    """Where a phantom's mimics lie, so that false positives can be named."""

    codes: np.ndarray  # (X, Y, Z) uint8, 0 is none
    affine: np.ndarray  # (4, 4) float64, voxel index -> RAS mm
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of the codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectDetections:
    """What a reader or a program found in one scan. K detections."""

    subject: str
    centers_mm: np.ndarray  # (K, 3) float, RAS mm
    scores: np.ndarray  # (K,) float, higher is surer
    diameters_mm: np.ndarray  # (K,) float
    status: tuple[str, ...] | None = None  # (K,) KEPT, CANDIDATE or REJECTED; None: all kept
    zones: tuple[str, ...] | None = None  # (K,) lower-case names of anatomy.regions.Zone
    regions: tuple[str, ...] | None = None  # (K,) lower-case names of anatomy.regions.Region
    probabilities: np.ndarray | None = None  # (K,) of a true lesion, NaN where not known; None: of none
    reasons: tuple[str, ...] | None = None  # (K,) why a rule removed it; empty for the others
    volume: LabeledVolume | None = None  # when they were read from voxels
    missing: bool = False  # no prediction was found for this scan: it counts as empty

    def __post_init__(self) -> None:
        names = (
            "centers_mm",
            "scores",
            "diameters_mm",
            "status",
            "zones",
            "regions",
            "probabilities",
            "reasons",
        )
        _check_lengths(self, names)

    def select(self, mask: np.ndarray) -> SubjectDetections:
        """The detections with mask (K,) true, in the same order; labels are renumbered."""
        mask = np.asarray(mask, bool)
        rows = np.flatnonzero(mask)
        volume = self.volume
        if volume is not None and not mask.all():
            new_label = np.zeros(len(mask) + 1, np.int32)
            new_label[rows + 1] = np.arange(1, len(rows) + 1)
            volume = dataclasses.replace(volume, labels=new_label[volume.labels])
        return dataclasses.replace(
            self,
            centers_mm=self.centers_mm[rows],
            scores=self.scores[rows],
            diameters_mm=self.diameters_mm[rows],
            status=_take(self.status, rows),
            zones=_take(self.zones, rows),
            regions=_take(self.regions, rows),
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            reasons=_take(self.reasons, rows),
            volume=volume,
        )

    def candidates(self) -> SubjectDetections:
        """Those that no rule removed: what a FROC curve is drawn of."""
        if self.status is None:
            return self
        return self.select(np.array([status != REJECTED for status in self.status], bool))

    def at(self, threshold: float | None) -> SubjectDetections:
        """What is reported at an operating point: score >= threshold; None: what the program itself kept."""
        if threshold is not None:
            candidates = self.candidates()
            return candidates.select(candidates.scores >= threshold)
        if self.status is None:
            return self
        return self.select(np.array([status == KEPT for status in self.status], bool))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectTruth:
    """The true microbleeds of one scan. M lesions; a scan without any is a record with M = 0."""

    subject: str
    centers_mm: np.ndarray  # (M, 3) float, RAS mm
    diameters_mm: np.ndarray  # (M,) float; simulated lesions: the hemosiderin's own diameter
    apparent_diameters_mm: np.ndarray | None = None  # (M,) float, as seen in the image (blooming)
    regions: tuple[str, ...] | None = None  # (M,) lower-case names of anatomy.regions.Region
    zones: tuple[str, ...] | None = None  # (M,) lower-case names of anatomy.regions.Zone
    cnr: np.ndarray | None = None  # (M,) float, contrast-to-noise ratio
    protocol: str | None = None
    tier: str | None = None
    has_phase: bool | None = None  # whether the scan has a phase; None: not known
    volume: LabeledVolume | None = None  # when there are voxels: the touch, box and VALDO rules use them
    mimics: MimicMap | None = None
    # Lesions that nobody must find and whose finding is no mistake: no reader would see them for sure.
    ignored_centers_mm: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # (I, 3)
    ignored_diameters_mm: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))  # (I,) as seen

    def __post_init__(self) -> None:
        _check_lengths(
            self, ("centers_mm", "diameters_mm", "apparent_diameters_mm", "regions", "zones", "cnr")
        )
        ignored = (*self.ignored_centers_mm.shape, *self.ignored_diameters_mm.shape)
        if ignored != (len(self.ignored_diameters_mm), 3, len(self.ignored_diameters_mm)):
            raise ValueError(f"{self.subject}: ignored lesions need centers (n, 3) and n diameters")

    @property
    def seen_diameters_mm(self) -> np.ndarray:
        """(M,) diameters as a reader sees them: the apparent ones where they are known."""
        return self.diameters_mm if self.apparent_diameters_mm is None else self.apparent_diameters_mm


def _take(names: tuple[str, ...] | None, rows: np.ndarray) -> tuple[str, ...] | None:
    return None if names is None else tuple(names[row] for row in rows)


def _check_lengths(record: SubjectDetections | SubjectTruth, fields: tuple[str, ...]) -> None:
    centers = record.centers_mm
    if centers.ndim != 2 or centers.shape[1] != 3:
        raise ValueError(f"{record.subject}: centers_mm must have shape (n, 3), not {centers.shape}")
    for field in fields:
        value = getattr(record, field)
        if value is not None and len(value) != len(centers):
            raise ValueError(f"{record.subject}: {len(value)} {field} for {len(centers)} centers")
