"""The DICOM files of a result: segmentation and structured report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmb_jax.dicom.findings import Maker, findings_of
from cmb_jax.dicom.grid import FrameMapping
from cmb_jax.dicom.identity import source_headers
from cmb_jax.dicom.measurement_report import make_report
from cmb_jax.dicom.segmentation import make_segmentation
from cmb_jax.dicom.stacks import Stack
from cmb_jax.report.content import DetectionRow

SEGMENTATION_FILE, REPORT_FILE = "segmentation.dcm", "report.dcm"
_SERIES_OFFSET = 9000  # results are numbered after their source, beyond the scanner's own series


def write_results(
    folder: Path,
    rows: tuple[DetectionRow, ...],
    labels_xyz: np.ndarray,
    mapping: FrameMapping,
    reference: Stack,
    *,
    weights_sha256: str,
    keep_identifiers: bool,
) -> tuple[str, ...]:
    """Writes segmentation.dcm (if anything was kept) and report.dcm.

    Args:
        folder: existing folder to write into.
        rows: all detections; the kept ones go into the files.
        labels_xyz: (X, Y, Z) ids of the kept rows, on the volume that `mapping` belongs to.
        mapping: from the volume to the frames of `reference`.
        reference: the stack that the results refer to.
        weights_sha256: of the detector.
        keep_identifiers: take over name, ID and the rest about patient and study.

    Returns:
        Names of the files.
    """
    sources = source_headers(reference.instances, keep_identifiers)
    findings = findings_of(rows)
    maker = Maker(
        series_number=_SERIES_OFFSET + (reference.instance.series_number or 0),
        serial_number=weights_sha256[:16],
    )
    segmentation = None
    if findings:
        segmentation = make_segmentation(
            sources,
            [frame.number for frame in reference.frames],
            mapping.to_frames(labels_xyz),
            findings,
            maker,
            keep_identifiers=keep_identifiers,
        )
        segmentation.save_as(folder / SEGMENTATION_FILE)
    report = make_report(sources, segmentation, findings, maker, keep_identifiers=keep_identifiers)
    report.save_as(folder / REPORT_FILE)
    return (SEGMENTATION_FILE, REPORT_FILE) if findings else (REPORT_FILE,)
