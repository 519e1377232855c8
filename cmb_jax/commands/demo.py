"""cmb-jax demo: the bundled phantom, from images to a scored report, without any network."""

from __future__ import annotations

import sys
from pathlib import Path

from cmb_jax.commands.predict import check_output, summary
from cmb_jax.commands.predict import run as predict
from cmb_jax.evaluation.evaluate import evaluate
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table
from cmb_jax.io.atomic import atomic_directory

BUNDLED = Path(__file__).resolve().parent.parent / "demo"
SUBJECT = "sub-0001"


def run(*, out: Path, overwrite: bool = False) -> None:
    """Predict on the bundled phantom, evaluate against its truth, print the table and where the report is.

    Raises:
      UserError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    check_output(out, overwrite)
    images = BUNDLED / SUBJECT / "anat"
    print("A simulated subject with known microbleeds and mimics (no patient data).", file=sys.stderr)
    with atomic_directory(out, overwrite=overwrite) as folder:
        prediction = predict(
            swi=images / f"{SUBJECT}_swi.nii.gz",
            phase=images / f"{SUBJECT}_part-phase_T2starw.nii.gz",
            out=folder / SUBJECT,
            announce=False,
        )
        print(summary(prediction))
        result = evaluate(folder, BUNDLED)
        write_metrics(result, folder / "metrics.json")
        print(format_table(result))
    print(f"\nOpen {out / SUBJECT / 'report.html'} in a browser. Research use only; not a diagnosis.")
    command = Path(sys.argv[0])  # as it was started: `make demo` runs it out of .venv
    shown = command if command.name == "cmb-jax" and command.is_file() else "cmb-jax"
    print(f"To scroll through the scan and judge each candidate: {shown} view {out / SUBJECT}")
