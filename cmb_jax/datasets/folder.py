"""Own folders: images by role, and masks or CSV tables of centers, told apart by the last word of a name.

    sub-01_swi.nii.gz, sub-01_phase.nii.gz, sub-01_mask.nii.gz      flat
    anna/swi.nii.gz, anna/points.csv                                a folder each
    sub-01/ses-2/swi/sub-01_ses-2_part-mag_T2starw.nii.gz           BIDS
    patients.csv: case_id, patient_id                               optional, where names do not tell

A table has the columns x_mm, y_mm, z_mm (RAS mm) and, where measured, diameter_mm. With a column kind, rows
of kind cmb are lesions and those of kind mimic are known to be none; all else is background.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from cmb_jax.datasets.listing import check_root, child, distinct, is_nifti, relative, stem, walk
from cmb_jax.datasets.sheets import read_csv
from cmb_jax.datasets.types import Case, DatasetIndex, MaskTruth, PointTruth, Problem, Role
from cmb_jax.errors import UserError

_ROLE_WORDS: dict[str, Role] = {
    **dict.fromkeys(("swi",), "swi"),
    **dict.fromkeys(("t2s", "t2star", "t2starw", "gre"), "t2s"),
    **dict.fromkeys(("mag", "magnitude"), "magnitude"),
    **dict.fromkeys(("phase", "pha"), "phase"),
    **dict.fromkeys(("t1", "t1w"), "t1"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
}  # fmt: skip
_MASK_WORDS = {"cmb", "mask", "seg", "dseg", "label", "labels", "lesions"}
_POINT_WORDS = {"points", "centres", "centers", "lesions", "cmb"}
_PATIENTS = "patients.csv"
LESION_KIND, MIMIC_KIND = "cmb", "mimic"
"""What a table's column kind says of a microbleed, and of what a reader took for none."""

_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)", re.IGNORECASE)


def find(root: Path) -> DatasetIndex:
    """The scans of a folder; those without truth are kept, because predictions can be made on them.

    Raises:
        UserError: the folder is missing or empty, or patients.csv cannot be read.
    """
    root = check_root(root)
    patients = _patients(root)
    found: dict[str, dict[str, list[Path]]] = {}
    problems = []
    for path in walk(root):
        if path.name.casefold() == _PATIENTS:
            continue
        case_id, what = case_and_word(path, root)
        if what is not None:
            found.setdefault(case_id, {}).setdefault(what, []).append(path)
        elif is_nifti(path) and "mimics" not in path.name.casefold():
            text = "its name ends in no known word (swi, phase, mask, ...); see the documentation"
            problems.append(Problem(where=relative(path, root), what=text, level="left out"))
    cases = []
    for case_id, files in found.items():
        try:
            cases.append(_case(case_id, files, root, patients))
        except UserError as error:
            problems.append(Problem(where=case_id, what=str(error)))
    kept, twice = distinct(cases)
    return DatasetIndex(kind="folder", cases=kept, problems=(*problems, *twice))


def case_and_word(path: Path, root: Path) -> tuple[str, str | None]:
    """Case ID of a file, and its role, `mask` or `points`; None if its name says nothing of the kind."""
    name, table = stem(path.name), path.suffix.lower() == ".csv"
    if not table and not is_nifti(path):
        return "", None
    before, _, last = name.rpartition("_")
    word = last.casefold()
    what: str | None
    if table:
        what = "points" if word in _POINT_WORDS else None
    elif word in _MASK_WORDS:  # a simulated tree also labels what only looks like a microbleed
        what = None if "mimics" in before.casefold() else "mask"
    else:
        what = _ROLE_WORDS.get(word)
    part = re.search(r"(^|_)part-(mag|phase)(?=_|$)", before, re.IGNORECASE)
    if part and what not in (None, "mask", "points"):  # BIDS names the part apart from the contrast
        what = _ROLE_WORDS[part.group(2).casefold()]
    before = re.sub(r"(^|_)(part|desc|echo|run)-[A-Za-z0-9]+(?=_|$)", "", before, flags=re.IGNORECASE)
    folder = path.parent.relative_to(root).as_posix()
    return (before.strip("_") or (folder if folder != "." else "scan")), what


def _patients(root: Path) -> dict[str, str]:
    path = child(root, _PATIENTS)
    if path is None:
        return {}
    rows = read_csv(path, ("case_id", "patient_id"))
    return {row["case_id"].casefold(): row["patient_id"] for row in rows}


def _patient(case_id: str, image: str, patients: dict[str, str]) -> str:
    """From patients.csv, else sub-*, else the topmost folder, else the case itself."""
    stated = patients.get(case_id.casefold())
    if stated:
        return stated
    named = _SUBJECT.match(case_id) or _SUBJECT.search(image)
    if named:
        return named.group(1)
    return image.split("/")[0] if "/" in image else case_id


def _case(case_id: str, files: dict[str, list[Path]], root: Path, patients: dict[str, str]) -> Case:
    for what, paths in files.items():
        if len(paths) > 1:
            names = ", ".join(relative(path, root) for path in paths)
            raise UserError(f"two files for its {what} ({names}); keep one, or give the cases two names")
    single = {what: paths[0] for what, paths in files.items()}
    images: dict[Role, str] = {
        role: relative(single[role], root) for role in dict.fromkeys(_ROLE_WORDS.values()) if role in single
    }
    if not images:
        names = ", ".join(relative(path, root) for path in single.values())
        raise UserError(f"has a truth ({names}), but no image")
    if "mask" in single and "points" in single:
        raise UserError("has a mask and a table of points; keep the one that is the truth")
    truth: MaskTruth | PointTruth | None = None
    if "mask" in single:
        truth = MaskTruth(path=relative(single["mask"], root))
    elif "points" in single:
        truth = read_points(single["points"], relative(single["points"], root))
    image = next(iter(images.values()))
    return Case(
        case_id=case_id,
        patient_id=_patient(case_id, image, patients),
        cohort="own",
        images=images,
        truth=truth,
        notes=() if truth is not None else ("no truth",),
    )


def read_points(path: Path, source: str) -> PointTruth:
    """Centers in RAS mm from a CSV table with x_mm, y_mm, z_mm and perhaps diameter_mm and kind.

    Raises:
        UserError: see `read_csv`; a value that is no finite number, a diameter of 0 or less, an empty kind.
    """
    rows = read_csv(path, ("x_mm", "y_mm", "z_mm"))
    nameless = [line for line, row in enumerate(rows, start=2) if row.get("kind") == ""]
    if nameless:
        raise UserError(f"{path}: line {nameless[0]}: kind is empty; write cmb, or what it is instead")
    names = (
        ("x_mm", "y_mm", "z_mm", "diameter_mm")
        if rows and "diameter_mm" in rows[0]
        else ("x_mm", "y_mm", "z_mm")
    )
    values: dict[str, list[tuple[float, ...]]] = {LESION_KIND: [], MIMIC_KIND: []}
    for line, row in enumerate(rows, start=2):
        kind = row.get("kind", LESION_KIND).casefold()
        if kind in values:
            values[kind].append(_numbers(row, names, path, line))
    lesions = values[LESION_KIND]
    return PointTruth(
        convention="ras-mm",
        points=tuple((x, y, z) for x, y, z, *_ in lesions),
        diameters_mm=tuple(row[3] for row in lesions) if len(names) == 4 else None,
        source=source,
        mimics=tuple((x, y, z) for x, y, z, *_ in values[MIMIC_KIND]),
    )


def _numbers(row: dict[str, str], names: tuple[str, ...], path: Path, line: int) -> tuple[float, ...]:
    """The named cells of one line."""
    numbers = []
    for name in names:
        try:
            numbers.append(float(row[name]))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]) or (name == "diameter_mm" and numbers[-1] <= 0):
            raise UserError(f"{path}: line {line}: {name} is {row[name]!r}, but it must be a number")
    return tuple(numbers)
