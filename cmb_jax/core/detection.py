"""One candidate of the detector, and everything that tables say about it.

`DetectionRow` is the record: a field with its description is a column of detections.csv, of the BIDS table
and its data dictionary, of what is read back, of the review spreadsheet if it asks for a place there, and of
the table in docs/detections.md (`make figures`). A new column is a field here and its value in
`inference/predict.py`.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cmb_jax.io.tables import table_text


class RejectReason(enum.IntEnum):
    """Why a candidate does not count as a microbleed: a number in arrays, a sentence in files."""

    sentence: str

    NONE = 0, ""
    OUTSIDE_BRAIN = 1, "outside the brain"
    IN_VENTRICLE = 2, "inside a ventricle"
    IN_SULCAL_CSF = 3, "in the cerebrospinal fluid around the brain"
    IN_SINUS = 4, "where a venous sinus runs"
    LOW_SCORE = 5, "score below the operating point"

    def __new__(cls, number: int, sentence: str) -> RejectReason:
        """A member that is its number and carries its sentence."""
        reason = int.__new__(cls, number)
        reason._value_, reason.sentence = number, sentence
        return reason

    @classmethod
    def of(cls, sentence: str) -> RejectReason | None:
        """The reason that a file states; None for one of another program."""
        return next((reason for reason in cls if reason.sentence == sentence), None)


def _column(
    description: str,
    *,
    unit: str = "",
    levels: Mapping[str, str] | None = None,
    since: str | None = None,
    sheet_width: int | None = None,
    **default: Any,
) -> Any:
    """A field of the record.

    Args:
        description: a sentence for dictionaries of data.
        unit: of a number.
        levels: the values that it may have -> what they mean; any where not given.
        since: version that brought it, without which results can be read; None: they must have it.
        sheet_width: of its column in the review spreadsheet, in characters; None: it has none there.
        **default: as of `dataclasses.field`.
    """
    metadata = {
        "description": description,
        "unit": unit,
        "levels": None if levels is None else dict(levels),
        "since": since,
        "sheet_width": sheet_width,
    }
    return dataclasses.field(metadata=metadata, **default)


def _mni(way: str) -> Any:
    return _column(
        f"Center in MNI152NLin2009cAsym, {way}, by an affine from the centers of the brain's regions, about "
        "4 mm off on phantoms; n/a if the region map is not trusted.",
        unit="mm",
        since="0.2",
        default=None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRow:
    """One candidate of the detector, kept or rejected; the fields are the columns of detections.csv."""

    id: int = _column("Number of the candidate in this scan, and its label in the dseg image.")
    i: int = _column("Voxel index of the center along the first axis of the image file, from 0.")
    j: int = _column("Voxel index of the center along the second axis of the image file, from 0.")
    k: int = _column("Voxel index of the center along the third axis of the image file, from 0.")
    x_mm: float = _column("Center, to the right (world coordinates of the image).", unit="mm")
    y_mm: float = _column("Center, to the front (world coordinates of the image).", unit="mm")
    z_mm: float = _column("Center, upwards (world coordinates of the image).", unit="mm")
    diameter_mm: float = _column("Diameter: cube root of the box's volume.", unit="mm", sheet_width=12)
    volume_mm3: float = _column("Volume of the ellipsoid in the box.", unit="mm^3")
    score: float = _column("The detector's score, 0 to 1.", sheet_width=8)
    probability: float | None = _column(
        "Probability of a true microbleed, calibrated on the weights' validation data; n/a if "
        "the weights are not calibrated or the place rules a microbleed out.",
        since="0.2",
        sheet_width=11,
        default=None,
    )
    category: Literal["definite", "possible"] = _column(
        "How sure the detector is.",
        levels={
            "definite": "score at or above definite_threshold of the settings",
            "possible": "score below it",
        },
        sheet_width=10,
    )
    zone: Literal["lobar", "deep", "infratentorial", "none"] = _column(
        "Part of the brain, by votes of the region map in the lesion's sphere.",
        levels={
            "lobar": "frontal, parietal, temporal, occipital, insula",
            "deep": "basal ganglia, thalamus, capsules, corpus callosum, deep white matter",
            "infratentorial": "brainstem, cerebellum",
            "none": "not known, or no tissue of the brain",
        },
    )
    region: str = _column("Region of the Microbleed Anatomical Rating Scale (Gregoire et al. 2009).")
    side: Literal["left", "right", "none"] = _column(
        "Side of the patient.", levels={"left": "left", "right": "right", "none": "none"}
    )
    status: Literal["kept", "rejected"] = _column(
        "Whether it counts as a microbleed.",
        levels={"kept": "reported", "rejected": "not reported; see reason"},
        sheet_width=10,
    )
    reason: str = _column("Why it was rejected; n/a if kept.", sheet_width=34)
    zone_border_mm: float = _column(
        "From the center to the nearest tissue of another zone, at most 6; 0 without a zone. "
        "The smaller, the less sure is the zone.",
        unit="mm",
        since="0.2",
        default=0.0,
    )
    mni_x_mm: float | None = _mni("to the right")
    mni_y_mm: float | None = _mni("to the front")
    mni_z_mm: float | None = _mni("upwards")

    @property
    def certainty(self) -> float:
        """The best that is known of how sure the detector is: the probability, else the score."""
        return self.score if self.probability is None else self.probability

    @property
    def below_operating_point(self) -> bool:
        """Rejected for its score alone: a microbleed at a lower operating point."""
        return RejectReason.of(self.reason) is RejectReason.LOW_SCORE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """What tables and their readers know about a field of the record."""

    name: str
    kind: type  # int, float or str
    may_be_empty: bool  # a number that is not always there
    description: str
    unit: str
    levels: Mapping[str, str] | None
    since: str | None
    sheet_width: int | None


def _columns() -> tuple[Column, ...]:
    columns = []
    for name, hint in typing.get_type_hints(DetectionRow).items():
        parts = typing.get_args(hint)
        may_be_empty = type(None) in parts
        kind = str if typing.get_origin(hint) is Literal else parts[0] if may_be_empty else hint
        metadata = DetectionRow.__dataclass_fields__[name].metadata
        columns.append(Column(name=name, kind=kind, may_be_empty=may_be_empty, **metadata))
    return tuple(columns)


COLUMNS: tuple[Column, ...] = _columns()
DETECTION_COLUMNS: tuple[str, ...] = tuple(column.name for column in COLUMNS)


def detections_csv(rows: Sequence[DetectionRow]) -> str:
    """The rows as CSV text."""
    return table_text(DETECTION_COLUMNS, map(_cells, rows))


def detections_tsv(rows: Sequence[DetectionRow]) -> str:
    """The rows as a table of BIDS: tabs, and n/a where nothing is said."""
    return table_text(DETECTION_COLUMNS, map(_cells, rows), delimiter="\t", nothing="n/a")


def _cells(row: DetectionRow) -> list[object]:
    return [getattr(row, name) for name in DETECTION_COLUMNS]


def data_dictionary() -> dict[str, dict[str, Any]]:
    """The columns as a BIDS sidecar describes them."""
    return {
        column.name: {
            "Description": column.description,
            **({"Units": column.unit} if column.unit else {}),
            **({"Levels": dict(column.levels)} if column.levels else {}),
        }
        for column in COLUMNS
    }


def columns_table() -> str:
    """The columns as a table in Markdown, for the documentation."""
    lines = ["| column | meaning | values | since |", "|---|---|---|---|"]
    for column in COLUMNS:
        values = column.unit or {int: "whole number", float: "number", str: "text"}[column.kind]
        if column.levels:
            values = "; ".join(
                level if level == meaning else f"`{level}`: {meaning}"
                for level, meaning in column.levels.items()
            )
        if column.may_be_empty:
            values += ", may be empty"
        lines.append(f"| `{column.name}` | {column.description} | {values} | {column.since or '0.1'} |")
    return "\n".join(lines)


def reasons_list() -> str:
    """The reasons as a list in Markdown, for the documentation."""
    return "\n".join(f"- {reason.sentence}" for reason in RejectReason if reason.sentence)
