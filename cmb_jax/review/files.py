"""Where the files of one result lie, whether `cmb-jax predict` or `cmb-jax bids` wrote it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object, reading

MADE_BY = "give the folder that cmb-jax predict wrote, or a *_desc-cmb_detections.json of cmb-jax bids"
_BIDS = re.compile(r"(sub-.+_desc-cmb_)(detections\.(json|tsv)|dseg\.(json|nii\.gz)|(report|viewer)\.html)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultPaths:
    """The files of a result; not all of them need be there."""

    shown: Path  # as the user named the result
    table: Path
    record: Path
    labels: Path
    viewer: Path
    work: Path  # folder in which readers' verdicts and truth are kept


def result_paths(result: Path) -> ResultPaths:
    """The files of a result by its folder, or by one of its files in BIDS derivatives.

    Raises:
        UserError: nothing there, or several results.
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
        raise UserError(f"{path}: is no file of a result; {MADE_BY}")
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
    """What stands beside the table, in the form of detections.json.

    Raises:
        UserError: missing, or damaged.
    """
    with reading(paths.record, MADE_BY, missing=f"no such file; {MADE_BY}"):
        content = read_json_object(paths.record, MADE_BY)
        if "CmbJax" in content:  # see cohort.result
            made = content["CmbJax"]
            images, weights = made["Taken"]["Images"], made["Making"]["Weights"]
            content = {
                "version": made["Version"],
                "weights": {"name": weights["Name"], "sha256": weights["SHA256"]},
                "inputs": [
                    {"role": each["Role"], "file": Path(each["File"]).name, "sha256": each["SHA256"]}
                    for each in images
                ],
                **{name.lower(): made[name] for name in ("Settings", "Steps", "Warnings")},
                "regions_trusted": made["RegionsTrusted"],
            }
        if not content["inputs"]:
            raise ValueError("no images")
    return content
