"""3D Slicer markups (.mrk.json, schema version 1.0.3): candidates as points, and what a reader left of them.

Slicer's world is RAS, its files are LPS by default; both are millimeters of the patient.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json, shortened, shown
from cmb_jax.report.summary import location_text
from cmb_jax.review.marks import Mark, Verdict, parse_verdict
from cmb_jax.review.result import Result

# an identifier, which Slicer compares; its address need not exist
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_KNOWN_SCHEMA = re.compile(r".*markups-schema-v1\.[0-9]+\.[0-9]+\.json#*$", re.IGNORECASE)
_LABEL = re.compile(r"cmb-([0-9]{1,9})", re.ASCII)
_TO_RAS = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}
_STATUS = ("kept", "rejected")


def markups(result: Result) -> str:
    """The candidates as JSON text: one list of points in LPS mm, selected where kept.

    A point is called cmb-ID. Its description begins with the status, which a reader replaces by a verdict.
    """
    document = {
        "@schema": SCHEMA,
        "markups": [
            {
                "type": "Fiducial",
                "name": f"{result.subject} microbleeds",
                "coordinateSystem": "LPS",
                "coordinateUnits": "mm",
                "locked": False,
                "fixedNumberOfControlPoints": False,
                "labelFormat": "new-%d",
                "controlPoints": [_point(row) for row in result.rows],
                "display": {
                    "visibility": True,
                    "selectedColor": [1.0, 0.3, 0.3],
                    "color": [0.6, 0.6, 0.6],
                    "glyphType": "Circle2D",
                    "pointLabelsVisibility": True,
                    "sliceProjection": False,
                },
            }
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _point(row: DetectionRow) -> dict[str, Any]:
    kept = row.status == "kept"
    return {
        "id": str(row.id),
        "label": f"cmb-{row.id}",
        "description": (
            f"{row.status}; {row.category}; {location_text(row, trusted=True)}; {row.diameter_mm:.1f} mm; "
            f"score {row.score:.2f}" + (f"; {row.reason}" if row.reason else "")
        ),
        "position": [-row.x_mm, -row.y_mm, row.z_mm],
        "selected": kept,
        "locked": False,
        "visibility": kept,
        "positionStatus": "defined",
    }


def read_markups(path: Path, result: Result) -> tuple[list[Mark], set[int]]:
    """What a reader left of the points, and the ids of kept candidates that were removed.

    A verdict at the beginning of a description counts. Without one a selected point is a microbleed, and one
    that was kept but is no longer selected a mimic; a rejected candidate that is not selected was not read.

    Raises:
        UserError: no Slicer markups, another coordinate system or unit, a position that is none, or a
            description that begins with another word.
    """
    marks = []
    status = {row.id: row.status for row in result.rows}
    for number, (point, turn) in enumerate(_points(path), start=1):
        label = shortened(str(point.get("label", "")), 60)
        where = f"{path}: point {number} ({label or 'no label'})"
        named = _LABEL.fullmatch(label)
        candidate = int(named.group(1)) if named else None
        selected = point.get("selected", True) is True
        verdict, mimic = _verdict(str(point.get("description", "")), where)
        if verdict is None and selected:
            verdict = Verdict.MICROBLEED
        elif verdict is None and (candidate is None or status.get(candidate) == "kept"):
            verdict = Verdict.MIMIC
        x, y, z = _position(point.get("position"), where) * turn
        marks.append(
            Mark(
                candidate=candidate,
                verdict=verdict,
                mimic=mimic,
                position_mm=(float(x), float(y), float(z)),
                where=where,
            )
        )
    return marks, {row.id for row in result.kept} - {mark.candidate for mark in marks}


def _points(path: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Every defined point with the signs (3,) that turn it to RAS."""
    document = read_json(path, "save it again in the viewer or in Slicer")
    lists = document.get("markups") if isinstance(document, dict) else None
    if not isinstance(lists, list) or not _KNOWN_SCHEMA.match(str(document.get("@schema", ""))):
        raise UserError(f"{path}: holds no markups of 3D Slicer; save the point list as .mrk.json")
    points = []
    for each in lists:
        if not isinstance(each, dict) or each.get("type") != "Fiducial":
            raise UserError(f"{path}: holds other markups than points; save only the point list")
        system = each.get("coordinateSystem", "LPS")
        if not isinstance(system, str) or system not in _TO_RAS:
            raise UserError(f"{path}: coordinateSystem is {shown(system)}; allowed: LPS, RAS")
        units = each.get("coordinateUnits", "mm")
        if (units[0] if isinstance(units, list) and units else units) != "mm":
            raise UserError(f"{path}: coordinateUnits is {shown(units)}; allowed: mm")
        inside = each.get("controlPoints", [])
        if not isinstance(inside, list) or not all(isinstance(point, dict) for point in inside):
            raise UserError(f"{path}: its controlPoints are no list of points; save it again in Slicer")
        defined = [point for point in inside if point.get("positionStatus", "defined") == "defined"]
        points += [(point, _TO_RAS[system]) for point in defined]
    return points


def _position(value: object, where: str) -> np.ndarray:
    numbers = value if isinstance(value, list) and len(value) == 3 else []
    if not numbers or not all(isinstance(n, int | float) and abs(n) < 1e6 for n in numbers):
        raise UserError(f"{where}: its position is {shown(value)}, but must be three numbers")
    return np.array(numbers, np.float64)


def _verdict(description: str, where: str) -> tuple[Verdict | None, str]:
    """Verdict at the beginning of a description, up to the first semicolon; None where there is none."""
    first = description.partition(";")[0].strip()
    if not first or first.casefold() in _STATUS:
        return None, ""
    try:
        return parse_verdict(first, "", where)
    except UserError as error:
        raise UserError(
            f"{error}; in a description it stands before the first semicolon, comments after it"
        ) from None
