"""Truth of one scan from the agreement of readers, as files for training, evaluation and calibration."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.folder import LESION_KIND
from cmb_jax.datasets.lesions import DEFAULT_DIAMETER_MM
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text, sha256_file
from cmb_jax.io.header import open_nifti, world_affine
from cmb_jax.io.nifti import write_stored
from cmb_jax.io.tables import table_text
from cmb_jax.review.reading import Reading, added_groups, check_readers, read_readings
from cmb_jax.review.result import Result
from cmb_jax.review.statistics import ScanReview, review_json
from cmb_jax.review.verdicts import Mark, Verdict

KIND_OF_VERDICT = {Verdict.MICROBLEED: LESION_KIND, Verdict.MIMIC: "mimic", Verdict.UNCERTAIN: "uncertain"}
"""Values of the column `kind`: `datasets.folder` reads only rows of kind cmb as lesions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruthRow:
    """One line of the table; the fields are its columns."""

    x_mm: float  # RAS
    y_mm: float
    z_mm: float
    diameter_mm: float  # drawn by a reader, else the detector's, else the default of datasets.lesions
    kind: str
    mimic: str  # kind of mimic, if readers stated it
    certainty: str  # of a microbleed: definite or possible, if readers stated it; a tie gives possible
    candidate: str  # id in detections.csv; empty: added by readers
    readers: int  # number who judged it


def truth_rows(rows: Sequence[DetectionRow], readings: Sequence[Reading]) -> tuple[TruthRow, ...]:
    """The majority verdict of the readers who judged a candidate; `uncertain` without a majority.

    Candidates that nobody read are left out. A lesion added by at most half of all readers is uncertain: the
    others saw the scan and did not mark it.
    """
    lines = []
    for index, row in enumerate(rows):
        marks = [reading.marks[index] for reading in readings if reading.marks[index].verdict is not None]
        if marks:
            lines.append(_line(marks, len(marks), row))
    for group in added_groups(readings):
        lines.append(_line(group, len(readings), None))
    return tuple(lines)


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
    """Definite if more than half of the readers who stated a certainty say so; empty if none stated one."""
    stated = [mark.certainty for mark in marks if mark.certainty]
    if not stated:
        return ""
    return "definite" if 2 * stated.count("definite") > len(stated) else "possible"


def truth_csv(lines: Sequence[TruthRow]) -> str:
    """The table as text: numbers and fixed words, nothing that a reader typed."""
    names = [field.name for field in dataclasses.fields(TruthRow)]
    return table_text(names, (dataclasses.astuple(line) for line in lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What was written, for the report to the user."""

    scan: ScanReview
    lines: tuple[TruthRow, ...]
    unread: int  # kept candidates that nobody judged
    files: tuple[Path, ...]

    @property
    def counts(self) -> str:
        """Rows of each kind, in words."""
        kinds = {
            kind: sum(line.kind == kind for line in self.lines) for kind in ("cmb", "mimic", "uncertain")
        }
        return ", ".join(f"{kind} {count}" for kind, count in kinds.items())


def write_truth(
    files: Sequence[Path], result: Result, out: Path, labels: Path | None = None, *, overwrite: bool = False
) -> Truth:
    """Read the readers' files; write the table of truth, its record and optionally a label image.

    Args:
        files: of the readers, see `reading.read_readings`.
        result: the result that they read.
        out: CSV file for own folders (docs/datasets.md); readings and agreement go beside it as .json.
        labels: NIfTI image (.nii.gz) of the lesions on the scan's grid, for evaluation and calibration.
        overwrite: replace files that exist.

    Raises:
        UserError: see `read_readings`, `check_readers`; a file that exists or cannot be written.
    """
    readings = tuple(reading for path in files for reading in read_readings(path, result))
    check_readers(readings)
    scan = ScanReview(subject=result.subject, rows=result.rows, readings=readings)
    lines = truth_rows(result.rows, readings)
    record = out.with_suffix(".json")
    written = (out, record) if labels is None else (out, record, labels)
    text = review_json(scan)
    # The table is written last: the same record without a table was left by a killed run of this command.
    overwrite = overwrite or (not out.exists() and _holds(record, text))
    if not overwrite:
        for path in written:  # check all before writing any
            if path.exists():
                raise UserError(f"{path}: exists already; choose another name or add --overwrite")
    atomic_write_text(record, text, overwrite=overwrite)
    if labels is not None:
        write_truth_labels(labels, lines, result, overwrite=overwrite)
    atomic_write_text(out, truth_csv(lines), overwrite=overwrite)
    unread = sum(
        row.status == "kept" and all(reading.marks[index].verdict is None for reading in readings)
        for index, row in enumerate(result.rows)
    )
    return Truth(scan=scan, lines=lines, unread=unread, files=written)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and sha256_file(path) == hashlib.sha256(text.encode()).hexdigest()


def write_truth_labels(
    path: Path, lines: Sequence[TruthRow], result: Result, *, overwrite: bool = False
) -> None:
    """The lesions as spheres, numbered from 1, on the grid of the result's labels.

    Each has at least the voxel nearest to its center. A sphere gives position and size; its border was not
    drawn by anybody.
    """
    file = open_nifti(result.paths.labels)
    affine, _ = world_affine(file)
    i, j, k = file.image.shape[:3]
    array = np.zeros((i, j, k), np.uint16)
    spacing = voxel_sizes(affine)
    inverse = np.linalg.inv(affine)
    for number, line in enumerate((each for each in lines if each.kind == LESION_KIND), start=1):
        center_mm = np.array([line.x_mm, line.y_mm, line.z_mm])
        index = inverse[:3, :3] @ center_mm + inverse[:3, 3]
        # one voxel more: on a sheared grid a sphere spans more voxels along an axis than its edges suggest
        reach = np.ceil(line.diameter_mm / spacing).astype(int) + 1
        low = np.clip(np.floor(index).astype(int) - reach, 0, array.shape)
        high = np.clip(np.ceil(index).astype(int) + reach + 1, 0, array.shape)
        voxels = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
        away = np.linalg.norm(apply_affine(affine, voxels) - center_mm, axis=-1)
        if away.size:
            # a lesion smaller than a voxel would otherwise vanish
            inside = away <= max(line.diameter_mm / 2, float(away.min()))
            array[tuple(voxels[inside].T)] = number
    write_stored(path, array.reshape(file.image.shape), file, overwrite=overwrite)
