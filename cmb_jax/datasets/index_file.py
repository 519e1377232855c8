"""An index as a JSON file: paths relative to the data root, and the root relative to the file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cmb_jax.datasets.types import (
    CONVENTIONS,
    KINDS,
    ROLES,
    Case,
    DatasetIndex,
    MaskTruth,
    PointTruth,
)
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.outside import a_number, a_text, read_json, reading, shown

VERSION = 1
FORMAT = "cmb-jax data index"


def write_index(path: Path, index: DatasetIndex, root: Path, *, overwrite: bool = False) -> None:
    """Write an index, whole or not at all; the same index gives the same bytes.

    Args:
        path: JSON file to make.
        index: its problems are not written: they belong to the check, not to the data.
        root: of the data set; kept relative to the file's folder, so that both can be moved together.
        overwrite: replace an existing file.

    Raises:
        UserError: the file exists or cannot be written.
    """
    path = Path(path)
    try:
        to_root = os.path.relpath(root, path.absolute().parent)
    except ValueError:  # another drive
        to_root = str(Path(root).absolute())
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": index.kind,
        "root": Path(to_root).as_posix(),
        "cases": [_case_to_json(case) for case in index.cases],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_text(path, text, overwrite=overwrite)


def read_index(path: Path, root: Path | None = None) -> tuple[DatasetIndex, Path]:
    """Read an index and check that its files are there.

    Args:
        path: JSON file of `write_index`.
        root: of the data set, if it has been moved; else as the file says.

    Returns:
        The index and the root that its paths are relative to.

    Raises:
        UserError: missing or damaged file, another version, a value that must not be, two cases with one ID,
            a path that leaves the root, or a file that is gone.
    """
    path = Path(path)
    content = _load(path)
    with reading(path, "the index is damaged: make it again with cmb-jax data index"):
        base = Path(root) if root is not None else path.parent / a_text(content["root"], "root")
        if _text(content["kind"]) not in KINDS:
            raise ValueError(f"kind is {content['kind']!r}")
        cases = tuple(_case_from_json(entry) for entry in content["cases"])
        index = DatasetIndex(kind=content["kind"], cases=cases)
        _check(path, index, base)
        return index, base


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such index; make it with cmb-jax data index")
    content = read_json(path, "make the index again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is no data index; make one with cmb-jax data index")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {shown(content.get('version'))}, but {VERSION} is needed; "
            "make the index again"
        )
    return content


def _check(path: Path, index: DatasetIndex, root: Path) -> None:
    seen: set[str] = set()
    for case in index.cases:
        if case.case_id.casefold() in seen:
            raise UserError(f"{path}: two subjects with one ID, {case.case_id}; make the index again")
        seen.add(case.case_id.casefold())
        files = [*case.images.values(), *([case.truth.path] if isinstance(case.truth, MaskTruth) else [])]
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: {case.case_id}: {name} leaves the data root; make the index again")
            if not (root / name).is_file():
                raise UserError(
                    f"{path}: {case.case_id}: {name} is gone from {root}; put it back or make the index again"
                )


def _case_to_json(case: Case) -> dict[str, Any]:
    truth: dict[str, Any] | None = None
    if isinstance(case.truth, MaskTruth):
        truth = {"mask": case.truth.path, "threshold": case.truth.threshold, "soft": case.truth.soft}
    elif isinstance(case.truth, PointTruth):
        truth = {
            "convention": case.truth.convention,
            "points": case.truth.points,
            "source": case.truth.source,
        }
        if case.truth.diameters_mm is not None:
            truth["diameters_mm"] = case.truth.diameters_mm
        if case.truth.mimics:
            truth["mimics"] = case.truth.mimics
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "cohort": case.cohort,
        "images": dict(case.images),
        "truth": truth,
        "notes": case.notes,
    }


def _case_from_json(entry: dict[str, Any]) -> Case:
    images = {role: _text(entry["images"][role]) for role in entry["images"]}
    if not images or not images.keys() <= set(ROLES):
        raise ValueError(f"{entry['case_id']} has the images {', '.join(images) or 'none'}")
    return Case(
        case_id=_text(entry["case_id"]),
        patient_id=_text(entry["patient_id"]),
        cohort=_text(entry["cohort"]),
        images=images,
        truth=_truth_from_json(entry["truth"]),
        notes=tuple(_text(note) for note in entry["notes"]),
    )


def _truth_from_json(entry: dict[str, Any] | None) -> MaskTruth | PointTruth | None:
    if entry is None:
        return None
    if "mask" in entry:
        return MaskTruth(
            path=_text(entry["mask"]),
            threshold=a_number(entry["threshold"], "threshold", 0, 1),
            soft=bool(entry["soft"]),
        )
    if entry["convention"] not in CONVENTIONS:
        raise ValueError(f"convention is {entry['convention']!r}")
    points, mimics = (
        tuple(_point(point) for point in each) for each in (entry["points"], entry.get("mimics", ()))
    )
    diameters = entry.get("diameters_mm")
    if diameters is not None and len(diameters) != len(points):
        raise ValueError(f"{len(diameters)} diameters for {len(points)} points")
    return PointTruth(
        convention=entry["convention"],
        points=points,
        diameters_mm=None
        if diameters is None
        else tuple(a_number(value, "a diameter", 0, 1000) for value in diameters),
        source=_text(entry["source"]),
        mimics=mimics,
    )


def _point(values: Sequence[object]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError("a center has not three coordinates")
    x, y, z = (a_number(value, "a center") for value in values)
    return x, y, z


def _text(value: object) -> str:
    return a_text(value, "an entry")
