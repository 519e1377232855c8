"""Why scans failed or are not analysable: a file a scan, and one table of them all."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.cohort.dataset import logs_folder, read_json, write_json
from cmb_jax.cohort.outcome import Status
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.tables import table_text

TABLE = "failed.tsv"


def failure_log(out: Path, name: str) -> Path:
    """Where it stands why a scan, or a participant whose folder cannot be read, failed."""
    return logs_folder(out) / f"{name}.json"


def write_failure(out: Path, name: str, reason: str, status: Status = Status.FAILED) -> None:
    """Leave the reason of a failure."""
    write_json(failure_log(out, name), {"Scan": name, "Status": status.value, "Reason": reason})


def read_status(log: Path) -> Status:
    """Whether a scan failed or is not analysable; logs of earlier versions know the former alone."""
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
    path = logs_folder(out) / TABLE
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
