"""Candidates for readers in other viewers, and their edits read back.

3D Slicer: markups (.mrk.json, schema version 1.0.3), points in LPS mm by default, although Slicer itself
works in RAS. ITK-SNAP: a label image, and the file that names its labels.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.images import Grid
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_labels
from cmb_jax.io.outside import read_json, shortened, shown
from cmb_jax.report.summary import location_text
from cmb_jax.review.result import Result, positions_mm
from cmb_jax.review.verdicts import Mark, Verdict, parse_verdict

# an identifier that Slicer compares as text; nothing is fetched
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_KNOWN_SCHEMA = re.compile(r".*markups-schema-v1\.[0-9]+\.[0-9]+\.json#*$", re.IGNORECASE)
# a number too long for an id is still a candidate, an unknown one, and not a new lesion
_LABEL = re.compile(r"cmb-([0-9]{1,18})[0-9]*(?:\.\.\.)?", re.ASCII)
_TO_RAS = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}
_STATUS = ("kept", "rejected")


def markups(result: Result) -> str:
    """The candidates as JSON text: one list of points in LPS mm; kept ones are selected.

    A point is named cmb-ID. Its description begins with the status, which a reader replaces with a verdict.
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
    """The points as edited by a reader, and the ids of kept candidates that were removed.

    A verdict at the start of a description counts. Without one, a selected point is a microbleed, and a kept
    candidate that is no longer selected is a mimic; a rejected candidate that is not selected was not read.

    Raises:
        UserError: no Slicer markups, another coordinate system or unit, an invalid position, or a
            description that begins with another word.
    """
    marks = []
    status = {row.id: row.status for row in result.rows}
    for number, (point, to_ras) in enumerate(_points(path), start=1):
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
        x, y, z = _position(point.get("position"), where) * to_ras
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
    """Every defined point, with the signs (3,) that convert its position to RAS."""
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
            raise UserError(f"{path}: its controlPoints are not a list of points; save it again in Slicer")
        defined = [point for point in inside if point.get("positionStatus", "defined") == "defined"]
        points += [(point, _TO_RAS[system]) for point in defined]
    return points


def _position(value: object, where: str) -> np.ndarray:
    numbers = value if isinstance(value, list) and len(value) == 3 else []
    if not numbers or not all(isinstance(n, int | float) and abs(n) < 1e6 for n in numbers):
        raise UserError(f"{where}: its position is {shown(value)}, but must be three numbers")
    return np.array(numbers, np.float64)


def _verdict(description: str, where: str) -> tuple[Verdict | None, str]:
    """Verdict at the start of a description, before the first semicolon; None without one."""
    first = description.partition(";")[0].strip()
    if not first or first.casefold() in _STATUS:
        return None, ""
    try:
        return parse_verdict(first, "", where)
    except UserError as error:
        raise UserError(
            f"{error}; in a description it stands before the first semicolon, comments after it"
        ) from None


PAINTED: dict[int, Verdict] = {
    60001: Verdict.MICROBLEED,
    60002: Verdict.UNCERTAIN,
    60003: Verdict.MIMIC,
}
"""Labels for readers to paint with: over a candidate to judge it, elsewhere to add a lesion."""

_HEADER = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""
_CATEGORY_COLORS = {"definite": (230, 60, 60), "possible": (255, 180, 0)}
_PAINT_COLORS = {60001: (0, 220, 90), 60002: (120, 120, 255), 60003: (160, 160, 160)}
_SAME_GRID_VOXELS = 0.5
_LARGEST_LABEL = 65535  # ITK-SNAP stores labels as uint16
_TOUCHING = ndimage.generate_binary_structure(3, 3)


def label_descriptions(rows: tuple[DetectionRow, ...]) -> str:
    """The text of a label description file, as ITK-SNAP (ColorLabelTable::SaveToFile) writes it."""
    lines = [_line(0, (0, 0, 0), "Clear Label", shown=False)]
    for row in rows:
        place = location_text(row, trusted=True)
        text = f"{row.id}: {row.category}, {place}, {row.diameter_mm:.1f} mm, score {row.score:.2f}"
        lines.append(_line(row.id, _CATEGORY_COLORS[row.category], text))
    for value, verdict in PAINTED.items():
        lines.append(_line(value, _PAINT_COLORS[value], f"reader: {verdict}"))
    return _HEADER + "".join(lines)


def _line(index: int, color: tuple[int, int, int], text: str, *, shown: bool = True) -> str:
    red, green, blue = color
    seen = int(shown)
    # ITK-SNAP's parser ends a text at the next quotation mark, and an entry at the end of the line
    text = " ".join(text.replace('"', "'").split())
    return f'  {index:3d}   {red:3d}  {green:3d}  {blue:3d}  {seen:7d}  {seen:1d}  {seen:1d}    "{text}"\n'


def read_painted(path: Path, result: Result) -> tuple[list[Mark], set[int]]:
    """The labels as edited by a reader, and the ids of those that were removed.

    A component with label n that overlaps candidate n is that candidate, kept; one with a label of `PAINTED`
    gives that verdict to the candidate under it. All other components are lesions that the reader added,
    whatever their label: ITK-SNAP paints with the label that was used last.

    Raises:
        UserError: see `evaluation.read.read_labels`; fractions; another grid than the result's labels.
    """
    values, affine = read_labels(path)
    _check_grid(path, values, affine, result)
    if values.max(initial=0) > _LARGEST_LABEL:
        raise UserError(f"{path}: holds the label {values.max():g}; ITK-SNAP paints up to {_LARGEST_LABEL}")
    labels = np.rint(values).astype(np.int32)
    if np.any(labels != values):
        raise UserError(f"{path}: holds fractions; give the label image as saved by the viewer")
    sizes = np.bincount(result.labels.ravel())
    found: dict[int | None, list[tuple[int, Mark]]] = {}
    for value, where in enumerate(ndimage.find_objects(labels), start=1):
        if where is None:
            continue
        # a label may have several components; only those that overlap the candidate of that number are it
        inside, before = labels[where] == value, result.labels[where]
        pieces, count = ndimage.label(inside, _TOUCHING)
        kept = set(np.unique(pieces[before == value])) - {0} if value not in PAINTED else set()
        if kept:
            drawn = np.isin(pieces, list(kept))
            found.setdefault(value, []).append(_mark(drawn, where, value, value, result, sizes))
        for piece in set(range(1, count + 1)) - kept:
            drawn = pieces == piece
            under = before[drawn & (before > 0)]
            over = int(np.bincount(under).argmax()) if len(under) and value in PAINTED else None
            found.setdefault(over, []).append(_mark(drawn, where, value, over, result, sizes))
    added = [mark for _, mark in found.pop(None, [])]
    # a candidate that was only partly painted over gets the verdict of the larger part
    judged = [max(parts, key=lambda part: part[0])[1] for parts in found.values()]
    visible = set(np.flatnonzero(sizes).tolist()) - {0}
    return [*judged, *added], visible - {mark.candidate for mark in judged if mark.candidate is not None}


def _mark(
    drawn: np.ndarray,
    where: tuple[slice, ...],
    value: int,
    candidate: int | None,
    result: Result,
    sizes: np.ndarray,
) -> tuple[int, Mark]:
    """Number of voxels of `drawn` (bool, in the window `where`), and its mark; `sizes`: voxels by id."""
    size = int(drawn.sum())
    corner = np.array([part.start for part in where])
    index = np.argwhere(drawn).mean(axis=0) + corner
    x, y, z = result.grid.to_mm(index[None])[0]
    diameter: float | None
    diameter = float(np.cbrt(6.0 / np.pi * size * abs(np.linalg.det(result.grid.affine[:3, :3]))))
    unchanged = candidate is not None and size == sizes[candidate]
    if unchanged and np.all(result.labels[where][drawn] == candidate):
        # the exact position of the table, not the center of its voxels
        row = next(row for row in result.rows if row.id == candidate)
        (x, y, z), diameter = positions_mm((row,))[0], None
    mark = Mark(
        candidate=candidate,
        verdict=PAINTED.get(value, Verdict.MICROBLEED),
        position_mm=(float(x), float(y), float(z)),
        diameter_mm=diameter,
        where=f"label {value}",
    )
    return size, mark


def _check_grid(path: Path, values: np.ndarray, affine: np.ndarray, result: Result) -> None:
    if values.shape != result.grid.shape:
        raise UserError(
            f"{path}: its shape is {values.shape}, that of {result.paths.labels} {result.grid.shape} (RAS); "
            "give this result's labels as edited, not resampled"
        )
    apart = result.grid.apart_voxels(Grid(shape=result.grid.shape, affine=affine))
    if apart > _SAME_GRID_VOXELS:
        raise UserError(
            f"{path}: lies up to {apart:.1f} voxels from {result.paths.labels}; give this result's labels "
            "as edited, with their header as it was"
        )
