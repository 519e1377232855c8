"""The whole pipeline with a run's weights, on new simulated subjects or on the test part of an index."""

import collections
import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.config import Config
from cmb_jax.core.detection import DetectionRow
from cmb_jax.datasets.cases import Case
from cmb_jax.datasets.images import read_scan
from cmb_jax.datasets.lesions import lesions_of
from cmb_jax.devices import use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.evaluation.comparison import Comparison, compare, comparison_table, comparison_values
from cmb_jax.evaluation.evaluate import EvaluationResult, evaluate_records
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table, report_content
from cmb_jax.evaluation.read import phantom_truth
from cmb_jax.evaluation.records import (
    CANDIDATE,
    KEPT,
    REJECTED,
    LabeledVolume,
    SubjectDetections,
    SubjectTruth,
)
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import CmbDetector, Prediction
from cmb_jax.io.atomic import atomic_directory, atomic_write_text
from cmb_jax.io.volume import ScanImages
from cmb_jax.phantom import simulate_subject
from cmb_jax.progress import track
from cmb_jax.report.evaluation import render_evaluation_report
from cmb_jax.scan import PhaseSign
from cmb_jax.training import run_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scan:
    """One scan with its truth."""

    images: ScanImages
    phase_sign: PhaseSign
    truth: SubjectTruth


def _simulated_scans(config: Config) -> Iterator[_Scan]:
    """New simulated subjects with as many lesions as patients have; the phase sign is the protocol's."""
    pack_of = functools.cache(load_pack)
    for index in range(config.phantom.test_subjects):
        seed = config.phantom.test_seed + index
        settings, anatomy = run_data.phantom_member(config.phantom, index)
        phantom = simulate_subject(pack_of(anatomy), seed, settings)
        yield _Scan(
            images=ScanImages(swi=phantom.swi, phase=phantom.phase, magnitude=phantom.magnitude),
            phase_sign="+1" if phantom.phase_sign > 0 else "-1",
            truth=phantom_truth(phantom, f"seed-{seed}"),
        )


def _open_test_part(config: Config, workdir: Path) -> run_data.OwnData:
    """The index and its split; raises UserError if the run has seen some of the test part."""
    own = run_data.open_data(config.data)
    for note in own.notes:
        print(f"note: {note}", file=sys.stderr)
    cases = own.parts["test"]
    if not cases:
        raise UserError(
            f"{config.data.index}: no case is in the test part; "
            "see --data.split-file and --data.split-fractions"
        )
    seen = run_data.seen_images(workdir)
    known = [case.case_id for case in cases if seen and _image_hash(case, own.root) in seen]
    if known:
        raise UserError(
            f"{workdir}: this run was trained or validated on {len(known)} of the {len(cases)} test scans, "
            f"such as {known[0]}; give --data.split-file {workdir / run_data.SPLIT_FILE}, the split that it "
            "used"
        )
    return own


def _image_hash(case: Case, root: Path) -> str:
    return run_data.file_hashes(case, root)[case.images[case.reference]]


def _own_scans(own: run_data.OwnData) -> Iterator[_Scan]:
    """The scans of the test part that can be read; the others are named on stderr and left out."""
    for case in own.parts["test"]:
        try:
            truth, images = _case_truth(case, own.root), read_scan(case, own.root)
        except UserError as error:
            print(f"skipped: {case.case_id}: {str(error).replace(f'{own.root}/', '')}", file=sys.stderr)
            continue
        yield _Scan(images=images, phase_sign="auto", truth=truth)


def _case_truth(case: Case, root: Path) -> SubjectTruth:
    lesions = lesions_of(case, root)
    volume = None
    if lesions.labels is not None:
        volume = LabeledVolume(labels=lesions.labels, affine=lesions.grid.affine)
    return SubjectTruth(
        subject=case.case_id,
        centers_mm=lesions.centers_mm,
        diameters_mm=lesions.diameters_mm,
        volume=volume,
    )


def _status(row: DetectionRow) -> str:
    if row.status == "kept":
        return KEPT
    return CANDIDATE if row.below_operating_point else REJECTED


def _as_detections(prediction: Prediction, subject: str) -> SubjectDetections:
    """A prediction as the evaluation takes it."""
    rows = prediction.rows
    return SubjectDetections(
        subject=subject,
        centers_mm=np.array([[row.x_mm, row.y_mm, row.z_mm] for row in rows]).reshape(-1, 3),
        scores=np.array([row.score for row in rows]),
        diameters_mm=np.array([row.diameter_mm for row in rows]),
        status=tuple(_status(row) for row in rows),
        zones=tuple(row.zone for row in rows),
        regions=tuple(row.region for row in rows),
        probabilities=np.array(
            [np.nan if row.probability is None else row.probability for row in rows], np.float64
        ),
        reasons=tuple(row.reason for row in rows),
    )


def _predict(detector: CmbDetector, scan: _Scan, region_map: RegionMap | None = None) -> Prediction:
    """The whole pipeline on one scan, as a user runs it; `region_map` saves computing it once more."""
    images = scan.images
    return detector.predict(
        images.swi, images.phase, images.magnitude, phase_sign=scan.phase_sign, region_map=region_map
    )


def _evaluate(
    detector: CmbDetector, scans: Iterable[_Scan], baseline: CmbDetector | None = None
) -> tuple[EvaluationResult, Comparison | None]:
    """Evaluate on scans, with one in memory at a time; those that cannot be predicted are left out."""
    # The evaluation pulls detections and truths in turn, so that label volumes are freed scan by scan: a
    # truth waits until it is asked for, after the detections of the same scan.
    waiting: collections.deque[SubjectTruth] = collections.deque()
    found: list[SubjectDetections] = []
    found_by_baseline: list[SubjectDetections] = []
    centers: list[SubjectTruth] = []

    def detections() -> Iterator[SubjectDetections]:
        for scan in scans:
            try:
                ours = _predict(detector, scan)
                theirs = None if baseline is None else _predict(baseline, scan, ours.region_map)
            except UserError as error:
                print(f"skipped: {scan.truth.subject}: {error}", file=sys.stderr)
                continue
            found_here = _as_detections(ours, scan.truth.subject)
            if theirs is not None:
                found.append(found_here)
                found_by_baseline.append(_as_detections(theirs, scan.truth.subject))
                centers.append(dataclasses.replace(scan.truth, volume=None, mimics=None))
            waiting.append(scan.truth)
            yield found_here

    def truths() -> Iterator[SubjectTruth]:
        while waiting:
            yield waiting.popleft()

    stream = detections()
    first = next(stream, None)
    if first is None:
        raise UserError("no test scan could be evaluated; see the reasons above")
    result = evaluate_records(itertools.chain([first], stream), truths())
    if baseline is None:
        return result, None
    names = (detector.bundle.path.stem, baseline.bundle.path.stem)
    return result, compare(names, found, found_by_baseline, centers)


def evaluate_run(
    config: Config, workdir: Path, overwrite: bool = False, baseline: str | None = None
) -> EvaluationResult:
    """Evaluate WORKDIR/weights.safetensors and write WORKDIR/eval.

    Args:
      config: test subjects, or the index and its split.
      workdir: of a run of `train_run`.
      overwrite: replace an earlier evaluation.
      baseline: name or file of other weights, to be compared with on the same scans.

    Raises:
      UserError: the run has no weights yet, or no test scans can be used.
    """
    weights = workdir / "weights.safetensors"
    use_compilation_cache()
    tick = time.perf_counter()
    detector = CmbDetector.load(ScanOptions(weights=str(weights)))
    other = None if baseline is None else CmbDetector.load(ScanOptions(weights=baseline))
    if config.data.index is None:
        scans, count = _simulated_scans(config), config.phantom.test_subjects
        what = "simulated test subjects"
        settings = (
            ("test seeds", f"{config.phantom.test_seed} and following"),
            ("protocols", ", ".join(config.phantom.protocols)),
        )
    else:
        own = _open_test_part(config, workdir)
        scans, count = _own_scans(own), len(own.parts["test"])
        what = "own test scans"
        patients = len({case.patient_id for case in own.parts["test"]})
        settings = (("kind of the index", own.index.kind), ("test patients", str(patients)))
    progress = track(scans, "test scans", total=count)
    result, comparison = _evaluate(detector, progress, other)
    print(format_table(result))
    if comparison is not None:
        print(comparison_table(comparison))
    content = report_content(
        result,
        title=f"{config.name}: {result.scans} {what}",
        settings=(
            *settings,
            ("operating point", "chosen on validation scans; test scans are used for nothing else"),
        ),
        weights_sha256=detector.bundle.sha256,
        timings=(("evaluation", round(time.perf_counter() - tick, 1)),),
    )
    with atomic_directory(workdir / "eval", overwrite=overwrite) as folder:
        write_metrics(result, folder / "metrics.json")
        atomic_write_text(folder / "report.html", render_evaluation_report(content))
        if comparison is not None:
            text = json.dumps(comparison_values(comparison), indent=2) + "\n"
            atomic_write_text(folder / "comparison.json", text)
    print(f"written: {workdir / 'eval'}")
    return result
