"""Truth from readings: what readers agree on, as a table that the reader of own folders takes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.folder import LESION_KIND
from cmb_jax.datasets.lesions import DEFAULT_DIAMETER_MM
from cmb_jax.evaluation.matching import CENTER3, Pairs, center_distances, match
from cmb_jax.io.tables import table_text
from cmb_jax.review.marks import Mark, Verdict
from cmb_jax.review.reading import Reading

KIND_OF_VERDICT = {Verdict.MICROBLEED: LESION_KIND, Verdict.MIMIC: "mimic", Verdict.UNCERTAIN: "uncertain"}
"""The column `kind`: only rows of kind cmb are lesions to `datasets.folder`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruthRow:
    """One line of the table; the fields are its columns."""

    x_mm: float  # RAS
    y_mm: float
    z_mm: float
    diameter_mm: float  # drawn by a reader, else the detector's, else the default of datasets.lesions
    kind: str
    mimic: str  # what a mimic is, where readers said it
    certainty: str  # of a microbleed: definite or possible, where readers said it; a tie is possible
    candidate: str  # id in detections.csv; empty: added by readers
    readers: int  # who judged it


def truth_rows(rows: Sequence[DetectionRow], readings: Sequence[Reading]) -> tuple[TruthRow, ...]:
    """What more than half of the readers say who judged a candidate; `uncertain` where no word has that.

    Candidates that nobody read are left out. A lesion that not more than half of all readers added is
    uncertain: the others looked at the scan and did not mark it.
    """
    lines = []
    for index, row in enumerate(rows):
        marks = [reading.marks[index] for reading in readings if reading.marks[index].verdict is not None]
        if marks:
            lines.append(_line(marks, len(marks), row))
    for group in added_groups(readings):
        lines.append(_line(group, len(readings), None))
    return tuple(lines)


def added_groups(readings: Sequence[Reading]) -> list[list[Mark]]:
    """Added lesions by place: marks of different readers less than 3 mm apart, one to one, are one lesion."""
    groups: list[list[Mark]] = []
    for reading in readings:
        centers = np.array([np.mean([mark.position_mm for mark in group], axis=0) for group in groups])
        new = np.array([mark.position_mm for mark in reading.added])
        distance = center_distances(new, centers)
        found = match(Pairs(allowed=distance < CENTER3.limit, cost=distance, one_to_one=True))
        for mark, column in zip(reading.added, found.lesion, strict=True):
            if column >= 0:
                groups[column].append(mark)
            else:
                groups.append([mark])
    return groups


def _line(marks: Sequence[Mark], judges: int, row: DetectionRow | None) -> TruthRow:
    word, votes = Counter(mark.verdict for mark in marks).most_common(1)[0]
    verdict = word if word is not None and 2 * votes > judges else Verdict.UNCERTAIN
    x, y, z = (round(float(value), 2) for value in np.mean([mark.position_mm for mark in marks], axis=0))
    drawn = [mark.diameter_mm for mark in marks if mark.diameter_mm is not None]
    if drawn:
        diameter = round(float(np.mean(drawn)), 2)
    else:
        diameter = DEFAULT_DIAMETER_MM if row is None else row.diameter_mm
    kinds = Counter(mark.mimic for mark in marks if mark.mimic)
    return TruthRow(
        x_mm=x,
        y_mm=y,
        z_mm=z,
        diameter_mm=diameter,
        kind=KIND_OF_VERDICT[verdict],
        mimic=kinds.most_common(1)[0][0] if verdict is Verdict.MIMIC and kinds else "",
        certainty=_certainty(marks) if verdict is Verdict.MICROBLEED else "",
        candidate="" if row is None else str(row.id),
        readers=len(marks),
    )


def _certainty(marks: Sequence[Mark]) -> str:
    """Definite if more than half of those who said so call it that; empty if nobody said it."""
    said = [mark.certainty for mark in marks if mark.certainty]
    if not said:
        return ""
    return "definite" if 2 * said.count("definite") > len(said) else "possible"


def truth_csv(lines: Sequence[TruthRow]) -> str:
    """The table as text; numbers and fixed words only."""
    names = [field.name for field in dataclasses.fields(TruthRow)]
    return table_text(names, (dataclasses.astuple(line) for line in lines))
