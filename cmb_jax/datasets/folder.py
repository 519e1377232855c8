"""A user's folders: images by role, and masks or CSV tables of centers, recognized by the last word of a
name.

    sub-01_swi.nii.gz, sub-01_phase.nii.gz, sub-01_mask.nii.gz      flat
    anna/swi.nii.gz, anna/points.csv                                one folder per case
    sub-01/ses-2/swi/sub-01_ses-2_part-mag_T2starw.nii.gz           BIDS
    patients.csv: case_id, patient_id                               optional, if names do not identify
    patients

A table has the columns x_mm, y_mm, z_mm (RAS mm) and optionally diameter_mm. If it has a column kind, rows of
kind cmb are lesions, rows of kind mimic are known not to be, and other rows are background.
"""

import math
import re
from pathlib import Path

from cmb_jax.datasets import cases
from cmb_jax.datasets.tables import read_csv
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem

_ROLE_WORDS: dict[str, cases.Role] = {
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
"""Values of a table's column kind: a microbleed, and a spot that a reader judged not to be one."""

_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)", re.IGNORECASE)


def find(root: Path) -> cases.DatasetIndex:
    """The scans of a folder, including those without truth, which can still be searched.

    Raises:
        UserError: the folder is missing or empty, or patients.csv cannot be read.
    """
    root = cases.check_root(root)
    patients = _patients(root)
    groups: dict[str, dict[str, list[Path]]] = {}
    found = cases.Collector()
    for path in cases.walk(root):
        if path.name.casefold() == _PATIENTS:
            continue
        case_id, word = case_and_word(path, root)
        if word is not None:
            groups.setdefault(case_id, {}).setdefault(word, []).append(path)
        elif cases.is_nifti(path) and "mimics" not in path.name.casefold():
            what = "its name ends in no known word (swi, phase, mask, ...); see the documentation"
            found.problems.append(cases.Problem(cases.relative(path, root), what, "left out"))
    for case_id, files in groups.items():
        with found.skipping(case_id):
            found.cases.append(_case(case_id, files, root, patients))
    return found.index("folder")


def case_and_word(path: Path, root: Path) -> tuple[str, str | None]:
    """Case ID of a file, and its role, "mask" or "points"; None if its last word is unknown."""
    is_table = path.suffix.lower() == ".csv"
    if not is_table and not cases.is_nifti(path):
        return "", None
    # The last word says what the file is; the words before it name the case, without the BIDS entities that
    # differ between the images of one scan.
    before, _, last = stem(path.name).rpartition("_")
    last = last.casefold()
    word: str | None
    if is_table:
        word = "points" if last in _POINT_WORDS else None
    elif last in _MASK_WORDS:  # simulated data sets also have labels of mimics
        word = None if "mimics" in before.casefold() else "mask"
    else:
        word = _ROLE_WORDS.get(last)
    part = re.search(r"(^|_)part-(mag|phase)(?=_|$)", before, re.IGNORECASE)
    if part and word not in (None, "mask", "points"):  # in BIDS the suffix gives the contrast, not the part
        word = _ROLE_WORDS[part.group(2).casefold()]
    case_id = re.sub(r"(^|_)(part|desc|echo|run)-[A-Za-z0-9]+(?=_|$)", "", before, flags=re.IGNORECASE)
    folder = path.parent.relative_to(root).as_posix()
    return (case_id.strip("_") or (folder if folder != "." else "scan")), word


def _patients(root: Path) -> dict[str, str]:
    path = cases.child(root, _PATIENTS)
    if path is None:
        return {}
    rows = read_csv(path, ("case_id", "patient_id"))
    return {row["case_id"].casefold(): row["patient_id"] for row in rows}


def _patient(case_id: str, image: str, patients: dict[str, str]) -> str:
    """From patients.csv, else sub-*, else the topmost folder, else the case itself."""
    stated = patients.get(case_id.casefold())
    if stated:
        return stated
    subject = _SUBJECT.match(case_id) or _SUBJECT.search(image)
    if subject:
        return subject.group(1)
    return image.split("/")[0] if "/" in image else case_id


def _case(case_id: str, files: dict[str, list[Path]], root: Path, patients: dict[str, str]) -> cases.Case:
    for word, paths in files.items():
        if len(paths) > 1:
            names = ", ".join(cases.relative(path, root) for path in paths)
            raise UserError(f"two files for its {word} ({names}); keep one, or give the cases two names")
    single = {word: paths[0] for word, paths in files.items()}
    images: dict[cases.Role, str] = {
        role: cases.relative(single[role], root) for role in cases.ROLES if role in single
    }
    if not images:
        names = ", ".join(cases.relative(path, root) for path in single.values())
        raise UserError(f"has a truth ({names}), but no image")
    if "mask" in single and "points" in single:
        raise UserError("has a mask and a table of points; keep the one that is the truth")
    truth: cases.MaskTruth | cases.PointTruth | None = None
    if "mask" in single:
        truth = cases.MaskTruth(path=cases.relative(single["mask"], root))
    elif "points" in single:
        truth = _read_points(single["points"], cases.relative(single["points"], root))
    return cases.Case(
        case_id=case_id,
        patient_id=_patient(case_id, next(iter(images.values())), patients),
        cohort="own",
        images=images,
        truth=truth,
        notes=() if truth is not None else ("no truth",),
    )


def _read_points(path: Path, source: str) -> cases.PointTruth:
    """Centers in RAS mm from a CSV table with x_mm, y_mm, z_mm and perhaps diameter_mm and kind.

    Raises:
        UserError: see `read_csv`; a value that is not a finite number, a diameter of 0 or less, no kind.
    """
    rows = read_csv(path, ("x_mm", "y_mm", "z_mm"))
    for line, row in enumerate(rows, start=2):
        if row.get("kind") == "":
            raise UserError(f"{path}: line {line}: kind is empty; write cmb, or what it is instead")
    measured = bool(rows) and "diameter_mm" in rows[0]
    columns = ("x_mm", "y_mm", "z_mm", "diameter_mm") if measured else ("x_mm", "y_mm", "z_mm")
    values: dict[str, list[tuple[float, ...]]] = {LESION_KIND: [], MIMIC_KIND: []}
    for line, row in enumerate(rows, start=2):
        kind = row.get("kind", LESION_KIND).casefold()
        if kind in values:
            values[kind].append(tuple(_number(row, name, path, line) for name in columns))
    lesions = values[LESION_KIND]
    return cases.PointTruth(
        convention="ras-mm",
        points=tuple((x, y, z) for x, y, z, *_ in lesions),
        diameters_mm=tuple(row[3] for row in lesions) if measured else None,
        source=source,
        mimics=tuple((x, y, z) for x, y, z, *_ in values[MIMIC_KIND]),
    )


def _number(row: dict[str, str], name: str, path: Path, line: int) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (name == "diameter_mm" and value <= 0):
        raise UserError(f"{path}: line {line}: {name} is {row[name]!r}, but it must be a number")
    return value
