"""The self-contained HTML page of an evaluation, from plain numbers and arrays."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.html import environment
from cmb_jax.report.plots import (
    CountAgreementText,
    FrocLine,
    ReliabilityLine,
    SubjectLine,
    count_plot,
    difference_plot,
    froc_plot,
    reliability_plot,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """One large number at the top of the page."""

    label: str  # e.g. "Sensitivity"
    value: str  # e.g. "0.93"
    note: str = ""  # e.g. "95 % interval 0.90 to 0.96"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]  # None and NaN are shown as a dash
    note: str = ""  # rule, threshold, connectivity, denominator

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationContent:
    """Everything that the evaluation page shows."""

    title: str
    subtitle: str = ""  # e.g. matching rule, operating point, number of scans
    headlines: tuple[Headline, ...] = ()
    tables: tuple[Table, ...] = ()
    curves: tuple[FrocLine, ...] = ()
    curve_note: str = ""  # matching rule, denominator, what the band is
    reliability: ReliabilityLine | None = None
    subjects: tuple[SubjectLine, ...] = ()
    agreement: CountAgreementText | None = None
    warnings: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    inputs: tuple[tuple[str, str, str], ...] = ()  # (role, file name, sha256)
    weights_sha256: str = ""
    version: str = ""
    steps: tuple[str, ...] = ()
    timings: tuple[tuple[str, float], ...] = ()  # (name, seconds)


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
