"""Columns of the group table, and its lines from the results of single scans."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cmb_jax.cohort.dataset import ResultFiles
from cmb_jax.cohort.result import read_provenance
from cmb_jax.datasets.bids.choice import ChoiceKind
from cmb_jax.datasets.bids.layout import BidsName, Scan
from cmb_jax.datasets.tables import read_csv

DONE, FAILED, NOT_RUN, NO_IMAGES, NO_FOLDER = "done", "failed", "not run", "no images", "no folder"
NOT_ANALYSABLE = "not analysable"
MISSING = "n/a"

CATEGORIES = ("definite", "possible")
ZONE_COLUMNS = {"lobar": "lobar", "deep": "deep", "infratentorial": "infratentorial", "none": "no_zone"}
"""Zones of detections and their columns."""

COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant, as in the source data set."},
    "session_id": {"Description": "Session."},
    "run": {"Description": "Run."},
    "chunk": {"Description": "Chunk: the part of the brain that was scanned by itself."},
    "acquisition": {"Description": "Label of acq- of the image taken."},
    "status": {
        "Description": "How the scan came out.",
        "Levels": {
            DONE: "a result is there",
            FAILED: "it was tried and failed; see reason",
            NOT_ANALYSABLE: "its images can be read, but no count can be given on them; see reason",
            NOT_RUN: "it has images, but no result yet",
            NO_IMAGES: "the participant has no susceptibility images",
            NO_FOLDER: "participants.tsv has the participant, but there is no folder",
        },
    },
    "reason": {"Description": "Why it failed or is not analysable."},
    "images": {
        "Description": "What the result was made from. Counts of different kinds must not be compared.",
        "Levels": {kind.name.lower(): kind.value for kind in ChoiceKind},
    },
    "field_strength_t": {"Description": "MagneticFieldStrength of the sidecar.", "Units": "T"},
    "cmb": {"Description": "Microbleeds kept."},
    **{category: {"Description": f"Of cmb: {category}."} for category in CATEGORIES},
    **{column: {"Description": f"Of cmb: {zone} zone."} for zone, column in ZONE_COLUMNS.items()},
    **{
        f"{column}_{category}": {"Description": f"Of cmb: {zone} zone, {category}."}
        for zone, column in ZONE_COLUMNS.items()
        for category in CATEGORIES
    },
    "rejected": {
        "Description": "Candidates listed that were not kept: under the threshold, at most the 40 best."
    },
    "brain_ml": {"Description": "Volume of the brain mask.", "Units": "ml"},
    "warnings": {"Description": "Number of warnings; they stand in the sidecar of the scan's table."},
    "weights": {"Description": "SHA-256 of the detector's weights, first 12 digits."},
    "threshold": {"Description": "Score from which a candidate was kept."},
    "version": {"Description": "Version of cmb-jax that made the result."},
}


def participant_row(label: str, status: str, reason: str = "") -> dict[str, str]:
    """The line of a participant without scans."""
    return _row({"participant_id": f"sub-{label}", "status": status, "reason": reason})


def scan_row(scan: Scan, status: str, reason: str = "") -> dict[str, str]:
    """The line of a scan without result."""
    return _row({**_named(dict(scan.entities)), "status": status, "reason": reason})


def damaged_row(name: BidsName, reason: str) -> dict[str, str]:
    """The line of a result that cannot be read any more."""
    return _row({**_named(dict(name.entities)), "status": FAILED, "reason": reason})


def result_row(name: BidsName, files: ResultFiles) -> dict[str, str]:
    """The line of a finished result.

    Raises:
        UserError: its files are damaged.
    """
    detections = read_csv(files.table, ("status", "category", "zone"), delimiter="\t")
    kept = [row for row in detections if row["status"] == "kept"]
    zones, categories = Counter(row["zone"] for row in kept), Counter(row["category"] for row in kept)
    both = Counter((row["zone"], row["category"]) for row in kept)
    made = read_provenance(files.table_sidecar)
    return _row(
        {
            **_named(dict(name.entities)),
            "status": DONE,
            "cmb": len(kept),
            **{category: categories[category] for category in CATEGORIES},
            **{column: zones[zone] for zone, column in ZONE_COLUMNS.items()},
            **{
                f"{column}_{category}": both[zone, category]
                for zone, column in ZONE_COLUMNS.items()
                for category in CATEGORIES
            },
            "rejected": len(detections) - len(kept),
            "images": made.kind,
            "field_strength_t": made.field_strength_t,
            "brain_ml": made.brain_ml,
            "warnings": len(made.warnings),
            "weights": made.weights_sha256[:12],
            "threshold": made.threshold,
            "version": made.version,
        }
    )


def scan_name(row: dict[str, str]) -> str:
    """The scan of a line, for people."""
    run = "" if row["run"] == MISSING else f"_run-{row['run']}"
    session = "" if row["session_id"] == MISSING else f"_{row['session_id']}"
    return f"{row['participant_id']}{session}{run}"


def _named(entities: dict[str, str]) -> dict[str, str]:
    named = {"participant_id": f"sub-{entities['sub']}"}
    if "ses" in entities:
        named["session_id"] = f"ses-{entities['ses']}"
    return named | {
        column: entities[key]
        for column, key in (("run", "run"), ("chunk", "chunk"), ("acquisition", "acq"))
        if key in entities
    }


def _row(values: dict[str, Any]) -> dict[str, str]:
    """A line with a cell for every column; one without value is n/a."""
    cells = {name: values.get(name) for name in COLUMNS}
    return {name: MISSING if value in (None, "") else _cell(value) for name, value in cells.items()}


def _cell(value: object) -> str:
    return " ".join(str(value).split())  # no tab or line end may come into a table
