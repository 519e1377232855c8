"""What a reader finds: cases with images by role and their truth, and what is wrong with the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

Kind = Literal["valdo", "csiro", "dou", "yonsei", "bids", "folder"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Role = Literal["swi", "t2s", "magnitude", "phase", "t1", "t2"]
ROLES: tuple[Role, ...] = get_args(Role)
"""In this order the first image of a case is its reference: voxel coordinates are on its grid."""

Convention = Literal["voxel-1", "slice-column-row-1", "ras-mm"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

Level = Literal["skipped", "left out", "note"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointTruth:
    """Centers of the lesions; none of them means a scan that was read and has no microbleed.

    Conventions: `voxel-1` is (i, j, k) of the file's own array, the first voxel being 1; `slice-column-row-1`
    is (k, i, j) of it, from 1; `ras-mm` is the world of the file's header.
    """

    convention: Convention
    points: tuple[tuple[float, float, float], ...]
    diameters_mm: tuple[float, ...] | None = None  # one a point, where the source has measured them
    source: str = ""  # the table's path relative to the root, empty if a folder's name says "none"
    mimics: tuple[tuple[float, float, float], ...] = ()  # what a reader took for no microbleed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskTruth:
    """Lesions as voxels on the reference's grid."""

    path: str  # relative to the root
    threshold: float = 0.5  # a voxel counts from this value on
    soft: bool = False  # a mean of raters or a probability: values above 1 are then an error, not labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One scan. Paths are relative to the root, with forward slashes."""

    case_id: str
    patient_id: str  # scans of one patient stay on one side of a split
    cohort: str
    images: Mapping[Role, str]
    truth: MaskTruth | PointTruth | None  # None: nobody has looked
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Role:
        """The role of the image that lesions are given on."""
        return next(role for role in ROLES if role in self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be."""

    where: str  # case, or path relative to the root
    what: str  # one line: what is wrong and what to do
    level: Level = "skipped"  # the case was skipped, a part of it was left out, or it is only to be known


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """What one data set holds, cases in order of their IDs."""

    kind: Kind
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def patients(self) -> tuple[str, ...]:
        """The different patients, in order."""
        return tuple(sorted({case.patient_id for case in self.cases}))
