"""The files of a comparison, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import cmb_jax
from cmb_jax.core.detection import DetectionRow
from cmb_jax.followup.compare import Comparison
from cmb_jax.followup.time_point import TimePoint
from cmb_jax.inference.outputs import NOTICE
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.io.tables import table_text
from cmb_jax.report.comparison_content import STATUSES, Change
from cmb_jax.report.comparison_html import write_comparison_report

_AXES = ("x_mm", "y_mm", "z_mm")
COLUMNS: tuple[str, ...] = (
    "id",
    "status",
    "reason",
    "baseline_id",
    "followup_id",
    *(f"{scan}_{axis}" for scan in ("baseline", "followup") for axis in _AXES),
    "mapped_from",
    *(f"mapped_{axis}" for axis in _AXES),
    "distance_mm",
    "baseline_score",
    "followup_score",
    "baseline_diameter_mm",
    "followup_diameter_mm",
    "category",
    "zone",
    "region",
    "side",
)
"""`baseline_*_mm` and `followup_*_mm`: RAS mm of that scan, as detected; empty where it has no candidate.
`mapped_*_mm`: the place in the other scan's RAS mm, brought there from the scan that `mapped_from` names."""


def change_line(change: Change, matrix: np.ndarray, back: np.ndarray) -> dict[str, Any]:
    """One line of comparison.csv; None where there is nothing to say.

    Args:
        change: the lesion.
        matrix: (4, 4) baseline RAS mm -> follow-up RAS mm.
        back: its inverse.
    """
    from_baseline = change.baseline is not None
    own = change.baseline_mm if from_baseline else change.followup_mm
    to_other = matrix if from_baseline else back
    mapped = to_other[:3, :3] @ own + to_other[:3, 3]
    line: dict[str, Any] = {
        "id": change.id,
        "status": change.status,
        "reason": change.reason,
        "mapped_from": "baseline" if from_baseline else "followup",
        "distance_mm": change.distance_mm,
        "category": change.row.category,
        "zone": change.row.zone,
        "region": change.row.region,
        "side": change.row.side,
    }
    line |= {f"mapped_{axis}": round(float(v), 2) for axis, v in zip(_AXES, mapped, strict=True)}
    for scan, row in (("baseline", change.baseline), ("followup", change.followup)):
        line |= {f"{scan}_{name}": value for name, value in _of(row).items()}
    return {name: line[name] for name in COLUMNS}


def _of(row: DetectionRow | None) -> dict[str, Any]:
    names = ("id", *_AXES, "score", "diameter_mm")
    return {name: None if row is None else getattr(row, name) for name in names}


def comparison_csv(lines: list[dict[str, Any]]) -> str:
    """The lines as CSV text."""
    return table_text(COLUMNS, ([line[name] for name in COLUMNS] for line in lines))


def comparison_json(comparison: Comparison, lines: list[dict[str, Any]]) -> str:
    """Everything but the pictures, with where it came from."""
    found = comparison.registration
    return json.dumps(
        {
            "notice": NOTICE,
            "version": cmb_jax.__version__,
            "baseline": _provenance(comparison.baseline),
            "followup": _provenance(comparison.followup),
            "registration": {
                "matrix": np.round(found.matrix, 6).tolist(),
                "direction": "baseline RAS mm to follow-up RAS mm",
                "trusted": found.trusted,
                "faults": list(found.faults),
                "dice": found.dice,
                "correlation": found.correlation,
                "mutual_information_nats": found.mutual_information,
                "shared_brain": found.shared,
                "rotation_deg": found.rotation_deg,
                "shift_mm": found.shift_mm,
            },
            "settings": dict(comparison.settings),
            "counts": {
                status: sum(change.status == status for change in comparison.changes) for status in STATUSES
            },
            "statement": list(comparison.statement),
            "warnings": list(comparison.warnings),
            "lesions": lines,
        },
        indent=2,
    )


def _provenance(scan: TimePoint) -> dict[str, Any]:
    record = scan.record
    return {
        "subject": scan.subject,
        "version": record.version,
        "weights": {"name": record.weights_name, "sha256": record.weights_sha256},
        "score_threshold": record.threshold,
        "inputs": [{"role": role, "file": name, "sha256": digest} for role, name, digest in record.inputs],
        "voxel_mm": [round(edge, 4) for edge in scan.image.spacing_mm],
        "echo_time_ms": scan.facts.echo_time_ms,
        "field_strength_t": scan.facts.field_strength_t,
        "reported": len(scan.kept),
    }


def write_comparison(comparison: Comparison, out: Path, *, overwrite: bool = False) -> None:
    """Write comparison.csv, comparison.json and report.html into the new folder `out`.

    Raises:
        UserError: the folder exists (and `overwrite` is not set) or cannot be written.
    """
    matrix = comparison.registration.matrix
    back = np.linalg.inv(matrix)
    lines = [change_line(change, matrix, back) for change in comparison.changes]
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "comparison.csv").write_text(comparison_csv(lines), encoding="utf-8")
        (folder / "comparison.json").write_text(comparison_json(comparison, lines) + "\n", encoding="utf-8")
        write_comparison_report(comparison.content, folder / "report.html")
