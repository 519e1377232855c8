"""cmb-jax evaluate: a folder of predictions against a folder of truth."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.commands.predict import check_output
from cmb_jax.evaluation.evaluate import evaluate
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table, report_content, scans_text
from cmb_jax.report.evaluation_html import write_evaluation_report


def run(
    *,
    pred: Path,
    truth: Path,
    out: Path,
    rule: str,
    threshold: float | None,
    report: Path | None = None,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Evaluate, print the table, write the metrics and the page.

    Raises:
      UserError: folders that cannot be read or do not belong together; a file that exists.
    """
    for path in (out, *(() if report is None else (report,))):
        check_output(path, overwrite)
    result = evaluate(pred, truth, rule=rule, threshold=threshold, keep_identifiers=keep_identifiers)
    print(format_table(result))
    write_metrics(result, out, overwrite=overwrite)
    print(f"written: {out}")
    if report is not None:
        content = report_content(result, title=f"Evaluation on {scans_text(result)}")
        write_evaluation_report(report, content, overwrite=overwrite)
        print(f"written: {report} (research use only)")
