"""What becomes of a scan, and why scans failed: a file for each of those, and one table of them all."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from cmb_jax.cohort.dataset import logs_folder, read_json, write_json
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.tables import table_text


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
    """How one scan came out, and why."""

    name: str  # sub-01_ses-2_run-1
    status: Status
    reason: str = ""


def failure_log(out: Path, name: str) -> Path:
    """The file with the reason why a scan failed, or a participant whose folder cannot be read."""
    return logs_folder(out) / f"{name}.json"


def write_failure(out: Path, name: str, reason: str, status: Status = Status.FAILED) -> None:
    """Write the reason of a failure."""
    write_json(failure_log(out, name), {"Scan": name, "Status": status.value, "Reason": reason})


def read_status(log: Path) -> Status:
    """Whether a scan failed or is not analysable; logs of earlier versions know only failures."""
    try:
        return Status(read_json(log).get("Status", Status.FAILED.value))
    except (UserError, ValueError):
        return Status.FAILED


def read_reason(log: Path) -> str:
    """The reason that a log holds."""
    try:
        return str(read_json(log)["Reason"])
    except (UserError, KeyError):
        return f"{log.name} is damaged; run the participant again"


def write_failure_table(out: Path) -> Path | None:
    """Write logs/failed.tsv from the logs of all processes; None, and no table, if nothing failed.

    The table is written again until the logs stay as they were read: another process may fail meanwhile.
    """
    path = logs_folder(out) / "failed.tsv"
    written = None
    while (failures := _failures(out)) != written:
        if failures:
            text = table_text(("scan", "reason"), failures, delimiter="\t")
            atomic_write_text(path, text, overwrite=True)
        else:
            path.unlink(missing_ok=True)
        written = failures
    return path if written else None


def _failures(out: Path) -> list[tuple[str, str]]:
    logs = sorted(logs_folder(out).glob("sub-*.json"))
    return [(log.stem, " ".join(read_reason(log).split())) for log in logs]
