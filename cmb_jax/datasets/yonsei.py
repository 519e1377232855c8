"""Yonsei and Gachon (Al-masni et al. 2020): SWI, phase and magnitude, and an Excel table for each subject.

    HR/Data/S001/SWI.nii.gz, Phase.nii.gz, Mag.nii.gz      or HR/Data/S001_SWI.nii.gz, ...
    HR/Label/S001.xlsx                                     or beside the images

Each row of a table is one microbleed: slice, column, row. The authors document neither headings nor whether
indices start at 0 or 1; 1 is assumed because their programs are written in MATLAB. A subject without a table
is not taken to be free of microbleeds.
"""

import re
from pathlib import Path

from cmb_jax.datasets import cases
from cmb_jax.datasets.tables import Row, number, read_sheet
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem

_WORDS: dict[str, cases.Role] = {
    "swi": "swi",
    "phase": "phase",
    "pha": "phase",
    "ph": "phase",
    "magnitude": "magnitude",
    "mag": "magnitude",
}
_SHARED = {"data", "label", "labels", "images", "hr", "lr", "excel"}  # folders that do not name a subject
_HEADINGS = {
    "slice": {"slice", "slices", "z", "k"},
    "column": {"column", "col", "columns", "x", "i"},
    "row": {"row", "rows", "y", "j"},
}


def looks_like(root: Path) -> bool:
    """Whether the folder has an image named SWI and a workbook."""
    files = list(cases.walk(root))
    swi = any(cases.is_nifti(path) and subject_and_role(path, root)[1] == "swi" for path in files)
    return swi and any(path.suffix.lower() == ".xlsx" for path in files)


def find(root: Path) -> cases.DatasetIndex:
    """The subjects with an SWI and a table.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = cases.check_root(root)
    images: dict[tuple[str, str], dict[cases.Role, list[Path]]] = {}
    tables: dict[tuple[str, str], list[Path]] = {}
    for path in cases.walk(root):
        if cases.is_nifti(path):
            subject, role = subject_and_role(path, root)
            if role is not None:
                images.setdefault((_cohort(path, root), subject), {}).setdefault(role, []).append(path)
        elif path.suffix.lower() in (".xlsx", ".xls") and not path.name.startswith("~"):
            subject = _subject_folder(path, root) or stem(path.name).casefold()
            tables.setdefault((_cohort(path, root), subject), []).append(path)
    found = cases.Collector()
    for key in sorted(images):
        with found.skipping(key[1]):
            case = _case(key, images[key], tables.get(key, []), root)
            missing = [role for role in ("phase", "magnitude") if role not in case.images]
            if missing:
                found.note(key[1], f"no {' and no '.join(missing)} image")
            found.cases.append(case)
    for key in sorted(tables.keys() - images.keys()):
        found.skip(cases.relative(tables[key][0], root), "is a table without images of its name")
    return found.index("yonsei")


def _cohort(path: Path, root: Path) -> str:
    parts = {part.casefold() for part in path.relative_to(root).parts[:-1]}
    return "HR" if "hr" in parts else "LR" if "lr" in parts else "unknown"


def _subject_folder(path: Path, root: Path) -> str | None:
    """The nearest folder below the root that names neither a part of the set nor a role."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.casefold() not in _SHARED and part.casefold() not in _WORDS:
            return part.casefold()
    return None


def subject_and_role(path: Path, root: Path) -> tuple[str, cases.Role | None]:
    """Subject (in lower case) and role of an image, from its name or else from its folders."""
    # Copies of the set differ: the role may be the file name, a part of it, or a folder name. The subject is
    # then the rest of the file name, or the nearest folder that is not a role.
    name = stem(path.name)
    for word, role in _WORDS.items():
        rest = re.sub(rf"(^|[_\-. ]){word}($|[_\-. ])", "", name, count=1, flags=re.IGNORECASE)
        if rest != name:
            return (_subject_folder(path, root) or rest.strip("_-. ").casefold()), role
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.casefold() in _WORDS:
            return (_subject_folder(path, root) or name.casefold()), _WORDS[part.casefold()]
    return name.casefold(), None


def _case(
    key: tuple[str, str], images: dict[cases.Role, list[Path]], tables: list[Path], root: Path
) -> cases.Case:
    """The case of a subject.

    Raises:
        UserError: no SWI, two images of one role, no table or several, or a table that cannot be read.
    """
    cohort, subject = key
    for role, paths in images.items():
        if len(paths) > 1:
            names = ", ".join(cases.relative(path, root) for path in paths)
            raise UserError(f"two {role} images for one ID ({names}); keep one")
    if "swi" not in images:
        raise UserError("has no SWI image, on which the centers are given")
    if len(tables) != 1:
        raise UserError(
            f"has {len(tables)} Excel tables; one is needed, also for a subject without microbleeds"
        )
    rows = read_table(tables[0])
    points = tuple(dict.fromkeys(rows))
    repeats = len(rows) - len(points)
    return cases.Case(
        case_id=f"{cohort}-{subject}" if cohort != "unknown" else subject,
        patient_id=subject,
        cohort=cohort,
        images={role: cases.relative(paths[0], root) for role, paths in sorted(images.items())},
        truth=cases.PointTruth(
            convention="slice-column-row-1", points=points, source=cases.relative(tables[0], root)
        ),
        notes=(f"{repeats} repeated rows were dropped",) if repeats else (),
    )


def read_table(path: Path) -> list[tuple[float, float, float]]:
    """(slice, column, row) of each row, including repeats; none for an empty table.

    Raises:
        UserError: not a workbook, or other columns than slice, column, row (a first line may name them).
    """
    lines = [(line, row) for line, row in enumerate(read_sheet(path), start=1) if row]
    if lines and _is_heading(lines[0][1], path):
        lines = lines[1:]
    rows = []
    for line, row in lines:
        if len(row) < 3:
            raise UserError(f"{path}: lacks the expected columns slice, column, row: row {line} is shorter")
        s, c, r = (number(cell, path, line, name) for cell, name in zip(row, _HEADINGS, strict=False))
        rows.append((s, c, r))
    return rows


def _is_heading(row: Row, path: Path) -> bool:
    """Whether a first row names the columns. Raises UserError if it names others."""
    if not isinstance(row[0], str):
        return False
    try:
        float(row[0])
        return False
    except ValueError:
        pass
    words = [re.split(r"[\s(_\-]+", str(cell or "").casefold())[0] for cell in row[:3]]
    if len(words) < 3 or any(
        word not in names for word, names in zip(words, _HEADINGS.values(), strict=True)
    ):
        shown = ", ".join(str(cell) for cell in row[:3])
        raise UserError(f"{path}: lacks the expected columns slice, column, row: its first line is {shown}")
    return True
