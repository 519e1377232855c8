"""The files that a prediction leaves behind, written whole or not at all."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import cmb_jax
from cmb_jax.anatomy.regions import Region, Side, encode
from cmb_jax.core.detection import DETECTION_COLUMNS, detections_csv
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.predict import Prediction
from cmb_jax.io.atomic import atomic_directory, atomic_write_text
from cmb_jax.io.nifti import write_volume
from cmb_jax.io.provenance import provenance_jsonld, pseudonym, shown_name
from cmb_jax.io.tables import table_text
from cmb_jax.io.volume import Volume
from cmb_jax.report.html import environment, render_report
from cmb_jax.report.statements import MethodsFacts, methods_text, statements
from cmb_jax.report.summary import ReportContent, describe_pattern
from cmb_jax.viewer.page import NAME as VIEWER
from cmb_jax.viewer.page import ScanOnGrid, ViewerCase, embedded_images, render_viewer

NOTICE = "Research use only; not a diagnosis."
ANALYZED, NOT_ANALYSABLE = "analyzed", "not analysable"
"""Values of `status` in detections.json; the latter also stands in detections.csv, where counts would."""


def instance_labels(prediction: Prediction) -> np.ndarray:
    """Instance labels (X, Y, Z) uint16 of the kept detections on the scan's RAS grid.

    Each is the ellipsoid in its box, at least the voxel at its center; the label is the row's id. Better
    scores lie on top.
    """
    swi = prediction.swi
    labels = np.zeros(swi.shape, np.uint16)
    inverse = np.linalg.inv(swi.affine)
    # rows come in falling order of score: written from the end, better ones overwrite worse
    for row, edges_mm in reversed(list(zip(prediction.rows, prediction.boxes_mm, strict=True))):
        if row.status != "kept":
            continue
        center = inverse[:3, :3] @ np.array([row.x_mm, row.y_mm, row.z_mm]) + inverse[:3, 3]
        radius = edges_mm / 2 / np.array(swi.spacing_mm)
        low = np.maximum(np.floor(center - radius).astype(int), 0)
        high = np.minimum(np.ceil(center + radius).astype(int) + 1, swi.shape)
        axes = [
            ((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(low, high, center, radius, strict=True)
        ]
        inside = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :] <= 1.0
        window = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        window[inside] = row.id
        # a body smaller than a voxel may contain no voxel's center
        middle = np.clip(np.rint(center).astype(int), 0, np.array(swi.shape) - 1)
        labels[tuple(middle)] = row.id
    return labels


def summary_json(
    prediction: Prediction, bundle: WeightsBundle, inputs: tuple[tuple[str, str, str], ...]
) -> str:
    """Rows with version, weights, settings, input hashes, processing steps and timings."""
    return json.dumps(
        {
            "notice": NOTICE,
            "status": ANALYZED,
            "version": cmb_jax.__version__,
            "weights": {"name": bundle.file_name, "sha256": bundle.sha256},
            "inputs": [{"role": role, "file": name, "sha256": digest} for role, name, digest in inputs],
            "settings": dict(prediction.settings),
            "steps": list(prediction.steps),
            "warnings": list(prediction.warnings),
            "regions_trusted": prediction.region_map.trusted,
            **_places(prediction),
            "timings_s": dict(prediction.timings),
            "coordinates": "i, j, k: native voxel indices from 0; x_mm, y_mm, z_mm: RAS mm",
            "rejected_unlisted": prediction.unlisted,
            "detections": [dataclasses.asdict(row) for row in prediction.rows],
        },
        indent=2,
    )


def _places(prediction: Prediction) -> dict[str, object]:
    """Pattern and statements; nothing where zones are not reported."""
    if not prediction.region_map.trusted:
        return {}
    partial = any("field of view" in line for line in prediction.region_map.messages)
    return {
        "pattern": describe_pattern(prediction.kept),
        "statements": [dataclasses.asdict(each) for each in statements(prediction.kept, partial)],
    }


def described_inputs(
    *, keep_identifiers: bool = False, **volumes: Volume | None
) -> tuple[tuple[str, str, str], ...]:
    """(role, name, sha256) of the volumes that were read from files; see `io.provenance` for the names."""
    return tuple(
        (
            role,
            shown_name(volume.source, volume.sha256, keep_identifiers=keep_identifiers),
            volume.sha256,
        )
        for role, volume in volumes.items()
        if volume is not None and volume.source is not None and volume.sha256 is not None
    )


def report_content(
    prediction: Prediction,
    bundle: WeightsBundle,
    inputs: tuple[tuple[str, str, str], ...],
    subject: str,
    viewer: str = "",
) -> ReportContent:
    """What the HTML report is made from."""
    return ReportContent(
        subject=subject,
        rows=prediction.rows,
        swi=prediction.swi,
        phase=prediction.phase,
        brain_mask=prediction.brain_mask,
        region_code=prediction.region_code if prediction.region_map.trusted else None,
        warnings=prediction.warnings,
        settings=prediction.settings,
        inputs=inputs,
        weights_sha256=bundle.sha256,
        version=cmb_jax.__version__,
        steps=prediction.steps,
        timings=prediction.timings,
        partial_field_of_view=any("field of view" in line for line in prediction.region_map.messages),
        regions_trusted=prediction.region_map.trusted,
        unlisted=prediction.unlisted,
        viewer=viewer,
    )


def viewer_page(
    prediction: Prediction,
    inputs: tuple[tuple[str, str, str], ...],
    subject: str,
    labels: np.ndarray,
    detections_sha256: str,
) -> str:
    """The page on which a reader scrolls through the scan; without images that are too large for it."""
    # where the SWI was made from echoes, the first of them stands for the scan, as in review.result
    _, name, digest = next((each for each in inputs if each[0] == "swi"), inputs[0])
    trusted = prediction.region_map.trusted
    return render_viewer(
        ViewerCase(
            title=subject,
            subject=pseudonym(name, digest),
            swi_sha256=digest,
            detections_sha256=detections_sha256,
            rows=prediction.rows,
            regions_trusted=trusted,
            warnings=prediction.warnings,
        ),
        embedded_images(
            ScanOnGrid(
                swi=prediction.swi,
                phase=None if prediction.phase is None else prediction.phase.data,
                labels=labels,
                brain_mask=prediction.brain_mask,
                region_code=prediction.region_code if trusted else None,
            )
        ),
    )


def methods_facts(
    prediction: Prediction, bundle: WeightsBundle, inputs: tuple[tuple[str, str, str], ...]
) -> MethodsFacts:
    """What the methods text of one scan depends on."""
    settings = dict(prediction.settings)
    return MethodsFacts(
        version=cmb_jax.__version__,
        weights_name=bundle.name,
        weights_sha256=bundle.sha256,
        threshold=float(settings["score_threshold"]),
        bundled=bundle.bundled,
        calibrated=settings.get("calibrated") == "yes",
        phase=prediction.phase is not None,
        own_regions=any(role == "regions" for role, _, _ in inputs),
        made_swi=any(step.startswith("SWI made") for step in prediction.steps),
        mni=any(row.mni_x_mm is not None for row in prediction.rows),
    )


def region_names_csv() -> str:
    """What the values of a region image stand for, as `--region-labels` reads it."""
    rows = (
        (int(encode(np.asarray(region), np.asarray(side))), region.name.lower(), side.name.lower())
        for side, region in itertools.product(Side, Region)
    )
    return table_text(("label", "region", "side"), rows)


def write_prediction(
    prediction: Prediction,
    bundle: WeightsBundle,
    out: Path,
    inputs: tuple[tuple[str, str, str], ...],
    *,
    subject: str,
    overwrite: bool = False,
    viewer: bool = True,
    save_regions: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write the files of a result into the new folder `out`.

    Always detections.csv, detections.json, labels.nii.gz, report.html, methods.md and prov.jsonld.

    Args:
      prediction: what was found.
      bundle: the weights that found it.
      out: folder to make.
      inputs: (role, file name, sha256) of what was read.
      subject: what the report calls the scan.
      overwrite: replace the folder if it exists.
      viewer: write viewer.html, if the images were read from files.
      save_regions: write brain.nii.gz and, where the map is trusted, regions.nii.gz with regions.csv.
      also: writes further files into the folder before it appears.

    Raises:
      UserError: the folder exists (and `overwrite` is not set) or cannot be written.
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        table = detections_csv(prediction.rows)
        (folder / "detections.csv").write_text(table)
        (folder / "detections.json").write_text(summary_json(prediction, bundle, inputs))
        labels = instance_labels(prediction)
        write_volume(folder / "labels.nii.gz", labels, prediction.swi, dtype=np.uint16)
        beside = VIEWER if viewer and inputs else ""  # verdicts are kept by the hash of what was read
        content = report_content(prediction, bundle, inputs, subject, beside)
        atomic_write_text(folder / "report.html", render_report(content))
        if beside:
            digest = hashlib.sha256(table.encode()).hexdigest()
            page = viewer_page(prediction, inputs, subject, labels, digest)
            atomic_write_text(folder / VIEWER, page)
        atomic_write_text(folder / "methods.md", methods_text([methods_facts(prediction, bundle, inputs)]))
        if save_regions:
            brain = prediction.brain_mask.astype(np.uint8)
            write_volume(folder / "brain.nii.gz", brain, prediction.swi, dtype=np.uint8)
            if prediction.region_map.trusted:
                code = prediction.region_code
                write_volume(folder / "regions.nii.gz", code, prediction.swi, dtype=np.uint8)
                atomic_write_text(folder / "regions.csv", region_names_csv())
        # the provenance lists all files but itself, so it is written last
        outputs = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        atomic_write_text(
            folder / "prov.jsonld",
            provenance_jsonld(
                program_version=cmb_jax.__version__,
                command="cmb-jax predict",
                parameters=dict(prediction.settings),
                inputs=tuple((f"urn:sha256:{digest}", name, digest) for _, name, digest in inputs),
                weights=(bundle.file_name, bundle.sha256),
                outputs=outputs,
            ),
        )
        if also is not None:
            also(folder)


def write_not_analysable(
    out: Path,
    reason: str,
    inputs: tuple[tuple[str, str, str], ...],
    *,
    subject: str,
    overwrite: bool = False,
) -> None:
    """Write detections.csv, detections.json and report.html that say why there is no count.

    The table has one line with the status and the reason, so that nobody reads no line as no microbleed.

    Raises:
      UserError: the folder exists (and `overwrite` is not set) or cannot be written.
    """
    cells = {"status": NOT_ANALYSABLE, "reason": reason}
    table = table_text(DETECTION_COLUMNS, [[cells.get(name) for name in DETECTION_COLUMNS]])
    record = {
        "notice": NOTICE,
        "status": NOT_ANALYSABLE,
        "reason": reason,
        "version": cmb_jax.__version__,
        "inputs": [{"role": role, "file": name, "sha256": digest} for role, name, digest in inputs],
    }
    page = environment().get_template("not_analysable.html")
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "detections.csv").write_text(table, encoding="utf-8")
        (folder / "detections.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        html = page.render(subject=subject, reason=reason, notice=NOTICE, inputs=inputs)
        (folder / "report.html").write_text(html, encoding="utf-8")
