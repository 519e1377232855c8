"""cmb-jax evaluate: a folder of predictions against a folder of truth."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.commands.predict import check_output
from cmb_jax.evaluation.evaluate import evaluate
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table


def run(
    *,
    pred: Path,
    truth: Path,
    out: Path,
    rule: str,
    threshold: float | None,
    overwrite: bool = False,
    keep_identifiers: bool = False,
) -> None:
    """Evaluate, print the table, write the metrics.

    Raises:
      UserError: folders that cannot be read or do not belong together; a file that exists.
    """
    check_output(out, overwrite)
    result = evaluate(pred, truth, rule=rule, threshold=threshold, keep_identifiers=keep_identifiers)
    print(format_table(result))
    write_metrics(result, out, overwrite=overwrite)
    print(f"written: {out}")
