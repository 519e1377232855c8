"""Verdicts in the workbook that Microbleed-review-viewer exports: sheet `findings`, a block a reader.

Its columns: case_id, origin (Source or Manual), ras_l, ras_p, ras_s (RAS mm as imported) and, for each
reader, "NAME · verify" (1, 0 or empty), "NAME · mimic" and "NAME · final_l", "final_p", "final_s".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmb_jax.datasets.tables import Cell, number, read_sheet
from cmb_jax.errors import UserError
from cmb_jax.review.marks import MIMIC_KINDS, Mark, Verdict
from cmb_jax.review.result import Result, positions_mm
from cmb_jax.review.spreadsheet import text_of

_NEEDED = ("case_id", "origin", "ras_l", "ras_p", "ras_s")
_SEPARATOR = " · "
_VERIFY = f"{_SEPARATOR}verify"
_SAME_PLACE_MM = 0.05  # the viewer hands on what it read; numbers may have been rounded on the way


def read_viewer_export(path: Path, result: Result) -> list[list[Mark]]:
    """The marks of each reader, in the order of their names, from the rows of this result's subject.

    A finding is the candidate at the place that it was imported with; row numbers say nothing once
    workbooks of several scans were joined.

    Raises:
        UserError: see `read_sheet`; not such a workbook, no row of the subject, no reader, a finding at no
            candidate's place, a verdict that is none.
    """
    header, *rows = read_sheet(path) or [()]
    names = [text_of(name) for name in header]
    readers = sorted(name.removesuffix(_VERIFY) for name in names if name.endswith(_VERIFY))
    if not set(_NEEDED) <= set(names) or not readers:
        raise UserError(
            f"{path}: is neither the spreadsheet of cmb-jax review export nor an export of "
            "Microbleed-review-viewer (first sheet, first row)"
        )
    found: list[list[Mark]] = [[] for _ in readers]
    seen = False
    for line, cells in enumerate(rows, start=2):
        row = dict(zip(names, (*cells, *[None] * (len(names) - len(cells))), strict=False))
        if text_of(row["case_id"]) != result.subject:
            continue
        seen = True
        candidate = _candidate(row, path, line, result)
        for marks, reader in zip(found, readers, strict=True):
            mark = _mark(row, reader, candidate, path, line)
            if mark is not None:
                marks.append(mark)
    if not seen:
        raise UserError(
            f"{path}: no row has the case_id {result.subject!r}; give the export of this scan "
            "(or the --subject that it was exported with)"
        )
    return found


def _candidate(row: dict[str, Cell], path: Path, line: int, result: Result) -> int | None:
    """Id of the candidate at the imported place; None for a finding that a reader added."""
    if text_of(row["origin"]).casefold() == "manual":
        return None
    place = [number(row[name], path, line, name) for name in _NEEDED[2:]]
    apart = np.linalg.norm(positions_mm(result.rows) - place, axis=1)
    if not len(apart) or apart.min() > _SAME_PLACE_MM:
        shown = ", ".join(f"{value:g}" for value in place)
        raise UserError(
            f"{path}: row {line}: no candidate of {result.folder} lies at ({shown}); "
            "was the workbook exported from another run?"
        )
    return result.rows[int(apart.argmin())].id


def _mark(row: dict[str, Cell], reader: str, candidate: int | None, path: Path, line: int) -> Mark | None:
    where = f"{path}: row {line}"
    verify = text_of(row[f"{reader}{_VERIFY}"])
    if verify not in ("", "0", "1"):
        raise UserError(f"{where}: verify is {verify!r}; allowed: 1, 0, or empty")
    if not verify:
        return None
    kind = text_of(row.get(f"{reader}{_SEPARATOR}mimic")).casefold()
    final = [row.get(f"{reader}{_SEPARATOR}final_{axis}") for axis in "lps"]
    placed = [row[name] for name in _NEEDED[2:]] if None in final else final
    x, y, z = (number(value, path, line, name) for value, name in zip(placed, _NEEDED[2:], strict=True))
    return Mark(
        candidate=candidate,
        verdict=Verdict.MICROBLEED if verify == "1" else Verdict.MIMIC,
        mimic=kind if verify == "0" and kind in MIMIC_KINDS else "",
        position_mm=(x, y, z),
        where=where,
    )
