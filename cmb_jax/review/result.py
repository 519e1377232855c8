"""A result of `cmb-jax predict` or `cmb-jax bids`: the paths of its files, and their content."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.core.detection import COLUMNS, Column, DetectionRow
from cmb_jax.datasets.images import Grid
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_labels
from cmb_jax.io.outside import a_number, a_text, read_json_object, reading, shown
from cmb_jax.io.provenance import pseudonym
from cmb_jax.io.tables import TextTable, read_columns

MADE_BY = "give the folder that cmb-jax predict wrote, or a *_desc-cmb_detections.json of cmb-jax bids"
_BIDS = re.compile(r"(sub-.+_desc-cmb_)(detections\.(json|tsv)|dseg\.(json|nii\.gz)|(report|viewer)\.html)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultPaths:
    """The files of a result; some may be missing."""

    shown: Path  # as the user named the result
    table: Path
    record: Path
    labels: Path
    viewer: Path
    work: Path  # folder in which readers' verdicts and truth are kept


def result_paths(result: Path) -> ResultPaths:
    """The files of a result, given its folder or one of its files in BIDS derivatives.

    Raises:
        UserError: no result, or several.
    """
    if result.is_dir():
        in_bids = (
            [] if (result / "detections.csv").exists() else sorted(result.glob("*_desc-cmb_detections.json"))
        )
        if len(in_bids) > 1:
            names = ", ".join(path.name for path in in_bids[:5])
            raise UserError(f"{result}: holds {len(in_bids)} results; name the file of one: {names}")
        if not in_bids:
            return ResultPaths(
                shown=result,
                table=result / "detections.csv",
                record=result / "detections.json",
                labels=result / "labels.nii.gz",
                viewer=result / "viewer.html",
                work=result,
            )
        return dataclasses.replace(_named(in_bids[0]), shown=result)
    if not result.exists():
        raise UserError(f"{result}: no such folder; {MADE_BY}")
    return _named(result)


def _named(path: Path) -> ResultPaths:
    found = _BIDS.fullmatch(path.name)
    if found is None:
        raise UserError(f"{path}: is not a file of a result; {MADE_BY}")
    start = found[1]
    return ResultPaths(
        shown=path,
        table=path.with_name(f"{start}detections.tsv"),
        record=path.with_name(f"{start}detections.json"),
        labels=path.with_name(f"{start}dseg.nii.gz"),
        viewer=path.with_name(f"{start}viewer.html"),
        work=path.with_name(f"{start}review"),
    )


def read_record(paths: ResultPaths) -> dict[str, Any]:
    """The record beside the table, in the layout of detections.json.

    Raises:
        UserError: missing, or damaged.
    """
    with reading(paths.record, MADE_BY, missing=f"no such file; {MADE_BY}"):
        content = read_json_object(paths.record, MADE_BY)
        if "CmbJax" in content:  # see cohort.result
            bids = content["CmbJax"]
            images, weights = bids["Taken"]["Images"], bids["Making"]["Weights"]
            content = {
                "version": bids["Version"],
                "weights": {"name": weights["Name"], "sha256": weights["SHA256"]},
                "inputs": [
                    {"role": each["Role"], "file": Path(each["File"]).name, "sha256": each["SHA256"]}
                    for each in images
                ],
                **{name.lower(): bids[name] for name in ("Settings", "Steps", "Warnings")},
                "regions_trusted": bids["RegionsTrusted"],
            }
        if not content["inputs"]:
            raise ValueError("no images")
    return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Candidates of one scan with their labels."""

    paths: ResultPaths
    subject: str  # pseudonym
    swi_sha256: str  # of the image that was searched
    rows: tuple[DetectionRow, ...]
    labels: np.ndarray  # (X, Y, Z) int32 on `grid`: ids of kept candidates
    grid: Grid  # of the labels, axes to Right, Anterior, Superior

    @property
    def kept(self) -> tuple[DetectionRow, ...]:
        """The reported microbleeds."""
        return tuple(row for row in self.rows if row.status == "kept")

    @property
    def folder(self) -> Path:
        """The result as it was named, for messages."""
        return self.paths.shown


def positions_mm(rows: tuple[DetectionRow, ...]) -> np.ndarray:
    """Centers (n, 3) in RAS mm."""
    return np.array([[row.x_mm, row.y_mm, row.z_mm] for row in rows], np.float64).reshape(-1, 3)


def load_result(result: Path, subject: str | None = None) -> Result:
    """Read the table, the record and the labels of a result.

    Args:
        result: folder of the prediction, or a file of it in BIDS derivatives.
        subject: name of the scan in files for readers; default: its BIDS name, else a name derived from the
            image's hash, because a file name may contain the patient's name.

    Raises:
        UserError: a file is missing or unreadable, or the files contradict each other.
    """
    paths = result_paths(Path(result))
    rows = read_rows(paths.table)
    labels, affine = read_labels(paths.labels)
    kept = [row.id for row in rows if row.status == "kept"]
    unknown = np.setdiff1d(np.unique(labels[labels > 0]), kept)
    if len(unknown):
        raise UserError(
            f"{paths.labels}: label {unknown[0]:g} is not a kept candidate of {paths.table.name}; {MADE_BY}"
        )
    x, y, z = labels.shape
    name, digest = _searched_image(paths)
    return Result(
        paths=paths,
        subject=subject or name,
        swi_sha256=digest,
        rows=rows,
        labels=labels.astype(np.int32),
        grid=Grid(shape=(x, y, z), affine=affine),
    )


def read_rows(path: Path) -> tuple[DetectionRow, ...]:
    """The candidates of a detections.csv, or of the .tsv of BIDS derivatives.

    Raises:
        UserError: the file is missing, or has a value that no result can have.
    """
    required = [column.name for column in COLUMNS if column.since is None]
    return _rows(read_columns(path, required=required, delimiter="\t" if path.suffix == ".tsv" else ","))


def _rows(table: TextTable) -> tuple[DetectionRow, ...]:
    columns: dict[str, Sequence[Any]] = {
        column.name: _values(table, column)
        for column in COLUMNS
        if not column.since or table.has(column.name)
    }
    ids = columns["id"]
    if len(set(ids)) < len(ids) or min(ids, default=1) < 1:
        raise UserError(f"{table.path}: ids must be whole numbers from 1 on, each once; {MADE_BY}")
    return tuple(
        DetectionRow(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    )


def _values(table: TextTable, column: Column) -> Sequence[Any]:
    """The values of a column, in the type of its field."""
    if column.kind is int:
        return table.whole_numbers(column.name)
    if column.may_be_empty:
        return [None if np.isnan(value) else float(value) for value in table.optional_numbers(column.name)]
    if column.kind is float:
        return list(table.numbers(column.name).tolist())
    texts = ["" if text == "n/a" else text for text in table.text(column.name)]
    for line, text in enumerate(texts, start=2):
        if column.levels and text not in column.levels:
            raise UserError(
                f"{table.path}: line {line}: {column.name} is {shown(text)}; "
                f"allowed: {', '.join(column.levels)}"
            )
    return texts


def checked_row(values: Mapping[str, Any]) -> DetectionRow:
    """A row from JSON values, whose types are checked. Raises ValueError or KeyError."""
    checked: dict[str, Any] = {}
    for column in COLUMNS:
        name = column.name
        if column.since and values.get(name) is None:
            continue
        value = values[name]
        if column.kind is int:
            if type(value) is not int or abs(value) >= 10**9:
                raise ValueError(f"{name} is not a whole number")
            checked[name] = value
        elif column.kind is float:
            checked[name] = a_number(value, name, -1e6, 1e6)
        else:
            checked[name] = a_text(value, name)
            if column.levels and value not in column.levels:
                raise ValueError(f"{name} is {value!r}")
    return DetectionRow(**checked)


def _searched_image(paths: ResultPaths) -> tuple[str, str]:
    """Name of the searched image (its BIDS name, else one derived from its hash), and its hash."""
    inputs = read_record(paths)["inputs"]
    with reading(paths.record, MADE_BY):
        # if the SWI was made from echoes, the first of them identifies the scan
        searched = next((each for each in inputs if each["role"] == "swi"), None) or inputs[0]
        name, digest = a_text(searched["file"], "file", 255), a_text(searched["sha256"], "sha256", 64)
    return pseudonym(name, digest), digest
