"""The self-contained HTML page of an ablation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.embedding_plot import EmbeddingMap, embedding_plot
from cmb_jax.report.evaluation_content import FrocLine, Table
from cmb_jax.report.evaluation_html import cell_text, numeric_columns
from cmb_jax.report.html import environment
from cmb_jax.report.plots import froc_plot

CURVES_A_PLOT = 3  # more bands hide each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationContent:
    """Everything that the page shows."""

    title: str
    sentences: tuple[str, ...]  # rule, thresholds, subjects, reference
    curves: tuple[FrocLine, ...]  # of the variants, the reference first
    curve_note: str
    tables: tuple[Table, ...]
    maps: tuple[EmbeddingMap, ...]
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str, str], ...]  # (run, file name, sha256) of the weights
    version: str


def curve_groups(curves: tuple[FrocLine, ...]) -> list[tuple[FrocLine, ...]]:
    """Curves dealt out to plots, each with the first one, the reference, for comparison."""
    room = CURVES_A_PLOT - 1
    reference, others = curves[:1], curves[1:]
    return [(*reference, *others[start : start + room]) for start in range(0, max(1, len(others)), room)]


def render_ablation(content: AblationContent) -> str:
    """The page as one string: drawings inlined, no script, nothing fetched from anywhere."""
    return (
        environment()
        .get_template("ablation.html")
        .render(
            content=content,
            froc=[(group, froc_plot(group)) for group in curve_groups(content.curves)],
            maps=[embedding_plot(shown) for shown in content.maps],
            tables=[(table, numeric_columns(table)) for table in content.tables],
            cell_text=cell_text,
        )
    )


def write_ablation_report(path: Path, content: AblationContent, *, overwrite: bool = False) -> None:
    """Render the page and put it at `path` in one step.

    Raises:
        UserError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    atomic_write_text(path, render_ablation(content), overwrite=overwrite)
