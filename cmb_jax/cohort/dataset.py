"""The data set of derivatives: its own files, the names of results, and what marks a result as finished."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import cmb_jax
from cmb_jax.datasets.bids.choice import Choice
from cmb_jax.datasets.bids.layout import BidsName, Scan, join_entities, parse_name
from cmb_jax.datasets.bids.reader import RESULTS_OF, is_result
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.io.outside import read_json_object

BIDS_VERSION = "1.10.0"
RAW = "raw"
"""Name of the source data set in BIDS URIs."""

REGIONS = "regions"
"""Name in BIDS URIs of the data set with the label volumes, and the role of its images."""

GROUP_TABLE = "group_desc-cmb_counts.tsv"
GROUP_PAGE = "group_desc-cmb_report.html"
_DESCRIPTION = "dataset_description.json"
_KEPT_ENTITIES = ("acq", "ce", "rec")  # of the reference image, beside those that name the scan

# suffixes that BIDS lacks; everything else is checked by the validator
_IGNORED = """*_desc-cmb_detections.tsv
*_desc-cmb_detections.json
*_desc-cmb_report.html
*_desc-cmb_viewer.html
*_desc-cmb_prov.jsonld
methods.md
*_desc-cmb_overview.jpg
*_desc-cmb_review/
sub-*/*compare*/
*_desc-made_swi.nii.gz
*_desc-made_swi.json
group_desc-cmb_*
logs/
"""

_README = f"""# Cerebral microbleeds found by cmb-jax {cmb_jax.__version__}

Research use only; not a diagnosis. What stands here was found by a program and checked by nobody.

- `sub-*/[ses-*/]anat/*_desc-cmb_dseg.nii.gz`: instance labels on the grid of the scan; the label is `id` of
  the table.
- `*_desc-cmb_detections.tsv`: every candidate, kept or rejected with its reason. The JSON file beside it
  explains the columns, and says which images were taken and why, with which weights and settings.
- `*_desc-cmb_report.html`: the same as a page; `*_desc-cmb_overview.jpg`: its picture on the cohort's page.
- `*_desc-made_swi.nii.gz`: the susceptibility-weighted image, where it was made from magnitude and phase.
- `{GROUP_TABLE}`: one line per scan, with the scans that failed (`cmb-jax bids DIR OUT group`);
  `{GROUP_PAGE}`: the same as a page with pictures, to sort and filter.
- `*_desc-cmb_prov.jsonld`: provenance in the terms of BIDS-Prov.
- `*_desc-brain_mask.nii.gz`, `*_desc-regions_dseg.nii.gz`: brain and regions, where they were asked for.
- `methods.md`: what was done, as text for a paper with the works to cite.
- `logs/`: why scans failed (`failed.tsv` lists all), and how long each took.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Paths of one scan's result; not all of the files need exist."""

    folder: Path
    stem: str  # sub-01_ses-2_acq-x_run-1
    labels: Path  # instance labels
    labels_sidecar: Path  # what the labels mean
    table: Path  # detections
    table_sidecar: Path  # columns and provenance; written last, so that it marks a finished result
    report: Path  # the page
    viewer: Path  # the page on which a reader scrolls and judges, if it was asked for
    provenance: Path  # what was made from what, in the terms of BIDS-Prov
    brain: Path  # brain mask, if it was asked for
    regions: Path  # region map, if it was asked for and is trusted
    overview: Path  # picture for the page of the cohort
    made_swi: Path  # SWI, if it was made here
    made_swi_sidecar: Path  # what it was made from

    @classmethod
    def of(cls, folder: Path, stem: str) -> ResultFiles:
        """The paths of a result whose files begin with `stem`."""
        names = {
            "labels": "desc-cmb_dseg.nii.gz",
            "labels_sidecar": "desc-cmb_dseg.json",
            "table": "desc-cmb_detections.tsv",
            "table_sidecar": "desc-cmb_detections.json",
            "report": "desc-cmb_report.html",
            "viewer": "desc-cmb_viewer.html",
            "provenance": "desc-cmb_prov.jsonld",
            "brain": "desc-brain_mask.nii.gz",
            "regions": "desc-regions_dseg.nii.gz",
            "overview": "desc-cmb_overview.jpg",
            "made_swi": "desc-made_swi.nii.gz",
            "made_swi_sidecar": "desc-made_swi.json",
        }
        paths = {name: folder / f"{stem}_{end}" for name, end in names.items()}
        return cls(folder=folder, stem=stem, **paths)


def result_files(out: Path, choice: Choice) -> ResultFiles:
    """The files of a scan's result, named by its entities and by the acquisition of its reference image."""
    scan = choice.scan
    named = dict(scan.entities)
    extra = {key: label for key, label in choice.reference.file.name.entities if key in _KEPT_ENTITIES}
    order = ("sub", "ses", *_KEPT_ENTITIES, "run", "chunk")
    entities = tuple((key, (named | extra)[key]) for key in order if key in named | extra)
    return ResultFiles.of(anat_folder(out, scan), join_entities(entities))


def anat_folder(derivatives: Path, scan: Scan) -> Path:
    """The folder of a scan in a data set of derivatives."""
    session = () if scan.session is None else (f"ses-{scan.session}",)
    return derivatives.joinpath(f"sub-{scan.participant}", *session, "anat")


def finished_results(out: Path, participant: str) -> list[tuple[BidsName, ResultFiles]]:
    """The finished results of a participant, in order of their names."""
    # the sidecar is written last: where it stands, all other files are whole
    found = []
    for path in sorted((out / f"sub-{participant}").glob("**/anat/*_desc-cmb_detections.json")):
        name = parse_name(path.name)
        if name is not None:
            found.append((name, ResultFiles.of(path.parent, join_entities(name.without("desc")))))
    return found


def withdraw_result(out: Path, scan: str) -> None:
    """Unmark the result of a scan, such as sub-01_ses-2_run-1, as finished."""
    for name, files in finished_results(out, scan.split("_")[0].removeprefix("sub-")):
        keys = ("sub", "ses", "run", "chunk")
        named = (f"{key}-{name.get(key)}" for key in keys if name.get(key) is not None)
        if "_".join(named) == scan:
            files.table_sidecar.unlink(missing_ok=True)


def logs_folder(out: Path) -> Path:
    """Folder of the logs of all runs; results do not depend on it."""
    return out / "logs"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that this program wrote.

    Raises:
        UserError: missing, or damaged since.
    """
    return read_json_object(path, "make it again with --overwrite")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all, over an older one."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    atomic_write_text(path, text, overwrite=True)


def check_out(root: Path, out: Path) -> None:
    """Refuse an output folder that holds anything but results of this program.

    Raises:
        UserError: `out` is a file, the data set itself or above it, or has other content.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the derivatives")
    inside = root.resolve()
    if out.resolve() == inside or out.resolve() in inside.parents:
        raise UserError(f"{out}: holds the data set; give another folder, such as {root}/derivatives/cmb-jax")
    try:
        empty = not out.is_dir() or not any(out.iterdir())
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({error.strerror}); choose another folder") from error
    if not empty and not is_result(out):
        raise UserError(
            f"{out}: has content that cmb-jax bids did not write; give a new folder, such as {out}/cmb-jax"
        )


def write_dataset_files(root: Path, out: Path, regions: Path | None = None) -> None:
    """Write dataset_description.json, README.md and .bidsignore unless they exist: users edit them.

    Args:
        root: the source data set.
        out: the data set of derivatives.
        regions: the data set with the label volumes, if any is used.
    """
    description: dict[str, Any] = {
        "Name": "Cerebral microbleeds found by cmb-jax (research use only)",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": RESULTS_OF, "Version": cmb_jax.__version__}],
    }
    sources = {RAW: root} if regions is None else {RAW: root, REGIONS: regions}
    links = {name: link for name, source in sources.items() if (link := source_link(source, out))}
    if links:
        description["DatasetLinks"] = links
    files = {
        _DESCRIPTION: json.dumps(description, indent=2) + "\n",
        "README.md": _README,
        ".bidsignore": _IGNORED,
    }
    for name, text in files.items():
        if not (out / name).exists():
            atomic_write_text(out / name, text, overwrite=True)  # another process may have been faster


def source_link(root: Path, out: Path) -> str | None:
    """Relative path from the derivatives to a data set that they are made from.

    None where it would name other folders than the data set's own: their names may identify people, and are
    useless on another machine.
    """
    try:
        path = Path(os.path.relpath(root.resolve(), out.resolve()))
    except ValueError:  # another drive
        return None
    return path.as_posix() if sum(part != ".." for part in path.parts) <= 1 else None


def source_uri(relative: str, data_set: str = RAW) -> str:
    """BIDS URI of a file of the source data set, or of another one by its name in DatasetLinks."""
    return f"bids:{data_set}:{relative}"
