"""CSIRO (Momeni et al. 2021): SWI with real and with synthetic microbleeds, centers in Excel tables.

    PublicDataShare_2020/rCMB_DefiniteSubject/122_T1.nii.gz           real microbleeds
                         NoCMBSubject/*.nii.gz                        none
                         sCMB_DefiniteSubject/122_T1_rsCMB_3.nii.gz   synthetic ones added to the real ones
                         sCMB_NoCMBSubject/130_T2_sCMB_1.nii.gz       synthetic ones alone
                         rCMBInformationInfo.xlsx, sCMBInformationInfo.xlsx,
                         sCMBLocationInformationInfoNocmb.xlsx

A row of a table is a file name followed by x, y, z triplets of voxel indices from 1. Only the first column of
a triplet has a heading, unused cells hold blanks, and some triplets are repeated. A file name consists of
patient and time point, and for synthetic microbleeds of what was added: all scans of a patient, real or
synthetic, belong to one part of a split.
"""

from collections.abc import Mapping
from pathlib import Path

from cmb_jax.datasets import cases
from cmb_jax.datasets.tables import Row, number, read_sheet
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem

TABLES = {
    "rCMB_DefiniteSubject": "rCMBInformationInfo.xlsx",
    "NoCMBSubject": "",
    "sCMB_DefiniteSubject": "sCMBInformationInfo.xlsx",
    "sCMB_NoCMBSubject": "sCMBLocationInformationInfoNocmb.xlsx",
}
"""Folders and their tables; empty: the scans have no microbleeds."""
_REAL, _ADDED_TO_REAL = "rCMB_DefiniteSubject", "sCMB_DefiniteSubject"

Triplet = tuple[float, float, float]
Table = dict[str, list[Triplet] | UserError]
"""By file name (lower case, no suffix): the triplets with repeats, or why its row cannot be read."""


def looks_like(root: Path) -> bool:
    """Whether one of the four folders exists."""
    top = top_folder(root)
    return any(cases.child(top, name) is not None for name in TABLES)


def find(root: Path) -> cases.DatasetIndex:
    """The cases below PublicDataShare_2020, or below a folder that holds it (also in its folder data).

    Raises:
        UserError: the folder is missing or empty, or a table is not a workbook or lacks its columns.
    """
    root = cases.check_root(root)
    top = top_folder(root)
    tables = {
        folder: read_table(path)
        for folder, file in TABLES.items()
        if file and (path := cases.child(top, file)) is not None
    }
    found = cases.Collector()
    for name in TABLES:
        folder = cases.child(top, name)
        if folder is not None and folder.is_dir():
            _collect(folder, name, root, tables, found)
        else:
            found.note(name, "the folder is missing")
    return found.index("csiro")


def top_folder(root: Path) -> Path:
    """The folder of the four folders and the tables; the root itself if nothing else fits."""
    # archives unpack with one or two levels of folders above the data
    for parts in (("PublicDataShare_2020",), ("data", "PublicDataShare_2020")):
        folder: Path | None = root
        for part in parts:
            folder = cases.child(folder, part) if folder is not None and folder.is_dir() else None
        if folder is not None and folder.is_dir():
            return folder
    return root


def read_table(path: Path) -> Table:
    """Triplets of each scan; several rows of one file are joined.

    Raises:
        UserError: not a workbook, or no column of file names followed by triplets.
    """
    rows = read_sheet(path)
    heading = [str(cell or "").casefold() for cell in rows[0]] if rows else []
    if len(heading) < 2 or "file name" not in heading[0] or "location" not in heading[1]:
        raise UserError(
            f"{path}: lacks the expected columns: the first row must start with 'NIFTI File Name' and "
            "'Location CMB # 1', and triplets x, y, z must follow"
        )
    table: Table = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if row[0] is None:
            table[f"row {line}"] = UserError(f"{path}: row {line} has centers, but no file name")
            continue
        key = stem(str(row[0])).casefold()
        try:
            triplets = table.setdefault(key, [])
            if isinstance(triplets, list):
                triplets += _triplets(row, path, line)
        except UserError as error:
            table[key] = error
    return table


def _triplets(row: Row, path: Path, line: int) -> list[Triplet]:
    triplets = []
    for start in range(1, len(row), 3):
        cells = (*row[start : start + 3], None, None)[:3]
        if all(cell is None for cell in cells):
            continue
        x, y, z = (
            number(cell, path, line, f"{axis} of triplet {start // 3 + 1}")
            for axis, cell in zip("xyz", cells, strict=True)
        )
        triplets.append((x, y, z))
    return triplets


def _collect(
    folder: Path, name: str, root: Path, tables: Mapping[str, Table], found: cases.Collector
) -> None:
    scans = found.one_each((path for path in cases.visible(folder) if cases.is_nifti(path)), root, "images")
    if TABLES[name] and name not in tables:
        found.skip(name, f"{TABLES[name]} is missing, so the truth of its {len(scans)} scans is unknown")
        return
    if name == _ADDED_TO_REAL and _REAL not in tables:
        what = f"{TABLES[_REAL]} is missing, so the real microbleeds in its {len(scans)} scans are unknown"
        found.skip(name, what)
        return
    for key, path in scans.items():
        with found.skipping(stem(path.name)):
            found.cases.append(_case(key, path, name, root, tables))
    for key, entry in sorted(tables.get(name, {}).items()):
        if key not in scans:
            what = f"is in {TABLES[name]}, but {name} has no such image"
            found.skip(key, str(entry) if isinstance(entry, UserError) else what)


def _case(key: str, path: Path, name: str, root: Path, tables: Mapping[str, Table]) -> cases.Case:
    """One scan. If synthetic microbleeds were added to a scan with real ones, the truth has both.

    Raises:
        UserError: the scan has no row, or a row that belongs to it cannot be read.
    """
    if name in tables and key not in tables[name]:
        raise UserError(f"has no row in {TABLES[name]}")
    stated = _triplets_of(key, tables.get(name, {}))
    real = _triplets_of(key.partition("_rscmb")[0], tables[_REAL]) if name == _ADDED_TO_REAL else []
    # The table of synthetic microbleeds lists only those. Used alone, it would label the real ones in the
    # same image as background, and a detector would learn not to find them.
    points = tuple(dict.fromkeys([*stated, *real]))
    repeats = len(stated) - len(set(stated))
    added = len(points) - len(set(stated))
    notes = []
    if repeats:
        notes.append(f"{repeats} repeated triplets were dropped")
    if added:
        notes.append(f"{added} real microbleeds of the scan that it was made from were added to the truth")
    return cases.Case(
        case_id=stem(path.name),
        patient_id=key.partition("_")[0],
        cohort=name,
        images={"swi": cases.relative(path, root)},
        truth=cases.PointTruth(convention="voxel-1", points=points, source=TABLES[name]),
        notes=tuple(notes),
    )


def _triplets_of(key: str, table: Table) -> list[Triplet]:
    entry = table.get(key, [])
    if isinstance(entry, UserError):
        raise entry
    return entry
