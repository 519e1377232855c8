"""eval.py: a trained run on fresh simulated subjects, through the whole pipeline."""

from __future__ import annotations

import collections
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmb_jax.commands.common import run_for_people, use_compilation_cache
from cmb_jax.commands.train import parse, phantom_member
from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.evaluation.evaluate import evaluate_records
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table, report_content
from cmb_jax.evaluation.records import CANDIDATE, KEPT, REJECTED, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.result import EvaluationResult
from cmb_jax.evaluation.simulated import phantom_truth
from cmb_jax.inference.predict import LOW_SCORE, CmbDetector, Prediction, load_detector
from cmb_jax.io.atomic import atomic_directory
from cmb_jax.phantom import PhantomSubject, simulate_subject
from cmb_jax.phantom.tree import PackLoader
from cmb_jax.report.content import DetectionRow
from cmb_jax.report.evaluation_html import write_evaluation_report


def _status(row: DetectionRow) -> str:
    if row.status == "kept":
        return KEPT
    return CANDIDATE if row.reason == LOW_SCORE else REJECTED


def detections_of(prediction: Prediction, subject: str) -> SubjectDetections:
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
    )


def predict_phantom(detector: CmbDetector, phantom: PhantomSubject, with_phase: bool = True) -> Prediction:
    """The whole pipeline on a simulated scan, as a user would run it; the phase sign is the protocol's."""
    return detector.predict(
        phantom.swi,
        phantom.phase if with_phase else None,
        phantom.magnitude,
        phase_sign="+1" if phantom.phase_sign > 0 else "-1",
    )


def evaluate_detector(
    detector: CmbDetector, config: Config, subjects: int, *, with_phase: bool = True
) -> EvaluationResult:
    """Simulate `subjects` fresh scans, patient-like in their number of lesions, and evaluate on them."""
    pack_of = PackLoader()
    phantom_config = config.phantom
    waiting: collections.deque[SubjectTruth] = collections.deque()

    def detections() -> Iterator[SubjectDetections]:
        for index in tqdm(range(subjects), desc="test subjects", unit="subject"):
            seed = phantom_config.test_seed + index
            settings, anatomy = phantom_member(phantom_config, index)
            phantom = simulate_subject(pack_of(anatomy), seed, settings)
            waiting.append(phantom_truth(phantom, f"seed-{seed}"))
            yield detections_of(predict_phantom(detector, phantom, with_phase), f"seed-{seed}")

    def truths() -> Iterator[SubjectTruth]:
        # asked for after the detections of the same scan, so that one scan is in memory at a time
        while True:
            yield waiting.popleft()

    return evaluate_records(detections(), itertools.islice(truths(), subjects))


def run(config: Config, workdir: Path, overwrite: bool = False) -> EvaluationResult:
    """Evaluate WORKDIR/weights.safetensors and write WORKDIR/eval.

    Raises:
      UserError: the run has no weights yet, or an evaluation is there already.
    """
    weights = workdir / "weights.safetensors"
    if not weights.exists():
        raise UserError(f"{weights}: no trained weights; run train.py with this --workdir first")
    use_compilation_cache()
    tick = time.perf_counter()
    detector = load_detector(weights)
    result = evaluate_detector(detector, config, config.phantom.test_subjects)
    print(format_table(result))
    content = report_content(
        result,
        title=f"{config.name}: {result.scans} simulated test subjects",
        settings=(
            ("test seeds", f"{config.phantom.test_seed} and following"),
            ("protocols", ", ".join(config.phantom.protocols)),
            ("operating point", "chosen on validation subjects; test subjects are used for nothing else"),
        ),
        weights_sha256=detector.bundle.sha256,
        timings=(("evaluation", round(time.perf_counter() - tick, 1)),),
    )
    with atomic_directory(workdir / "eval", overwrite=overwrite) as folder:
        write_metrics(result, folder / "metrics.json")
        write_evaluation_report(folder / "report.html", content)
    print(f"written: {workdir / 'eval'}")
    return result


def main() -> None:
    """Entry point of eval.py."""
    overwrite = "--overwrite" in sys.argv

    def command() -> None:
        arguments = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
        text = "Evaluate a trained detector on fresh simulated subjects (--overwrite replaces WORKDIR/eval)."
        config, workdir = parse(arguments, "eval.py", text)
        run(config, workdir, overwrite)

    run_for_people(command)
