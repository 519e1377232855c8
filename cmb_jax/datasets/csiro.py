"""CSIRO (Momeni et al. 2021): SWI with real and with synthetic microbleeds, centers in Excel tables.

    PublicDataShare_2020/rCMB_DefiniteSubject/122_T1.nii.gz           real microbleeds
                         NoCMBSubject/*.nii.gz                        none
                         sCMB_DefiniteSubject/122_T1_rsCMB_3.nii.gz   synthetic ones added to the real ones
                         sCMB_NoCMBSubject/130_T2_sCMB_1.nii.gz       synthetic ones alone
                         rCMBInformationInfo.xlsx, sCMBInformationInfo.xlsx,
                         sCMBLocationInformationInfoNocmb.xlsx

A row of a table is a file name and then x, y, z triplets, voxels counted from 1; only the first column of a
triplet has a heading, unused cells hold blanks, and triplets occur twice. A name is patient, time point, and
for synthetic ones what was added, so that all scans of a patient, real or not, belong on one side of a split.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cmb_jax.datasets.listing import check_root, child, distinct, is_nifti, one_each, relative, stem, visible
from cmb_jax.datasets.sheets import Row, number, read_sheet
from cmb_jax.datasets.types import Case, DatasetIndex, PointTruth, Problem
from cmb_jax.errors import UserError

TABLES = {
    "rCMB_DefiniteSubject": "rCMBInformationInfo.xlsx",
    "NoCMBSubject": None,
    "sCMB_DefiniteSubject": "sCMBInformationInfo.xlsx",
    "sCMB_NoCMBSubject": "sCMBLocationInformationInfoNocmb.xlsx",
}
REAL, ADDED_TO_REAL = "rCMB_DefiniteSubject", "sCMB_DefiniteSubject"

Triplet = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One of the tables; keys are file names without suffix, in small letters."""

    path: Path
    triplets: dict[str, list[Triplet]]  # repeats as they stand; rows of one file put together
    unreadable: dict[str, str]  # rows that are no triplets, and why


def find(root: Path) -> DatasetIndex:
    """The cases below PublicDataShare_2020, or below a folder that holds it (also in its folder data).

    Raises:
        UserError: the folder is missing or empty, or a table is no workbook or lacks its columns.
    """
    root = check_root(root)
    top = top_folder(root)
    tables: dict[str, Table | None] = {}
    for folder_name, table in TABLES.items():
        path = child(top, table) if table else None
        tables[folder_name] = read_table(path) if path is not None else None
    cases: list[Case] = []
    problems: list[Problem] = []
    for folder_name in TABLES:
        folder = child(top, folder_name)
        if folder is None or not folder.is_dir():
            problems.append(Problem(where=folder_name, what="the folder is missing", level="note"))
            continue
        found, wrong = _cases(folder, folder_name, root, tables)
        cases += found
        problems += wrong
    kept, twice = distinct(cases)
    return DatasetIndex(kind="csiro", cases=kept, problems=(*problems, *twice))


def top_folder(root: Path) -> Path:
    """The folder that holds the four folders and the tables, the root itself if nothing else fits."""
    for parts in (("PublicDataShare_2020",), ("data", "PublicDataShare_2020")):
        folder: Path | None = root
        for part in parts:
            folder = child(folder, part) if folder is not None and folder.is_dir() else None
        if folder is not None and folder.is_dir():
            return folder
    return root


def read_table(path: Path) -> Table:
    """Triplets of each scan.

    Raises:
        UserError: no workbook, or no column of file names followed by triplets.
    """
    rows = read_sheet(path)
    header = rows[0] if rows else ()
    named = [str(cell).casefold() if cell is not None else "" for cell in header]
    if len(named) < 2 or "file name" not in named[0] or "location" not in named[1]:
        raise UserError(
            f"{path}: lacks the expected columns: the first row must start with 'NIFTI File Name' and "
            "'Location CMB # 1', and triplets x, y, z must follow"
        )
    table = Table(path=path, triplets={}, unreadable={})
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if row[0] is None:
            table.unreadable[f"row {line}"] = f"{path}: row {line} has centers, but no file name"
            continue
        key = stem(str(row[0])).casefold()
        try:
            table.triplets.setdefault(key, []).extend(_triplets(row, path, line))
        except UserError as error:
            table.unreadable[key] = str(error)
    return table


def _triplets(row: Row, path: Path, line: int) -> list[Triplet]:
    found = []
    for start in range(1, len(row), 3):
        cells = (*row[start : start + 3], None, None)[:3]
        if all(cell is None for cell in cells):
            continue
        x, y, z = (
            number(cell, path, line, f"{axis} of triplet {start // 3 + 1}")
            for axis, cell in zip("xyz", cells, strict=True)
        )
        found.append((x, y, z))
    return found


def _cases(
    folder: Path, name: str, root: Path, tables: dict[str, Table | None]
) -> tuple[list[Case], list[Problem]]:
    scans, problems = one_each((path for path in visible(folder) if is_nifti(path)), root, "images")
    table = tables[name]
    if TABLES[name] and table is None:
        what = f"{TABLES[name]} is missing, so the truth of its {len(scans)} scans is unknown"
        return [], [*problems, Problem(where=name, what=what)]
    if name == ADDED_TO_REAL and tables[REAL] is None:
        what = f"{TABLES[REAL]} is missing, so the real microbleeds in its {len(scans)} scans are unknown"
        return [], [*problems, Problem(where=name, what=what)]
    cases = []
    for key, path in scans.items():
        if table is not None and key in table.unreadable:
            continue
        if table is not None and key not in table.triplets:
            problems.append(Problem(where=stem(path.name), what=f"has no row in {TABLES[name]}"))
            continue
        stated = table.triplets[key] if table is not None else []
        source_scan = key.partition("_rscmb")[0]
        real_table = tables[REAL] if name == ADDED_TO_REAL else None
        if real_table is not None and source_scan in real_table.unreadable:
            problems.append(Problem(where=stem(path.name), what=real_table.unreadable[source_scan]))
            continue
        real = real_table.triplets.get(source_scan, []) if real_table is not None else []
        points = tuple(dict.fromkeys([*stated, *real]))
        notes = []
        if len(set(stated)) < len(stated):
            notes.append(f"{len(stated) - len(set(stated))} repeated triplets were dropped")
        if len(points) > len(set(stated)):
            added = len(points) - len(set(stated))
            notes.append(
                f"{added} real microbleeds of the scan that it was made from were added to the truth"
            )
        cases.append(
            Case(
                case_id=stem(path.name),
                patient_id=key.partition("_")[0],
                cohort=name,
                images={"swi": relative(path, root)},
                truth=PointTruth(convention="voxel-1", points=points, source=TABLES[name] or ""),
                notes=tuple(notes),
            )
        )
    if table is None:
        return cases, problems
    problems += [Problem(where=key, what=what) for key, what in table.unreadable.items()]
    for key in sorted(table.triplets.keys() - scans.keys() - table.unreadable.keys()):
        problems.append(Problem(where=key, what=f"is in {TABLES[name]}, but {name} has no such image"))
    return cases, problems
