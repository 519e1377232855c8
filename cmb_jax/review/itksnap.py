"""Labels for ITK-SNAP: the file that names them, and a label image as a reader has painted it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.images import Grid
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_labels
from cmb_jax.report.summary import location_text
from cmb_jax.review.result import Result, positions_mm
from cmb_jax.review.verdicts import Mark, Verdict

PAINTED: dict[int, Verdict] = {
    60001: Verdict.MICROBLEED,
    60002: Verdict.UNCERTAIN,
    60003: Verdict.MIMIC,
}
"""Labels that a reader paints with: over a candidate to judge it, elsewhere to add a lesion."""

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
_LARGEST_LABEL = 65535
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
    # the reader of this format ends a text at the next quotation mark, and a line at the line's end
    text = " ".join(text.replace('"', "'").split())
    return f'  {index:3d}   {red:3d}  {green:3d}  {blue:3d}  {seen:7d}  {seen:1d}  {seen:1d}    "{text}"\n'


def read_painted(path: Path, result: Result) -> tuple[list[Mark], set[int]]:
    """What a reader left of the labels, and the ids of those that were removed.

    A component that overlaps candidate n's label and carries n is that candidate, kept; one that carries a
    label of `PAINTED` gives the candidate under it that verdict. All other components are lesions that the
    reader added, whatever their label: ITK-SNAP paints with the label that was used last.

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
        # a label may lie in several pieces: those that still overlap the candidate of that number are it
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
    # where a candidate was painted over in part, the larger part decides
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
    """Number of voxels of `drawn` (bool, in the window `where`), and its mark; `sizes`: voxels by old id."""
    size = int(drawn.sum())
    corner = np.array([part.start for part in where])
    index = np.argwhere(drawn).mean(axis=0) + corner
    x, y, z = result.grid.to_mm(index[None])[0]
    diameter: float | None
    diameter = float(np.cbrt(6.0 / np.pi * size * abs(np.linalg.det(result.grid.affine[:3, :3]))))
    untouched = candidate is not None and size == sizes[candidate]
    if untouched and np.all(result.labels[where][drawn] == candidate):
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
