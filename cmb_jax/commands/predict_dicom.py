"""cmb-jax predict --dicom: a folder of DICOM series in, a folder of results out, as DICOM too if wanted."""

from __future__ import annotations

import sys
from pathlib import Path

from cmb_jax.commands.common import StoredPhase, check_output, check_threshold, stopwatch
from cmb_jax.commands.dicom import problem_lines, read_candidates
from cmb_jax.commands.predict import (
    OwnRegions,
    ScanInput,
    predict_scan,
    refusal_recorded,
)
from cmb_jax.config import Flips, Precision
from cmb_jax.dicom.choose import choose
from cmb_jax.dicom.load import DicomImages, load
from cmb_jax.dicom.results import prepare_results
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.outputs import instance_labels
from cmb_jax.inference.predict import PhaseSign, Prediction
from cmb_jax.io.nifti import write_volume
from cmb_jax.scan.phase_range import PhaseRange, asked_range


def run(
    *,
    dicom: Path,
    out: Path,
    series: tuple[str, ...] = (),
    phase_sign: PhaseSign = "auto",
    phase_range: StoredPhase = ("auto",),
    weights: str = "small",
    flips: Flips | None = None,
    threshold: float | None = None,
    precision: Precision | None = None,
    regions: Path | None = None,
    region_labels: Path | None = None,
    dicom_out: bool = False,
    viewer: bool = True,
    save_regions: bool = False,
    keep_identifiers: bool = False,
    overwrite: bool = False,
) -> Prediction:
    """Sort, choose, convert, predict, write.

    Beside the usual results the folder holds swi.nii.gz, the image that labels.nii.gz lies on, and with
    `dicom_out` segmentation.dcm, report.dcm and key_images.

    Raises:
      UserError: no scan in the folder, several of them, or anything wrong with one.
    """
    say = stopwatch()
    check_output(out, overwrite)
    check_threshold(threshold)
    own = None if regions is None else OwnRegions.read(regions, region_labels)
    say("reading DICOM headers")
    content, found = read_candidates(dicom)
    choice = choose(found, series)
    with refusal_recorded(out, (), "DICOM series", overwrite):
        images = load(choice, phase_range=asked_range(phase_range), phase_sign=phase_sign, progress=say)
    results = prepare_results(images.reference, keep_identifiers=keep_identifiers) if dicom_out else None

    def further(folder: Path, prediction: Prediction, bundle: WeightsBundle) -> None:
        write_volume(folder / "swi.nii.gz", images.swi.data, images.swi)
        if results is not None:
            say("writing DICOM")
            labels = instance_labels(prediction)
            results.write(
                folder,
                prediction.rows,
                labels,
                images.mapping,
                bundle.sha256,
                swi=prediction.swi,
                brain_mask=prediction.brain_mask,
                trusted=prediction.region_map.trusted,
            )

    prediction = predict_scan(
        _scan_input(images, phase_sign, keep_identifiers),
        out,
        weights=weights,
        flips=flips,
        threshold=threshold,
        precision=precision,
        regions=own,
        viewer=viewer,
        save_regions=save_regions,
        overwrite=overwrite,
        say=say,
        further=further,
    )
    for line in problem_lines(content.problems, found):
        print(line, file=sys.stderr)
    return prediction


def _scan_input(images: DicomImages, phase_sign: PhaseSign, keep_identifiers: bool) -> ScanInput:
    instance = images.reference.instance
    subject = f"series {images.reference.key}"
    if keep_identifiers and instance.patient_id:
        subject = f"{instance.patient_id}, {subject}"
    return ScanInput(
        swi=images.swi,
        phase=images.phase,
        magnitude=images.magnitude,
        phase_sign="+1" if images.paramagnetic_positive else phase_sign,
        phase_range=PhaseRange.RADIANS,
        subject=subject,
        inputs=images.inputs,
        steps=images.steps,
        warnings=images.warnings,
    )
