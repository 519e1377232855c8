"""A reader's marks, from any kind of file, assigned to the candidates of one result."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.errors import UserError
from cmb_jax.evaluation.matching import CENTER3, Pairs, center_distances, match
from cmb_jax.io.outside import check_is_file, read_json, reading
from cmb_jax.review.outside_viewers import read_markups, read_painted
from cmb_jax.review.result import Result, positions_mm
from cmb_jax.review.spreadsheet import is_spreadsheet_of_ours, read_spreadsheet, read_viewer_export
from cmb_jax.review.verdicts import Mark, Verdict, is_verdicts, read_verdicts

MAX_MOVE_MM = 10.0
"""A microbleed is at most 10 mm wide: a center that was moved farther is on something else."""

_SAME_PLACE_MM = 0.05  # tables have two decimals
_LPS_RAS = np.array([-1.0, -1.0, 1.0])  # LPS to RAS and back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one reader says about one scan."""

    marks: tuple[Mark, ...]  # one for each candidate, in the order of the result's rows
    added: tuple[Mark, ...] = ()  # lesions that the reader added, each with a verdict
    reader: str = ""  # initials, if the file has them; never written out

    @property
    def microbleeds(self) -> tuple[Mark, ...]:
        """All marks that the reader calls microbleeds."""
        return tuple(mark for mark in (*self.marks, *self.added) if mark.verdict is Verdict.MICROBLEED)


def read_readings(path: Path, result: Result) -> list[Reading]:
    """The readings in a file: of our viewer, a spreadsheet, Slicer markups, a label image, or the workbook of
    Microbleed-review-viewer.

    Only that workbook can hold more than one reader; they come in the order of their names.

    Raises:
        UserError: no such file or format; see the readers of each and `settle`.
    """
    path = Path(path)
    with reading(path, "give what the reader saved", missing="no such file; give what the reader saved"):
        check_is_file(path, "give what the reader saved")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        marks, removed = read_painted(path, result)
    elif name.endswith(".json"):
        if _holds_verdicts(path):
            verdicts = read_verdicts(path, result)
            read = settle(path, verdicts.marks, set(), result)
            return [dataclasses.replace(read, reader=verdicts.reader)]
        marks, removed = read_markups(path, result)
    elif name.endswith(".xlsx"):
        if not is_spreadsheet_of_ours(path):
            return [settle(path, each, set(), result) for each in read_viewer_export(path, result)]
        marks, removed = read_spreadsheet(path, result), set()
    else:
        raise UserError(
            f"{path}: give verdicts of the viewer (.json), a spreadsheet (.xlsx), 3D Slicer markups "
            "(.mrk.json) or a label image (.nii.gz)"
        )
    return [settle(path, marks, removed, result)]


def _holds_verdicts(path: Path) -> bool:
    """Whether a JSON file is the viewer's; a damaged one is not, and the reader of markups reports it."""
    try:
        return is_verdicts(read_json(path))
    except UserError:
        return False


def check_readers(readings: Sequence[Reading]) -> None:
    """Check that no reader is given twice.

    Raises:
        UserError: two readings with the same initials.
    """
    names = [reading.reader for reading in readings if reading.reader]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UserError(
            f"reader {twice[0]}: two of the files are by this reader; give one, or, if these are two people, "
            "let one of them save the verdicts under other initials"
        )


def settle(path: Path, marks: Sequence[Mark], removed: set[int], result: Result) -> Reading:
    """One mark for each candidate, and the added lesions.

    An added mark within 3 mm of a candidate that has no verdict is taken as that candidate's. Candidates that
    were removed from the file are mimics of unknown kind; others without a mark were not read.

    Raises:
        UserError: an unknown or repeated candidate, or a position outside the volume or more than
            `MAX_MOVE_MM` from its candidate.
    """
    judged = _marks_by_candidate(path, marks, result)
    added = [mark for mark in marks if mark.candidate is None]
    centers = dict(zip((row.id for row in result.rows), positions_mm(result.rows), strict=True))
    # the detector may place a center slightly outside the volume: check only what a reader moved
    moved = [
        mark for n, mark in judged.items() if np.linalg.norm(mark.position_mm - centers[n]) > _SAME_PLACE_MM
    ]
    _check_inside(path, [*moved, *added], result)
    for mark in moved:
        _check_move(mark, centers)
    unjudged = [n for n in centers if n not in judged or judged[n].verdict is None]
    unjudged_mm = np.array([centers[n] for n in unjudged])
    distance = center_distances(np.array([mark.position_mm for mark in added]), unjudged_mm)
    partner = match(Pairs(allowed=distance < CENTER3.limit, cost=distance, one_to_one=True)).lesion
    for mark, column in zip(added, partner, strict=True):
        if column >= 0:
            judged[unjudged[column]] = dataclasses.replace(mark, candidate=unjudged[column])
    return Reading(
        marks=tuple(judged.get(row.id) or _unmarked(row, row.id in removed) for row in result.rows),
        added=tuple(mark for mark, column in zip(added, partner, strict=True) if column < 0),
    )


def added_groups(readings: Sequence[Reading]) -> list[list[Mark]]:
    """Added lesions: marks of different readers less than 3 mm apart, matched one to one, are one lesion."""
    groups: list[list[Mark]] = []
    for each in readings:
        # one to one, so that two marks of one reader never fall into one group
        centers = np.array([np.mean([mark.position_mm for mark in group], axis=0) for group in groups])
        new = np.array([mark.position_mm for mark in each.added])
        distance = center_distances(new, centers)
        found = match(Pairs(allowed=distance < CENTER3.limit, cost=distance, one_to_one=True))
        for mark, column in zip(each.added, found.lesion, strict=True):
            if column >= 0:
                groups[column].append(mark)
            else:
                groups.append([mark])
    return groups


def _marks_by_candidate(path: Path, marks: Sequence[Mark], result: Result) -> dict[int, Mark]:
    """The marks that name their candidate, by its id."""
    known = {row.id for row in result.rows}
    judged: dict[int, Mark] = {}
    for mark in marks:
        if mark.candidate is None:
            continue
        if mark.candidate not in known:
            raise UserError(
                f"{mark.where}: candidate {mark.candidate} is not in {result.folder}; "
                "is the file of another scan or another run?"
            )
        if mark.candidate in judged:
            raise UserError(
                f"{mark.where}: candidate {mark.candidate} is listed twice; keep one in {path.name}"
            )
        judged[mark.candidate] = mark
    return judged


def _unmarked(row: DetectionRow, removed: bool) -> Mark:
    return Mark(
        candidate=row.id,
        verdict=Verdict.MIMIC if removed else None,
        position_mm=(row.x_mm, row.y_mm, row.z_mm),
    )


def _check_move(mark: Mark, centers: Mapping[int, np.ndarray]) -> None:
    assert mark.candidate is not None
    center_mm = centers[mark.candidate]
    apart = float(np.linalg.norm(mark.position_mm - center_mm))
    if apart <= MAX_MOVE_MM:
        return
    text = f"{mark.where}: lies {apart:.0f} mm from candidate {mark.candidate} (at most {MAX_MOVE_MM:g})"
    # the commonest mistake: a file in LPS read as RAS or the reverse
    if float(np.linalg.norm(mark.position_mm * _LPS_RAS - center_mm)) <= MAX_MOVE_MM:
        raise UserError(f"{text}, but fits with x and y negated: it is in the other system (LPS, RAS)")
    raise UserError(f"{text}; give the file of this scan; a new lesion must not have a candidate's number")


def _check_inside(path: Path, marks: Sequence[Mark], result: Result) -> None:
    points = np.array([mark.position_mm for mark in marks], np.float64).reshape(-1, 3)
    outside = ~result.grid.inside(result.grid.to_index(points))
    if not outside.any():
        return
    first = marks[int(np.flatnonzero(outside)[0])]
    shown = ", ".join(f"{value:.1f}" for value in first.position_mm)
    text = f"{first.where}: ({shown}) RAS mm does not lie in the volume"
    if result.grid.inside(result.grid.to_index(points * _LPS_RAS)).all():
        raise UserError(
            f"{text}, but all points do with x and y negated: {path.name} is in the other system (LPS, RAS)"
        )
    raise UserError(f"{text}; correct the position, or give the file of this scan")
