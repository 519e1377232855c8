"""cmb-jax predict: from the images of one scan, NIfTI or DICOM, to a folder of results.

cmb-jax demo: the same on the bundled phantom, scored against its truth; works offline.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmb_jax.cli.common import existing_file
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.inference.options import ScanOptions
from cmb_jax.progress import Say, stopwatch, tell
from cmb_jax.scan import PhaseSign

if TYPE_CHECKING:
    from cmb_jax.anatomy.own_regions import LabelTable
    from cmb_jax.dicom.load import DicomImages
    from cmb_jax.evaluation.evaluate import EvaluationResult
    from cmb_jax.inference.bundle import WeightsBundle
    from cmb_jax.inference.predict import Prediction
    from cmb_jax.io.volume import Volume
    from cmb_jax.scan.phase_range import PhaseRange


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(ScanOptions):
    """Find, locate and report the microbleeds of one scan, given as NIfTI (--swi) or DICOM (--dicom).

    Writes detections.csv, detections.json, labels.nii.gz, report.html, viewer.html, methods.md (text for a
    paper) and prov.jsonld into a new folder.
    """

    out: Path
    """folder to make."""
    swi: Path | None = None
    """susceptibility-weighted or T2*-weighted image (NIfTI)."""
    dicom: Path | None = None
    """folder with the scan's DICOM series, sorted or not; `cmb-jax dicom` shows what is in it."""
    series: tuple[str, ...] = ()
    """series to use if several fit: numbers as `cmb-jax dicom` lists them, or series UIDs."""
    phase: Path | None = None
    """phase image on the same grid."""
    magnitude: Path | None = None
    """magnitude image on the same grid, for the brain regions."""
    dicom_out: bool = False
    """write segmentation.dcm, report.dcm and key_images too, which refer to the DICOM series."""
    overwrite: bool = False
    """replace the folder if it exists."""
    keep_identifiers: bool = False
    """keep original file names and, in DICOM results, patient and study, as a PACS needs it (docs/privacy.md,
    docs/dicom.md); default: neutral names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanInput:
    """One scan as it goes into the detector, whatever files it came from."""

    swi: Volume
    phase: Volume | None
    magnitude: Volume | None
    phase_sign: PhaseSign
    phase_range: PhaseRange | None
    subject: str  # what the report calls it
    inputs: tuple[tuple[str, str, str], ...]  # (role, name, sha256) of what was read
    steps: tuple[str, ...] = ()  # done before the detector
    warnings: tuple[str, ...] = ()


OwnRegions = tuple["Volume", "LabelTable"]
"""A label volume that takes the place of the region network, and what its numbers mean."""

FurtherFiles = Callable[[Path, "Prediction", "WeightsBundle"], None]


def own_regions(options: ScanOptions) -> OwnRegions | None:
    """The user's label volume and its table, which by default is that of FreeSurfer and SynthSeg."""
    from cmb_jax.anatomy.own_regions import label_table
    from cmb_jax.io.nifti import read_volume

    if options.regions is None:
        return None
    return read_volume(options.regions), label_table(options.region_labels)


def summary(prediction: Prediction) -> str:
    """What was found, in a sentence or two."""
    kept = prediction.kept
    rejected = len(prediction.rows) - len(kept)
    definite = sum(row.category == "definite" for row in kept)
    if not kept:
        found = "No microbleed was kept."
    else:
        noun = "microbleed" if len(kept) == 1 else "microbleeds"
        found = f"{len(kept)} {noun} kept ({definite} definite, {len(kept) - definite} possible)."
        if prediction.region_map.trusted:
            zones = {
                zone: sum(row.zone == zone for row in kept) for zone in ("lobar", "deep", "infratentorial")
            }
            found += " " + ", ".join(f"{zone} {count}" for zone, count in zones.items()) + "."
    noun = "candidate" if rejected == 1 else "candidates"
    best = "" if not prediction.unlisted else f" (the best of {rejected + prediction.unlisted})"
    return f"{found} {rejected} {noun} rejected{best}, each with its reason in detections.csv."


def run(options: PredictOptions) -> None:
    """Predict; the summary and the report's place on stdout."""
    if options.regions is not None:
        existing_file(options.regions, "regions")
    elif options.region_labels is not None:
        raise UserError("--region-labels goes with --regions VOLUME")
    options.stated_range()  # checked now, not after JAX is imported
    if options.dicom is not None:
        if options.swi is not None or options.phase is not None or options.magnitude is not None:
            raise UserError("--dicom: the folder takes the place of --swi, --phase and --magnitude; give one")
    elif options.swi is None:
        raise UserError("give the scan: --swi IMAGE (NIfTI), or --dicom FOLDER")
    elif options.series or options.dicom_out:
        raise UserError("--series and --dicom-out go with --dicom FOLDER")
    prediction = predict(options) if options.dicom is None else _predict_dicom(options, options.dicom)
    print(summary(prediction))
    print(f"Report: {options.out / 'report.html'} (research use only)")
    if options.viewer:
        print(f"Scroll and judge: cmb-jax view {options.out}")


def predict(options: PredictOptions) -> Prediction:
    """Read NIfTI images, predict, write; progress on stderr."""
    from cmb_jax.inference.outputs import described_inputs
    from cmb_jax.io.atomic import sha256_file
    from cmb_jax.io.header import check_fits
    from cmb_jax.io.nifti import read_volume
    from cmb_jax.io.provenance import stem

    say = stopwatch()
    swi, phase, magnitude, out = options.swi, options.phase, options.magnitude, options.out
    assert swi is not None
    # images that their header already rules out are refused before they are read: only their hash is known
    files = {"the SWI": swi, "the phase": phase, "the magnitude": magnitude}
    with refusal_recorded(out, (("swi", "swi", sha256_file(swi)),), "scan", options.overwrite, files):
        check_fits(swi, phase)
        swi_volume = read_volume(swi, reduced="mean")
        phase_volume = None if phase is None else read_volume(phase, reduced="first")
        magnitude_volume = None if magnitude is None else read_volume(magnitude, reduced="mean")
    own = own_regions(options)
    inputs = described_inputs(
        keep_identifiers=options.keep_identifiers,
        swi=swi_volume,
        phase=phase_volume,
        magnitude=magnitude_volume,
        regions=None if own is None else own[0],
    )
    scan = ScanInput(
        swi=swi_volume,
        phase=phase_volume,
        magnitude=magnitude_volume,
        phase_sign=options.phase_sign,
        phase_range=options.stated_range(),
        subject=stem(inputs[0][1]),
        inputs=inputs,
    )
    return predict_scan(scan, options, say, regions=own)


def _predict_dicom(options: PredictOptions, dicom: Path) -> Prediction:
    """Sort, choose, convert, predict, write.

    Beside the usual results, the folder gets swi.nii.gz, on whose grid labels.nii.gz lies, and with
    `dicom_out` segmentation.dcm, report.dcm and key_images.
    """
    from cmb_jax.cli.dicom import problem_lines, read_candidates
    from cmb_jax.dicom.choose import choose
    from cmb_jax.dicom.load import load
    from cmb_jax.dicom.results import prepare_results
    from cmb_jax.inference.outputs import instance_labels
    from cmb_jax.io.nifti import write_volume

    say = stopwatch()
    own = own_regions(options)
    say("reading DICOM headers")
    content, found = read_candidates(dicom)
    choice = choose(found, options.series)
    with refusal_recorded(options.out, (), "DICOM series", options.overwrite):
        images = load(choice, phase_range=options.stated_range(), phase_sign=options.phase_sign, progress=say)
    keep = options.keep_identifiers
    # before the prediction: headers that no DICOM result can refer to should not cost minutes
    results = prepare_results(images.reference, keep_identifiers=keep) if options.dicom_out else None

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

    scan = _scan_input(images, options.phase_sign, keep)
    prediction = predict_scan(scan, options, say, regions=own, further=further)
    for line in problem_lines(content.problems, found):
        print(line, file=sys.stderr)
    return prediction


def _scan_input(images: DicomImages, phase_sign: PhaseSign, keep_identifiers: bool) -> ScanInput:
    from cmb_jax.scan.phase_range import PhaseRange

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


@contextmanager
def refusal_recorded(
    out: Path,
    inputs: tuple[tuple[str, str, str], ...],
    subject: str,
    overwrite: bool,
    files: Mapping[str, Path | None] | None = None,
) -> Iterator[None]:
    """If the body of the `with` finds images not analysable, write results that say why, and raise again.

    In the reason, paths of `files` are replaced by their roles, the keys: file names may identify a person.
    """
    from cmb_jax.inference.outputs import write_not_analysable

    try:
        yield
    except NotAnalysableError as error:
        reason = str(error)
        for role, path in (files or {}).items():
            reason = reason if path is None else reason.replace(str(path), role)
        write_not_analysable(out, reason, inputs, subject=subject, overwrite=overwrite)
        raise


def predict_scan(
    scan: ScanInput,
    options: PredictOptions,
    say: Say,
    *,
    regions: OwnRegions | None = None,
    further: FurtherFiles | None = None,
) -> Prediction:
    """Predict and write the results of one scan; `further` adds files to the folder.

    `regions` takes the place of the region network.
    """
    from cmb_jax.anatomy.own_regions import regions_from_labels
    from cmb_jax.devices import use_compilation_cache
    from cmb_jax.inference.outputs import write_prediction
    from cmb_jax.inference.predict import CmbDetector

    # what can be wrong with the user's files is found before the weights are loaded and compiled
    region_map = None if regions is None else regions_from_labels(*regions, scan.swi)
    use_compilation_cache()
    detector = CmbDetector.load(options)
    with refusal_recorded(options.out, scan.inputs, scan.subject, options.overwrite):
        prediction = detector.predict(
            scan.swi,
            scan.phase,
            scan.magnitude,
            phase_sign=scan.phase_sign,
            phase_range=scan.phase_range,
            region_map=region_map,
            progress=say,
        )
    prediction = dataclasses.replace(
        prediction,
        steps=(*scan.steps, *prediction.steps),
        warnings=(*scan.warnings, *prediction.warnings),
    )
    say("writing the report")
    write_prediction(
        prediction,
        detector.bundle,
        options.out,
        scan.inputs,
        subject=scan.subject,
        overwrite=options.overwrite,
        viewer=options.viewer,
        save_regions=options.save_regions,
        also=None if further is None else lambda folder: further(folder, prediction, detector.bundle),
    )
    for line in prediction.warnings:
        print(f"warning: {line}", file=sys.stderr)
    return prediction


BUNDLED = Path(__file__).resolve().parent.parent / "demo"
SUBJECT = "sub-0001"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Run detection on the bundled phantom, score it against its truth and write the report."""

    out: Path = Path("demo_output")
    """folder to make."""
    details: bool = False
    """print every table of the evaluation."""
    overwrite: bool = False
    """replace the folder if it exists."""


def demo(options: DemoOptions) -> None:
    """Predict on the bundled phantom, score it against its truth, print the score and where the report is."""
    from cmb_jax.evaluation.evaluate import evaluate
    from cmb_jax.evaluation.metrics import write_metrics
    from cmb_jax.evaluation.present import format_table
    from cmb_jax.io.atomic import atomic_directory

    out, images = options.out, BUNDLED / SUBJECT / "anat"
    tell("A simulated subject with known microbleeds and mimics (no patient data).")
    with atomic_directory(out, overwrite=options.overwrite) as folder:
        prediction = predict(
            PredictOptions(
                swi=images / f"{SUBJECT}_swi.nii.gz",
                phase=images / f"{SUBJECT}_part-phase_T2starw.nii.gz",
                out=folder / SUBJECT,
            )
        )
        print(summary(prediction))
        result = evaluate(folder, BUNDLED)
        write_metrics(result, folder / "metrics.json")
        if options.details:
            print(format_table(result))
        else:
            print(score(result))
    print(f"Open {out / SUBJECT / 'report.html'} in a browser. Research use only; not a diagnosis.")
    command = Path(sys.argv[0])  # as it was started: `make demo` runs it out of .venv
    shown = command if command.name == "cmb-jax" and command.is_file() else "cmb-jax"
    print(f"To scroll through the scan and judge each candidate: {shown} view {out / SUBJECT}")


def score(result: EvaluationResult) -> str:
    """One line: how the detections compare with the truth."""
    scan = result.subjects[0]
    ignored = f", {scan.ignored} on a lesion too faint to count" if scan.ignored else ""
    return (
        f"Against the truth: {scan.tp} of {scan.lesions} microbleeds found, {scan.fp} false positives"
        f"{ignored} (center within 3 mm; --details prints every table)."
    )
