"""cmb-jax evaluate: a folder of predictions against a folder of truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmb_jax.cli.common import check_output
from cmb_jax.errors import UserError

if TYPE_CHECKING:
    from cmb_jax.evaluation.comparison import Comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score predictions against truth: sensitivity, false positives, FROC, with intervals.

    With --baseline two folders of predictions, of any programs, are compared on the same scans.
    """

    pred: Path
    """folder with one folder (detections.csv) or one NIfTI a subject."""
    truth: Path
    """a simulated tree, VALDO's Task2 folder, or a folder of label images."""
    out: Path
    """JSON file to write."""
    rule: Literal["center3", "center5", "touch", "box_iou", "valdo"] = "center3"
    """matching rule of the headline figures; all rules are in the file."""
    threshold: float | None = None
    """operating point; default: what the predictions say they keep."""
    baseline: Path | None = None
    """predictions of another program on the same scans, compared with --pred scan by scan; the result goes
    beside --out as NAME.comparison.json."""
    report: Path | None = None
    """HTML page to write too, with FROC, reliability and counts drawn."""
    overwrite: bool = False
    """replace the file if it exists."""
    keep_identifiers: bool = False
    """keep the names of the scans' folders, instead of numbers (docs/privacy.md)."""


def run(options: EvaluateOptions) -> None:
    """Evaluate, print the table, write the metrics and the page; with `baseline` compare the two as well."""
    from cmb_jax.evaluation.comparison import comparison_table, comparison_values
    from cmb_jax.evaluation.evaluate import evaluate
    from cmb_jax.evaluation.matching import VALDO
    from cmb_jax.evaluation.metrics import write_metrics
    from cmb_jax.evaluation.present import format_table, report_content, scans_text
    from cmb_jax.io.atomic import atomic_write_text
    from cmb_jax.report.evaluation import render_evaluation_report

    pred, truth, rule, baseline = options.pred, options.truth, options.rule, options.baseline
    out, report, overwrite = options.out, options.report, options.overwrite
    compared = out.with_name(f"{out.stem}.comparison.json")
    if baseline is not None:
        check_output(compared, overwrite)
        if options.threshold is not None or rule == VALDO.name:
            raise UserError(
                "--baseline compares both at their own operating points by one of the other rules; leave "
                "--threshold and --rule valdo out"
            )
    result = evaluate(
        pred,
        truth,
        rule=rule,
        threshold=options.threshold,
        keep_identifiers=options.keep_identifiers,
    )
    print(format_table(result))
    write_metrics(result, out, overwrite=overwrite)
    print(f"written: {out}")
    if baseline is not None:
        comparison = compare_folders(pred, baseline, truth, rule)
        print(comparison_table(comparison))
        text = json.dumps(comparison_values(comparison), indent=2) + "\n"
        atomic_write_text(compared, text, overwrite=overwrite)
        print(f"written: {compared}")
    if report is not None:
        content = report_content(result, title=f"Evaluation on {scans_text(result)}")
        atomic_write_text(report, render_evaluation_report(content), overwrite=overwrite)
        print(f"written: {report} (research use only)")


def compare_folders(pred: Path, baseline: Path, truth: Path, rule: str) -> Comparison:
    """Compare two folders of predictions on the same scans, of any programs; differences are paired by scan.

    A scan without a prediction counts as empty, as in `evaluate`.
    """
    from cmb_jax.evaluation.comparison import compare
    from cmb_jax.evaluation.matching import TOUCH
    from cmb_jax.evaluation.read import find_predictions, find_truth

    truths = find_truth(truth)
    subjects = [source.subject for source in truths]
    found, by_baseline = (
        [source.read(None) for source in find_predictions(folder, subjects)] for folder in (pred, baseline)
    )
    needs_volumes = rule == TOUCH.name
    # only this rule looks at label volumes, and those of a whole study need not stay in memory
    lesions = [source.read() for source in truths]
    if not needs_volumes:
        lesions = [dataclasses.replace(each, volume=None, mimics=None) for each in lesions]
    names = (pred.name, baseline.name) if pred.name != baseline.name else (str(pred), str(baseline))
    return compare(names, found, by_baseline, lesions, rule=rule)
