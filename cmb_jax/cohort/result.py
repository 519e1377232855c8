"""The outcome of a scan: the files of its result and whether they are up to date, or why it failed."""

import dataclasses
import enum
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import cmb_jax
from cmb_jax.cohort.dataset import REGIONS, ResultFiles, logs_folder, read_json, source_uri, write_json
from cmb_jax.cohort.scan_images import ScanImages, TakenImage
from cmb_jax.core.detection import data_dictionary, detections_tsv
from cmb_jax.datasets.bids.choice import Choice
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.options import NETWORK
from cmb_jax.inference.outputs import NOTICE, instance_labels, region_names_csv, report_content, viewer_page
from cmb_jax.inference.predict import Prediction
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text, clear_dead
from cmb_jax.io.nifti import write_volume
from cmb_jax.io.outside import a_number, a_text, reading
from cmb_jax.io.provenance import provenance_jsonld
from cmb_jax.io.tables import table_text
from cmb_jax.report.cohort import make_projection
from cmb_jax.report.html import render_report

PROVENANCE = "CmbJax"
"""Key of the sidecar for everything that does not describe a column of the table."""

_ALWAYS_THERE = ("Weights", "Threshold", "PhaseSign", "PhaseRange")

_UNSAID: dict[str, Any] = {"Flips": "none", "Precision": "float32", "Regions": NETWORK}
"""Settings that a sidecar may leave out, and the values that this means."""


def write_result(
    files: ResultFiles,
    choice: Choice,
    images: ScanImages,
    taken: tuple[TakenImage, ...],
    prediction: Prediction,
    bundle: WeightsBundle,
    making: dict[str, Any],
    *,
    viewer: bool = False,
    save_regions: bool = False,
) -> None:
    """Write all files of a scan's result over older ones; the table's sidecar last, as it marks the end.

    `viewer`: also the page on which a reader scrolls, which holds the images; `save_regions`: also brain mask
    and region map. Half-written files of a killed process are removed.

    Raises:
        UserError: a file cannot be written.
    """
    # Without its sidecar a result counts as unfinished: until the new one stands, an interruption leaves no
    # mixture of old and new files that could pass for a result.
    files.table_sidecar.unlink(missing_ok=True)
    clear_dead(files.folder, f"{files.stem}_desc-*")
    sources = [image.uri for image in taken]
    spatial = source_uri(choice.reference.file.relative)
    labels = instance_labels(prediction)
    write_volume(files.labels, labels, prediction.swi, dtype=np.uint16, overwrite=True)
    write_json(
        files.labels_sidecar,
        {
            "Description": "Instance labels of cerebral microbleeds found by a program; a label is the id of "
            f"the table {files.table.name}. {NOTICE}",
            "Sources": sources,
            "SpatialReference": spatial,
            "Manual": False,
        },
    )
    if images.made:
        write_volume(files.made_swi, images.swi.data, images.swi, overwrite=True)
        made_of = {"Description": "Susceptibility-weighted image made from magnitude and phase."}
        scanned = [image.uri for image in taken if image.role != REGIONS]
        write_json(files.made_swi_sidecar, {**made_of, "Sources": scanned, "EchoTimesMs": list(choice.te_ms)})
    else:
        files.made_swi.unlink(missing_ok=True)
        files.made_swi_sidecar.unlink(missing_ok=True)
    inputs = tuple((image.role, image.file, image.sha256) for image in taken)
    beside = files.viewer.name if viewer else ""
    content = report_content(prediction, bundle, inputs, files.stem, beside)
    atomic_write_text(files.report, render_report(content), overwrite=True)
    _write_regions(files, prediction, sources, spatial, save_regions)
    # the group's page draws on this picture, so that it need not read the images again
    projection = make_projection(prediction.swi, prediction.brain_mask)
    atomic_write_bytes(files.overview, projection.jpeg, overwrite=True)
    table = detections_tsv(prediction.rows)
    atomic_write_text(files.table, table, overwrite=True)
    if viewer:
        digest = hashlib.sha256(table.encode()).hexdigest()
        atomic_write_text(
            files.viewer, viewer_page(prediction, inputs, files.stem, labels, digest), overwrite=True
        )
    else:
        files.viewer.unlink(missing_ok=True)
    outputs = [
        path.relative_to(files.folder).as_posix()
        for path in (files.labels, files.table, files.report, files.viewer, files.brain, files.regions)
        if path.exists()
    ]
    atomic_write_text(
        files.provenance,
        provenance_jsonld(
            program_version=cmb_jax.__version__,
            command="cmb-jax bids DIR OUT participant",
            parameters=making,
            inputs=tuple((image.uri, Path(image.file).name, image.sha256) for image in taken),
            weights=(bundle.file_name, bundle.sha256),
            outputs=outputs,
        ),
        overwrite=True,
    )
    sidecar = _sidecar(choice, taken, prediction, making, sources, bundle.bundled)
    sidecar[PROVENANCE]["Overview"] = projection.to_json()
    write_json(files.table_sidecar, sidecar)


def _write_regions(
    files: ResultFiles, prediction: Prediction, sources: list[str], spatial: str, wanted: bool
) -> None:
    """Write brain mask and region map with their sidecars; remove those of an earlier run if not wanted."""
    regions = wanted and prediction.region_map.trusted
    for path, there, array, words in (
        (files.brain, wanted, prediction.brain_mask, "The space inside the skull, CSF included."),
        (files.regions, regions, prediction.region_code, "Regions of the brain: 16 * side + region."),
    ):
        beside = path.with_name(path.name.replace(".nii.gz", ".json"))
        if not there:
            path.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
            continue
        write_volume(path, array.astype(np.uint8), prediction.swi, dtype=np.uint8, overwrite=True)
        content: dict[str, Any] = {"Description": words, "Sources": sources, "SpatialReference": spatial}
        content |= {"Type": "Brain"} if path == files.brain else {"Manual": False}
        write_json(beside, content)
    names = files.regions.with_name(files.regions.name.replace(".nii.gz", ".tsv"))
    if regions:
        lines = [line.split(",") for line in region_names_csv().splitlines()[1:]]
        rows = [f"{label}\t{side} {region}" for label, region, side in lines]
        atomic_write_text(names, "\n".join(["index\tname", *rows]) + "\n", overwrite=True)
    else:
        names.unlink(missing_ok=True)


def _sidecar(
    choice: Choice,
    taken: tuple[TakenImage, ...],
    prediction: Prediction,
    making: dict[str, Any],
    sources: list[str],
    bundled: bool,
) -> dict[str, Any]:
    facts = choice.reference.facts
    return {
        **data_dictionary(),
        PROVENANCE: {
            "Notice": NOTICE,
            "Version": cmb_jax.__version__,
            "Making": making,
            "WeightsBundled": bundled,
            "Sources": sources,
            "Taken": {
                "Kind": choice.kind.name.lower(),
                "Why": choice.why,
                "Images": [
                    {"Role": image.role, "File": image.file, "SHA256": image.sha256} for image in taken
                ],
                "Left": [{"File": image.file.relative, "Why": image.why} for image in choice.left],
                "Notes": list(choice.notes),
            },
            "EchoTimeMs": list(choice.te_ms) or facts.echo_time_ms,
            "MagneticFieldStrength": facts.field_strength_t,
            "Manufacturer": facts.manufacturer,
            "Settings": dict(prediction.settings),
            "Steps": list(prediction.steps),
            "Warnings": list(prediction.warnings),
            "RejectedUnlisted": prediction.unlisted,
            "RegionsTrusted": prediction.region_map.trusted,
            "BrainVolumeMl": round(
                np.count_nonzero(prediction.brain_mask)
                * abs(np.linalg.det(prediction.swi.affine[:3, :3]))
                / 1000
            ),
        },
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a finished result was made from and with: the part of its sidecar that is read back."""

    making: dict[str, Any]  # settings, see `ScanOptions.record`; those it leaves out are filled in
    weights_name: str
    weights_sha256: str
    weights_bundled: bool
    calibrated: bool
    images: frozenset[tuple[str, str]]  # files and their hashes
    roles: frozenset[str]  # of the images, see `TakenImage`
    regions_trusted: bool
    kind: str
    field_strength_t: float | None
    warnings: tuple[str, ...]
    version: str
    threshold: float  # of this scan
    phase: bool  # whether one was used
    brain_ml: float | None  # this and the next are None in results of earlier versions
    overview: dict[str, Any] | None  # see `Projection.to_json`


def read_provenance(sidecar: Path) -> Provenance:
    """Read the provenance of a result from its table's sidecar.

    Raises:
        UserError: the file is missing or damaged.
    """
    record = read_json(sidecar)
    with reading(sidecar, "make it again with --overwrite"):
        made = record[PROVENANCE]
        making = {name: made["Making"][name] for name in _ALWAYS_THERE} | made["Making"]
        field, brain, overview = (
            made["MagneticFieldStrength"],
            made.get("BrainVolumeMl"),
            made.get("Overview"),
        )
        # earlier versions had one threshold for all scans, and did not record whether a phase was used
        settings = {"score_threshold": made["Making"]["Threshold"]} | made.get("Settings", {})
        return Provenance(
            making=_UNSAID | making,
            weights_name=a_text(making["Weights"]["Name"], "Name", 2000),
            weights_sha256=a_text(making["Weights"]["SHA256"], "SHA256", 2000),
            weights_bundled=made.get("WeightsBundled") is True,
            calibrated=made["Settings"].get("calibrated") == "yes",
            images=frozenset((image["File"], image["SHA256"]) for image in made["Taken"]["Images"]),
            roles=frozenset(a_text(image["Role"], "Role") for image in made["Taken"]["Images"]),
            regions_trusted=made["RegionsTrusted"] is True,
            kind=a_text(made["Taken"]["Kind"], "Kind"),
            field_strength_t=None if field is None else a_number(field, "MagneticFieldStrength"),
            warnings=tuple(a_text(line, "Warnings", 2000) for line in made["Warnings"]),
            version=a_text(made["Version"], "Version"),
            threshold=float(settings["score_threshold"]),
            phase=settings.get("phase", "used") == "used",
            brain_ml=None if brain is None else a_number(brain, "BrainVolumeMl"),
            overview=overview if isinstance(overview, dict) else None,
        )


def what_changed(files: ResultFiles, taken: tuple[TakenImage, ...], making: dict[str, Any]) -> str | None:
    """How a finished result differs from the one that would be made now; None if it does not.

    Raises:
        UserError: its sidecar has been damaged.
    """
    then = read_provenance(files.table_sidecar)
    now = _UNSAID | making
    # only options that are not at their default are recorded, so either side may lack a name
    names = dict.fromkeys((*now, *then.making))
    changed = [name.lower() for name in names if now.get(name) != then.making.get(name)]
    if then.images != {(image.file, image.sha256) for image in taken}:
        changed.append("images")
    return ", ".join(changed) or None


class Status(enum.StrEnum):
    """The outcome of a scan, or why the group table has no result of it."""

    DONE = "done"
    SKIPPED = "skipped"  # done by an earlier run
    STALE = "made otherwise"  # done by an earlier run with other weights, settings or images
    FAILED = "failed"
    NOT_ANALYSABLE = "not analysable"  # its images can be read, but no count can be given on them
    NO_IMAGES = "no images"
    NOT_RUN = "not run"  # it has images, but nothing has been made of them yet
    NO_FOLDER = "no folder"  # participants.tsv alone names the participant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one scan, and why."""

    name: str  # sub-01_ses-2_run-1
    status: Status
    reason: str = ""


def failure_log(out: Path, name: str) -> Path:
    """The file with the reason why a scan failed, or a participant whose folder cannot be read."""
    return logs_folder(out) / f"{name}.json"


def write_failure(out: Path, name: str, reason: str, status: Status = Status.FAILED) -> None:
    """Write the reason of a failure."""
    write_json(failure_log(out, name), {"Scan": name, "Status": status.value, "Reason": reason})


def read_status(log: Path) -> Status:
    """Whether a scan failed or is not analysable; logs of earlier versions know only failures."""
    try:
        return Status(read_json(log).get("Status", Status.FAILED.value))
    except (UserError, ValueError):
        return Status.FAILED


def read_reason(log: Path) -> str:
    """The reason that a log holds."""
    try:
        return str(read_json(log)["Reason"])
    except (UserError, KeyError):
        return f"{log.name} is damaged; run the participant again"


def write_failure_table(out: Path) -> Path | None:
    """Write logs/failed.tsv from the logs of all processes; None, and no table, if nothing failed.

    The table is written again until the logs no longer change, because other processes may add failures.
    """
    path = logs_folder(out) / "failed.tsv"
    written = None
    while (failures := _failures(out)) != written:
        if failures:
            text = table_text(("scan", "reason"), failures, delimiter="\t")
            atomic_write_text(path, text, overwrite=True)
        else:
            path.unlink(missing_ok=True)
        written = failures
    return path if written else None


def _failures(out: Path) -> list[tuple[str, str]]:
    logs = sorted(logs_folder(out).glob("sub-*.json"))
    return [(log.stem, " ".join(read_reason(log).split())) for log in logs]
