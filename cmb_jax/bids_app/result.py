"""The result of one scan as files: labels, table with its dictionary, report; and whether it still holds."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

import cmb_jax
from cmb_jax.anatomy.mni import SPACE as MNI_SPACE
from cmb_jax.bids_app.dataset import REGIONS, ResultFiles, read_json, source_uri, write_json
from cmb_jax.bids_app.scan_images import ScanImages, TakenImage
from cmb_jax.datasets.bids.choice import Choice
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.options import NETWORK
from cmb_jax.inference.outputs import NOTICE, instance_labels, region_names_csv, report_content, viewer_page
from cmb_jax.inference.predict import Prediction
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text, clear_dead
from cmb_jax.io.nifti import write_volume
from cmb_jax.io.outside import a_number, a_text, reading
from cmb_jax.io.provenance import provenance_jsonld
from cmb_jax.report.content import DETECTION_COLUMNS, DetectionRow
from cmb_jax.report.html import write_report
from cmb_jax.report.projection import make_projection

PROVENANCE = "CmbJax"
"""Key of the sidecar under which everything stands that is no column of the table."""

_ALWAYS_THERE = ("Weights", "Threshold", "PhaseSign", "PhaseRange")
_OF_EARLIER_VERSIONS = {"Precision": "float32", "Regions": NETWORK}
"""How results were made that do not say it."""

COLUMNS: dict[str, dict[str, Any]] = {
    "id": {"Description": "Number of the candidate in this scan, and its label in the dseg image."},
    "i": {"Description": "Voxel index of the centre along the first axis of the image file, from 0."},
    "j": {"Description": "Voxel index of the centre along the second axis of the image file, from 0."},
    "k": {"Description": "Voxel index of the centre along the third axis of the image file, from 0."},
    "x_mm": {"Description": "Centre, to the right (world coordinates of the image).", "Units": "mm"},
    "y_mm": {"Description": "Centre, to the front (world coordinates of the image).", "Units": "mm"},
    "z_mm": {"Description": "Centre, upwards (world coordinates of the image).", "Units": "mm"},
    "diameter_mm": {"Description": "Diameter: cube root of the box's volume.", "Units": "mm"},
    "volume_mm3": {"Description": "Volume of the ellipsoid in the box.", "Units": "mm^3"},
    "score": {"Description": "The detector's score, 0 to 1."},
    "probability": {
        "Description": "Probability of a true microbleed, calibrated on the weights' validation data; n/a if "
        "the weights are not calibrated or the place rules a microbleed out."
    },
    "category": {
        "Description": "How sure the detector is.",
        "Levels": {
            "definite": "score at or above definite_threshold of the settings",
            "possible": "score below it",
        },
    },
    "zone": {
        "Description": "Part of the brain, by votes of the region map in the lesion's sphere.",
        "Levels": {
            "lobar": "frontal, parietal, temporal, occipital, insula",
            "deep": "basal ganglia, thalamus, capsules, corpus callosum, deep white matter",
            "infratentorial": "brainstem, cerebellum",
            "none": "not known, or no tissue of the brain",
        },
    },
    "region": {"Description": "Region of the Microbleed Anatomical Rating Scale (Gregoire et al. 2009)."},
    "side": {
        "Description": "Side of the patient.",
        "Levels": {"left": "left", "right": "right", "none": "none"},
    },
    "status": {
        "Description": "Whether it counts as a microbleed.",
        "Levels": {"kept": "reported", "rejected": "not reported; see reason"},
    },
    "reason": {"Description": "Why it was rejected; n/a if kept."},
    "zone_border_mm": {
        "Description": "From the centre to the nearest tissue of another zone, at most 6; 0 without a zone. "
        "The smaller, the less sure is the zone.",
        "Units": "mm",
    },
    **{
        f"mni_{axis}_mm": {
            "Description": f"Centre in {MNI_SPACE}, {way}, by an affine from the centres of the brain's "
            "regions, about 4 mm off on phantoms; n/a if the region map is not trusted.",
            "Units": "mm",
        }
        for axis, way in (("x", "to the right"), ("y", "to the front"), ("z", "upwards"))
    },
}


def detections_tsv(rows: tuple[DetectionRow, ...]) -> str:
    """The rows as a table of BIDS: tabs, and n/a where nothing is said."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(DETECTION_COLUMNS)
    for row in rows:
        cells = dataclasses.asdict(row)
        writer.writerow("n/a" if cells[name] in ("", None) else cells[name] for name in DETECTION_COLUMNS)
    return text.getvalue()


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
    """Write all files of a scan's result over older ones; the table's sidecar last, as the mark of the end.

    `viewer`: the page on which a reader scrolls too, which holds the images; `save_regions`: brain mask and
    region map. What a killed process has left half-written is cleared away.

    Raises:
        UserError: a file cannot be written.
    """
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
    write_report(report_content(prediction, bundle, inputs, files.stem), files.report, overwrite=True)
    _write_regions(files, prediction, sources, spatial, save_regions)
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
    sidecar = _sidecar(choice, taken, prediction, making, sources)
    sidecar[PROVENANCE]["Overview"] = projection.to_json()
    write_json(files.table_sidecar, sidecar)


def _write_regions(
    files: ResultFiles, prediction: Prediction, sources: list[str], spatial: str, wanted: bool
) -> None:
    """Brain mask and region map with their sidecars; those of an earlier run go where they are not wanted."""
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
) -> dict[str, Any]:
    facts = choice.reference.facts
    return {
        **COLUMNS,
        PROVENANCE: {
            "Notice": NOTICE,
            "Version": cmb_jax.__version__,
            "Making": making,
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
    """What a finished result was made from and with, as far as it is read again."""

    making: dict[str, Any]  # see `ScanOptions.record`
    weights_sha256: str
    images: frozenset[tuple[str, str]]  # files and their hashes
    kind: str
    field_strength_t: float | None
    warnings: tuple[str, ...]
    version: str
    brain_ml: float | None  # None, as the next: results of earlier versions do not say it
    overview: dict[str, Any] | None  # see `Projection.to_json`


def read_provenance(sidecar: Path) -> Provenance:
    """Read it from the sidecar of a table.

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
        return Provenance(
            making=_OF_EARLIER_VERSIONS | making,
            weights_sha256=str(making["Weights"]["SHA256"]),
            images=frozenset((image["File"], image["SHA256"]) for image in made["Taken"]["Images"]),
            kind=a_text(made["Taken"]["Kind"], "Kind"),
            field_strength_t=None if field is None else a_number(field, "MagneticFieldStrength"),
            warnings=tuple(a_text(line, "Warnings", 2000) for line in made["Warnings"]),
            version=a_text(made["Version"], "Version"),
            brain_ml=None if brain is None else a_number(brain, "BrainVolumeMl"),
            overview=overview if isinstance(overview, dict) else None,
        )


def what_changed(files: ResultFiles, taken: tuple[TakenImage, ...], making: dict[str, Any]) -> str | None:
    """In what a finished result differs from what would be made now; None if in nothing.

    Raises:
        UserError: its sidecar has been damaged.
    """
    then = read_provenance(files.table_sidecar)
    # a name that only one of them has is an option that the other left at its default
    names = dict.fromkeys((*making, *then.making))
    changed = [name.lower() for name in names if making.get(name) != then.making.get(name)]
    if then.images != {(image.file, image.sha256) for image in taken}:
        changed.append("images")
    return ", ".join(changed) or None
