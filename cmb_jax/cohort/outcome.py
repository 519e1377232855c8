"""What becomes of a scan."""

from __future__ import annotations

import dataclasses
import enum


class Status(enum.Enum):
    """How a scan came out."""

    DONE = "done"
    SKIPPED = "skipped"  # done by an earlier run
    STALE = "made otherwise"  # done by an earlier run with other weights, settings or images
    FAILED = "failed"
    NOT_ANALYSABLE = "not analysable"  # its images can be read, but no count can be given on them
    NO_IMAGES = "no images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a scan."""

    name: str  # sub-01_ses-2_run-1
    status: Status
    reason: str = ""
