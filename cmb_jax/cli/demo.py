"""cmb-jax demo: the bundled phantom, from images to a scored report, without any network."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cmb_jax.cli.predict import PredictOptions, predict, summary
from cmb_jax.progress import tell

if TYPE_CHECKING:
    from cmb_jax.evaluation.evaluate import EvaluationResult

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


def run(options: DemoOptions) -> None:
    """Predict on the bundled phantom, evaluate against its truth, say how it did and where the report is."""
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
    """How the detections do against the truth, in a line."""
    scan = result.subjects[0]
    ignored = f", {scan.ignored} on a lesion too faint to count" if scan.ignored else ""
    return (
        f"Against the truth: {scan.tp} of {scan.lesions} microbleeds found, {scan.fp} false positives"
        f"{ignored} (center within 3 mm; --details prints every table)."
    )
