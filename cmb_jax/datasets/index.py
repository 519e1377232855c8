"""An index as a JSON file, and its split by patient.

Paths are relative to the data root, and the root to the file, so that both can be moved together. All scans
of a patient, synthetic or repeated, belong to the same part of a split.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cmb_jax.datasets.cases import CONVENTIONS, KINDS, ROLES, Case, DatasetIndex, MaskTruth, PointTruth
from cmb_jax.datasets.tables import read_csv
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.outside import a_number, a_text, read_json, reading, shown

VERSION = 1
FORMAT = "cmb-jax data index"

SPLITS = ("train", "val", "test")
"""For training, for choosing the operating point, and for the final evaluation only."""


def write_index(path: Path, index: DatasetIndex, root: Path, *, overwrite: bool = False) -> None:
    """Write an index atomically; the same index gives the same bytes.

    Args:
        path: JSON file.
        index: its problems are not written: they describe the check, not the data.
        root: of the data set.
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
        root: of the data set, if it has been moved; None: as stored in the file.

    Returns:
        The index and the root that its paths are relative to.

    Raises:
        UserError: missing or damaged file, another version, an invalid value, two cases with one ID, a path
            that leaves the root, or a missing file.
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
        raise UserError(f"{path}: is not a data index; make one with cmb-jax data index")
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
        for name in (
            *case.images.values(),
            *((case.truth.path,) if isinstance(case.truth, MaskTruth) else ()),
        ):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: {case.case_id}: {name} leaves the data root; make the index again")
            if not (root / name).is_file():
                raise UserError(
                    f"{path}: {case.case_id}: {name} is gone from {root}; put it back or make the index again"
                )


def _case_to_json(case: Case) -> dict[str, Any]:
    return dataclasses.asdict(case) | {"truth": _truth_to_json(case.truth)}


def _truth_to_json(truth: MaskTruth | PointTruth | None) -> dict[str, Any] | None:
    if truth is None:
        return None
    if isinstance(truth, MaskTruth):
        return {"mask": truth.path, "threshold": truth.threshold, "soft": truth.soft}
    entry: dict[str, Any] = {"convention": truth.convention, "points": truth.points, "source": truth.source}
    if truth.diameters_mm is not None:
        entry["diameters_mm"] = truth.diameters_mm
    if truth.mimics:
        entry["mimics"] = truth.mimics
    return entry


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
        threshold = a_number(entry["threshold"], "threshold", 0, 1)
        return MaskTruth(path=_text(entry["mask"]), threshold=threshold, soft=bool(entry["soft"]))
    if entry["convention"] not in CONVENTIONS:
        raise ValueError(f"convention is {entry['convention']!r}")
    points = tuple(_point(point) for point in entry["points"])
    diameters = entry.get("diameters_mm")
    if diameters is not None:
        if len(diameters) != len(points):
            raise ValueError(f"{len(diameters)} diameters for {len(points)} points")
        diameters = tuple(a_number(value, "a diameter", 0, 1000) for value in diameters)
    return PointTruth(
        convention=entry["convention"],
        points=points,
        diameters_mm=diameters,
        source=_text(entry["source"]),
        mimics=tuple(_point(point) for point in entry.get("mimics", ())),
    )


def _point(values: Sequence[object]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError("a center does not have three coordinates")
    x, y, z = (a_number(value, "a center") for value in values)
    return x, y, z


def _text(value: object) -> str:
    return a_text(value, "an entry")


def split_by_patient(
    cases: Iterable[Case], fractions: Mapping[str, float], *, seed: int
) -> dict[str, tuple[Case, ...]]:
    """Distribute patients over splits, each cohort in about the same proportions.

    Patients are shuffled within each combination of cohorts that they belong to, and each one goes to the
    split that is furthest behind its fraction. The order of `cases` does not matter.

    Args:
        cases: of one index.
        fractions: of patients for each split, such as {"train": 0.8, "test": 0.2}; they sum to 1.
        seed: 0 or more; the same seed gives the same splits.

    Returns:
        Cases of each split in order of their IDs.

    Raises:
        ValueError: fractions that are negative or do not sum to 1.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1.0) > 1e-6:
        raise ValueError(f"shares {dict(fractions)} must be 0 or more and sum to 1")
    ordered = sorted(cases, key=lambda case: case.case_id)
    cohorts: dict[str, set[str]] = {}
    for case in ordered:
        cohorts.setdefault(case.patient_id, set()).add(case.cohort)
    patients = sorted(cohorts)
    order = np.random.default_rng(seed).permutation(len(patients))
    # Sorted by cohort, so that giving each patient to the split furthest behind keeps the proportions within
    # every cohort, not only overall.
    queue = sorted((tuple(sorted(cohorts[patients[i]])), rank, patients[i]) for rank, i in enumerate(order))
    names, shares = list(fractions), np.array(list(fractions.values()))
    counts = np.zeros(len(names))
    side: dict[str, str] = {}
    for number, (_, _, patient) in enumerate(queue, start=1):
        chosen = int(np.argmax(shares * number - counts))
        counts[chosen] += 1
        side[patient] = names[chosen]
    return {name: tuple(case for case in ordered if side[case.patient_id] == name) for name in names}


def read_split(path: Path, cases: Sequence[Case]) -> dict[str, tuple[Case, ...]]:
    """A split from a CSV table with the columns case_id and split (train, val or test).

    Other columns and the case of letters are ignored. Cases that the table does not list are in no split.

    Args:
        path: the table.
        cases: of one index.

    Returns:
        Cases of each of `SPLITS` in order of their IDs.

    Raises:
        UserError: an unreadable table, an unknown or repeated case, an unknown split, or a patient in two
            splits.
    """
    known = {case.case_id.casefold(): case for case in cases}
    parts: dict[str, list[Case]] = {name: [] for name in SPLITS}
    listed: set[str] = set()
    side_of_patient: dict[str, str] = {}
    for line, row in enumerate(read_csv(path, ("case_id", "split")), start=2):
        name, side = row["case_id"], row["split"].casefold()
        if side not in SPLITS:
            raise UserError(f"{path}: line {line}: split is {row['split']!r}; write {', '.join(SPLITS)}")
        case = known.get(name.casefold())
        if case is None:
            raise UserError(
                f"{path}: line {line}: the index has no case {name!r}; correct the line or make the "
                "index again"
            )
        if name.casefold() in listed:
            raise UserError(f"{path}: line {line}: case {name} is listed twice; keep one line")
        listed.add(name.casefold())
        if side_of_patient.setdefault(case.patient_id, side) != side:
            raise UserError(
                f"{path}: line {line}: patient {case.patient_id} is in {side_of_patient[case.patient_id]} "
                f"and in {side}; put all scans of a patient into one part"
            )
        parts[side].append(case)
    return {name: tuple(sorted(part, key=lambda case: case.case_id)) for name, part in parts.items()}
