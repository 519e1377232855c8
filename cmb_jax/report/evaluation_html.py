"""The self-contained HTML page of an evaluation."""

from __future__ import annotations

import math
from pathlib import Path

from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.evaluation_content import EvaluationContent, Table
from cmb_jax.report.html import environment
from cmb_jax.report.plots import count_plot, difference_plot, froc_plot, reliability_plot


def cell_text(value: str | float | int | None) -> str:
    """A table cell for people: floats with up to three significant decimals, a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold no text: they are set flush right."""
    return [all(not isinstance(row[n], str) for row in table.rows) for n in range(len(table.columns))]


def render_evaluation_report(content: EvaluationContent) -> str:
    """The page as one string: drawings inlined, no script, nothing fetched from anywhere."""
    plots = [] if content.reliability is None else [("Reliability", reliability_plot(content.reliability))]
    if content.subjects:
        plots.append(("Counts per scan", count_plot(content.subjects)))
        if content.agreement is not None and len(content.subjects) > 1:
            plots.append(("Bland-Altman", difference_plot(content.subjects, content.agreement)))
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            content=content,
            froc=froc_plot(content.curves) if content.curves else None,
            plots=plots,
            tables=[(table, numeric_columns(table)) for table in content.tables],
            cell_text=cell_text,
        )
    )


def write_evaluation_report(path: Path, content: EvaluationContent, *, overwrite: bool = False) -> None:
    """Render the page and put it at `path` in one step.

    Raises:
        UserError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    atomic_write_text(path, render_evaluation_report(content), overwrite=overwrite)
