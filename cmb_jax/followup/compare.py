"""Compares two time points: what changed, in plain sentences and in files."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

import cmb_jax
from cmb_jax.errors import UserError
from cmb_jax.followup.changes import MATCH_MM, find_changes, settings
from cmb_jax.followup.registration import Registration, register
from cmb_jax.followup.time_point import TimePoint, protocol_warnings, provenance_warnings
from cmb_jax.inference.outputs import NOTICE
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.io.tables import table_text
from cmb_jax.report.comparison import STATUSES, Change, ComparisonContent, render_comparison

ARIA_SOURCE = (
    "ARIA-H classes by new microhemorrhages: mild 1 to 4, moderate 5 to 9, severe 10 or more (radiographic "
    "severity in the US prescribing information of lecanemab; reporting as in Cogswell et al. 2022, AJNR "
    "43:E19). Superficial siderosis is not assessed. Not a diagnosis."
)
_CLASSES = ((1, "none"), (5, "mild (1-4)"), (10, "moderate (5-9)"))

_AXES = ("x_mm", "y_mm", "z_mm")
_OF_EACH_SCAN = ("id", *_AXES, "score", "diameter_mm")
COLUMNS: tuple[str, ...] = (
    *("id", "status", "reason", "baseline_id", "followup_id"),
    *(f"{scan}_{axis}" for scan in ("baseline", "followup") for axis in _AXES),
    *("mapped_from", *(f"mapped_{axis}" for axis in _AXES), "distance_mm"),
    *("baseline_score", "followup_score", "baseline_diameter_mm", "followup_diameter_mm"),
    *("category", "zone", "region", "side"),
)
"""`baseline_*_mm` and `followup_*_mm`: RAS mm of that scan, as detected; empty without a candidate there.
`mapped_*_mm`: the position in RAS mm of the other scan, mapped from the scan named in `mapped_from`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changed between two scans of one patient."""

    baseline: TimePoint
    followup: TimePoint
    registration: Registration
    content: ComparisonContent  # for the report


def compare(
    baseline: TimePoint,
    followup: TimePoint,
    *,
    match_mm: float = MATCH_MM,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Register the scans, match their lesions and classify the changes.

    Args:
        baseline: the earlier scan with its result.
        followup: the later one.
        match_mm: maximum distance between matched lesions, after registration.
        progress: called with a line about each step.

    Raises:
        UserError: both are the same image.
    """
    if baseline.image.sha256 is not None and baseline.image.sha256 == followup.image.sha256:
        raise UserError(
            f"{followup.image.source}: is the same image as {baseline.image.source}; give two time points"
        )
    # lesions are matched by position alone; the images matter only for those without a partner
    progress("registering the follow-up to the baseline")
    found = register(baseline.image, baseline.brain, followup.image, followup.brain)
    progress("matching lesions")
    changes = find_changes(baseline.rows, followup.rows, found, baseline, followup, match_mm=match_mm)
    warnings = (*provenance_warnings(baseline, followup), *protocol_warnings(baseline, followup))
    if not found.trusted:
        warning = (
            f"The registration is not trusted: {'; '.join(found.faults)}. Do both scans show the same head? "
            "No lesion is called new, resolved or stable."
        )
        warnings = (warning, *warnings)
    quality = (
        ("trusted", "yes" if found.trusted else "no"),
        ("Dice of the brain masks", f"{found.dice:.3f}"),
        ("correlation of the images", f"{found.correlation:.3f}"),
        ("mutual information (nats)", f"{found.mutual_information:.3f}"),
        ("shared part of the brain", f"{found.shared:.2f}"),
        ("rotation (degrees)", f"{found.rotation_deg:.1f}"),
    )
    content = ComparisonContent(
        baseline=baseline.content,
        followup=followup.content,
        changes=changes,
        matrix=found.matrix,
        trusted=found.trusted,
        quality=quality,
        statement=statement(changes, found.trusted),
        warnings=warnings,
        settings=settings(match_mm),
        version=cmb_jax.__version__,
    )
    return Comparison(baseline=baseline, followup=followup, registration=found, content=content)


def count_class(new: int) -> str:
    """The ARIA-H class for a number of new microhemorrhages (`ARIA_SOURCE`): none, mild, moderate, severe."""
    return next((name for below, name in _CLASSES if new < below), "severe (>= 10)")


def statement(changes: Sequence[Change], trusted: bool) -> tuple[str, ...]:
    """What changed, in plain sentences, including the ARIA-H class of the new lesions.

    Args:
        changes: of `find_changes`.
        trusted: whether the registration is trusted; otherwise no class is given.
    """
    if not trusted:
        return (
            "The two scans could not be registered, so nothing is called new, resolved or stable and no "
            "class is given.",
            ARIA_SOURCE,
        )
    if not changes:
        return (
            "Neither scan has a reported microbleed: nothing to match, none is new. "
            "An empty list does not prove that there are no microbleeds.",
            f"ARIA-H count class: {count_class(0)}.",
            ARIA_SOURCE,
        )
    counts = {status: sum(change.status == status for change in changes) for status in STATUSES}
    new = counts["new"]
    definite = sum(change.status == "new" and change.row.category == "definite" for change in changes)
    by_rating = f" ({definite} definite, {new - definite} possible)" if new else ""
    given = f"ARIA-H count class: {count_class(new)}, from {new} new microbleeds{by_rating}."
    maybe = sum(
        change.status == "uncertain" and change.followup is not None and change.followup.status == "kept"
        for change in changes
    )
    if maybe:
        given += (
            f" {maybe} more at follow-up {'is' if maybe == 1 else 'are'} uncertain; were "
            f"{'it' if maybe == 1 else 'all'} new, the class would be {count_class(new + maybe)}."
        )
    return (
        f"{new} new, {counts['resolved']} no longer seen, {counts['stable']} stable, "
        f"{counts['uncertain']} uncertain.",
        given,
        ARIA_SOURCE,
    )


def write_comparison(comparison: Comparison, out: Path, *, overwrite: bool = False) -> None:
    """Write comparison.csv, comparison.json and report.html into the new folder `out`, all or nothing.

    Raises:
        UserError: the folder exists (and `overwrite` is not set) or cannot be written.
    """
    matrix = comparison.registration.matrix
    back = np.linalg.inv(matrix)
    lines = [_line(change, matrix, back) for change in comparison.content.changes]
    table = table_text(COLUMNS, ([line[name] for name in COLUMNS] for line in lines))
    record = json.dumps(_record(comparison, lines), indent=2)
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "comparison.csv").write_text(table, encoding="utf-8")
        (folder / "comparison.json").write_text(record + "\n", encoding="utf-8")
        (folder / "report.html").write_text(render_comparison(comparison.content), encoding="utf-8")


def _line(change: Change, matrix: np.ndarray, back: np.ndarray) -> dict[str, Any]:
    """One line of comparison.csv; `matrix` (4, 4) maps baseline to follow-up RAS mm, `back` the other way."""
    from_baseline = change.baseline is not None
    to_other, center_mm = (matrix, change.baseline_mm) if from_baseline else (back, change.followup_mm)
    mapped_mm = apply_affine(to_other, center_mm)
    line: dict[str, Any] = {
        "id": change.id,
        "status": change.status,
        "reason": change.reason,
        "mapped_from": "baseline" if from_baseline else "followup",
        "distance_mm": change.distance_mm,
    }
    line |= {name: getattr(change.row, name) for name in ("category", "zone", "region", "side")}
    line |= {f"mapped_{axis}": round(float(mm), 2) for axis, mm in zip(_AXES, mapped_mm, strict=True)}
    for scan, row in (("baseline", change.baseline), ("followup", change.followup)):
        line |= {f"{scan}_{name}": getattr(row, name, None) for name in _OF_EACH_SCAN}
    return {name: line[name] for name in COLUMNS}


def _record(comparison: Comparison, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of comparison.json: everything but the pictures, with provenance."""
    found, content = comparison.registration, comparison.content
    return {
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
        "settings": dict(content.settings),
        "counts": {status: content.count(status) for status in STATUSES},
        "statement": list(content.statement),
        "warnings": list(content.warnings),
        "lesions": lines,
    }


def _provenance(scan: TimePoint) -> dict[str, Any]:
    record = scan.record
    return {
        "subject": scan.subject,
        "version": record.version,
        "weights": {"name": record.weights_name, "sha256": record.weights_sha256},
        "score_threshold": record.threshold,
        "inputs": [{"role": role, "file": name, "sha256": digest} for role, name, digest in record.inputs],
        "voxel_mm": [round(edge, 4) for edge in scan.image.spacing_mm],
        "echo_time_ms": scan.echo_time_ms,
        "field_strength_t": scan.field_strength_t,
        "reported": len(scan.kept),
    }
