"""What the page of a cohort is made from."""

from __future__ import annotations

import dataclasses

from cmb_jax.report.shapes import Picture
from cmb_jax.report.summary import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A page that belongs to a scan; `href` is relative to the cohort's page."""

    text: str
    href: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortLine:
    """One scan, or a participant without any."""

    name: str  # sub-01_ses-2_run-1
    details: str = ""  # e.g. "acq-hi, 3 T"
    status: str  # done, failed, not analysable, ...
    reason: str = ""
    counted: Count | None = None  # None: nothing was counted, which is not zero
    zones: tuple[tuple[str, Count], ...] = ()  # lobar, deep, infratentorial, none
    rejected: int | None = None
    brain_ml: float | None = None
    warnings: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortContent:
    """Everything that the page shows. Nothing is read from disk to render it."""

    title: str
    lines: tuple[CohortLine, ...]
    notes: tuple[str, ...] = ()  # why counts should not be compared as they stand
    version: str
