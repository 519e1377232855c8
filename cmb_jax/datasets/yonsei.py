"""Yonsei and Gachon (Al-masni et al. 2020): SWI, phase and magnitude, and an Excel table for each subject.

    HR/Data/S001/SWI.nii.gz, Phase.nii.gz, Mag.nii.gz      or HR/Data/S001_SWI.nii.gz, ...
    HR/Label/S001.xlsx                                     or beside the images

Each row of a table is one microbleed: slice, column, row. The authors do not say from what they count and
give no header; 1 is taken, as their programs are MATLAB's. Where no table is found, nothing is assumed.
"""

from __future__ import annotations

import re
from pathlib import Path

from cmb_jax.datasets.listing import check_root, distinct, is_nifti, relative, stem, walk
from cmb_jax.datasets.sheets import Row, number, read_sheet
from cmb_jax.datasets.types import Case, DatasetIndex, PointTruth, Problem, Role
from cmb_jax.errors import UserError

_WORDS: dict[str, Role] = {
    "swi": "swi",
    "phase": "phase",
    "pha": "phase",
    "ph": "phase",
    "magnitude": "magnitude",
    "mag": "magnitude",
}
_SHARED = {"data", "label", "labels", "images", "hr", "lr", "excel"}  # folders that name no subject
_HEADINGS = (
    ("slice", {"slice", "slices", "z", "k"}),
    ("column", {"column", "col", "columns", "x", "i"}),
    ("row", {"row", "rows", "y", "j"}),
)


def find(root: Path) -> DatasetIndex:
    """The subjects with an SWI and a table.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = check_root(root)
    images: dict[tuple[str, str], dict[Role, list[Path]]] = {}
    tables: dict[tuple[str, str], list[Path]] = {}
    for path in walk(root):
        if is_nifti(path):
            subject, role = subject_and_role(path, root)
            if role is not None:
                images.setdefault((_cohort(path, root), subject), {}).setdefault(role, []).append(path)
        elif path.suffix.lower() in (".xlsx", ".xls") and not path.name.startswith("~"):
            tables.setdefault((_cohort(path, root), _subject_of_table(path, root)), []).append(path)
    cases, problems = [], []
    for key in sorted(images):
        found, wrong = _case(key, images[key], tables.get(key, []), root)
        problems += wrong
        if found is not None:
            cases.append(found)
    for key in sorted(tables.keys() - images.keys()):
        where = relative(tables[key][0], root)
        problems.append(Problem(where=where, what="is a table without images of its name"))
    kept, twice = distinct(cases)
    return DatasetIndex(kind="yonsei", cases=kept, problems=(*problems, *twice))


def _cohort(path: Path, root: Path) -> str:
    parts = {part.casefold() for part in path.relative_to(root).parts[:-1]}
    return "HR" if "hr" in parts else "LR" if "lr" in parts else "unknown"


def _own_folder(path: Path, root: Path) -> str | None:
    """The nearest folder below the root that names neither a part of the set nor a role."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.casefold() not in _SHARED and part.casefold() not in _WORDS:
            return part.casefold()
    return None


def subject_and_role(path: Path, root: Path) -> tuple[str, Role | None]:
    """Subject (small letters) and role of an image, from its name or else from its folders' names."""
    name = stem(path.name)
    for word, role in _WORDS.items():
        rest = re.sub(rf"(^|[_\-. ]){word}($|[_\-. ])", "", name, count=1, flags=re.IGNORECASE)
        if rest != name:
            return (_own_folder(path, root) or rest.strip("_-. ").casefold()), role
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.casefold() in _WORDS:
            return (_own_folder(path, root) or name.casefold()), _WORDS[part.casefold()]
    return name.casefold(), None


def _subject_of_table(path: Path, root: Path) -> str:
    return _own_folder(path, root) or stem(path.name).casefold()


def _case(
    key: tuple[str, str], images: dict[Role, list[Path]], tables: list[Path], root: Path
) -> tuple[Case | None, list[Problem]]:
    cohort, subject = key
    for role, paths in images.items():
        if len(paths) > 1:
            names = ", ".join(relative(path, root) for path in paths)
            return None, [Problem(where=subject, what=f"two {role} images for one ID ({names}); keep one")]
    if "swi" not in images:
        return None, [Problem(where=subject, what="has no SWI image, on which the centers are given")]
    if len(tables) != 1:
        what = f"has {len(tables)} Excel tables; one is needed, also for a subject without microbleeds"
        return None, [Problem(where=subject, what=what)]
    try:
        points, repeats = read_table(tables[0])
    except UserError as error:
        return None, [Problem(where=subject, what=str(error))]
    missing = [role for role in ("phase", "magnitude") if role not in images]
    wrong = (
        [Problem(where=subject, what=f"no {' and no '.join(missing)} image", level="note")] if missing else []
    )
    return (
        Case(
            case_id=f"{cohort}-{subject}" if cohort != "unknown" else subject,
            patient_id=subject,
            cohort=cohort,
            images={role: relative(paths[0], root) for role, paths in sorted(images.items())},
            truth=PointTruth(
                convention="slice-column-row-1", points=points, source=relative(tables[0], root)
            ),
            notes=(f"{repeats} repeated rows were dropped",) if repeats else (),
        ),
        wrong,
    )


def read_table(path: Path) -> tuple[tuple[tuple[float, float, float], ...], int]:
    """The different (slice, column, row), and how many rows repeat one of them. An empty table has none.

    Raises:
        UserError: no workbook, or other columns than slice, column, row (a first line may name them).
    """
    rows = [
        (line, row) for line, row in enumerate(read_sheet(path), start=1) if any(c is not None for c in row)
    ]
    if rows and isinstance(rows[0][1][0], str) and not _is_number(rows[0][1][0]):
        _check_header(rows[0][1], path)
        rows = rows[1:]
    found = []
    for line, row in rows:
        if len(row) < 3:
            raise UserError(f"{path}: lacks the expected columns slice, column, row: row {line} is shorter")
        s, c, r = (number(row[n], path, line, _HEADINGS[n][0]) for n in range(3))
        found.append((s, c, r))
    points = tuple(dict.fromkeys(found))
    return points, len(found) - len(points)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_header(header: Row, path: Path) -> None:
    words = [re.split(r"[\s(_\-]+", str(cell or "").casefold())[0] for cell in header[:3]]
    if len(words) < 3 or any(word not in names for word, (_, names) in zip(words, _HEADINGS, strict=True)):
        shown = ", ".join(str(cell) for cell in header[:3])
        raise UserError(f"{path}: lacks the expected columns slice, column, row: its first line is {shown}")
