"""An ablation as tables: for the page, as Markdown, and as CSV with one metric of one variant a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cmb_jax.evaluation.breakdown import MIMIC_REACH_MM, UNNAMED
from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.evaluation.statistics import METRICS, estimate_text
from cmb_jax.io.tables import table_text
from cmb_jax.report.evaluation_content import Table
from cmb_jax.research.runs import Cost
from cmb_jax.research.scores import (
    AT_RATES,
    AVERAGE_PRECISION,
    FP_MATCHED,
    NAMES,
    Metric,
    Study,
    VariantScores,
)

_COMPARED = (FP_MATCHED, "sensitivity", "fp_per_scan", "sensitivity_at_1_fp", "sensitivity_at_2_fp")
_TITLES = {
    "sensitivity": "sensitivity",
    "fp_per_scan": "FP per scan",
    "precision": "precision",
    "f1": "F1",
    FP_MATCHED: "FP per scan at matched sensitivity",
    AVERAGE_PRECISION: "average precision",
    **{name: f"sensitivity at {rate:g} FP" for name, rate in zip(AT_RATES, FROC_RATES, strict=True)},
}


def metric_text(metric: Metric, digits: int = 3) -> str:
    """Mean, deviation over seeds and interval, as in `0.812 ± 0.010 [0.750, 0.861]`."""
    text = estimate_text(metric.mean, digits)
    if math.isnan(metric.deviation) or math.isnan(metric.mean.value):
        return text
    value, space, interval = text.partition(" ")
    return f"{value} ± {metric.deviation:.{digits}f}{space}{interval}"


def p_text(p_value: float) -> str:
    """A p value; a dash where it is undefined."""
    return "-" if math.isnan(p_value) else f"{p_value:.3f}"


def study_tables(study: Study, costs: Mapping[str, Sequence[Cost]]) -> tuple[Table, ...]:
    """All tables.

    Args:
      study: what was found.
      costs: of each variant's runs.
    """
    return (
        _operating_table(study),
        _matched_table(study),
        _froc_table(study),
        _difference_table(study),
        _mimic_table(study),
        _cost_table(study, costs),
        _run_table(study),
    )


def _spread_note(study: Study) -> str:
    return (
        "Mean ± standard deviation over the seeds; in brackets: 95 % interval of "
        f"{study.samples} resamples of scans and seeds."
    )


def _operating_table(study: Study) -> Table:
    return Table(
        title="At the operating point",
        columns=("variant", "seeds", *(_TITLES[name] for name in METRICS)),
        rows=tuple(
            (
                variant.name,
                len(variant.runs),
                *(metric_text(variant.metrics[name], 2 if name == "fp_per_scan" else 3) for name in METRICS),
            )
            for variant in study.variants
        ),
        note="Each run's threshold was chosen on the validation subjects. " + _spread_note(study),
    )


def _matched_table(study: Study) -> Table:
    def row(variant: VariantScores) -> tuple[str, ...]:
        metric = variant.metrics[FP_MATCHED]
        if math.isnan(metric.mean.value):
            return (variant.name, "not reached by every seed", "-", "-")
        if metric.difference is None:
            return (variant.name, metric_text(metric, 2), "-", "-")
        difference = metric.difference
        return (
            variant.name,
            metric_text(metric, 2),
            estimate_text(difference.difference, 2),
            p_text(difference.p_value),
        )

    return Table(
        title=f"False positives per scan at sensitivity {study.matched_sensitivity:.3f}",
        columns=("variant", "FP per scan", f"difference from {study.reference}", "p"),
        rows=tuple(row(variant) for variant in study.variants),
        note=(
            "The fewest false positives at which a run's own curve on the test subjects reaches this "
            "sensitivity; resamples in which one does not reach it are left out. " + _spread_note(study)
        ),
    )


def _froc_table(study: Study) -> Table:
    return Table(
        title="Sensitivity at false positives per scan (FROC)",
        columns=("variant", *(f"{rate:g}" for rate in FROC_RATES), "average precision"),
        rows=tuple(
            (
                variant.name,
                *(metric_text(variant.metrics[name]) for name in (*AT_RATES, AVERAGE_PRECISION)),
            )
            for variant in study.variants
        ),
        note="Linear between the curve's points, constant beyond its end. " + _spread_note(study),
    )


def _difference_table(study: Study) -> Table:
    rows = []
    for variant in study.variants:
        for name in (*_COMPARED, AVERAGE_PRECISION):
            difference = variant.metrics[name].difference
            if difference is not None:
                text = estimate_text(difference.difference)
                rows.append((variant.name, _TITLES[name], text, p_text(difference.p_value)))
    return Table(
        title=f"Differences from {study.reference}",
        columns=("variant", "metric", "difference", "p"),
        rows=tuple(rows),
        note=(
            f"Paired bootstrap: the same {study.samples} draws of scans for both, seeds drawn as well; p is "
            "two-sided and not corrected for the number of comparisons."
        ),
    )


def _mimic_table(study: Study) -> Table:
    kinds = sorted(
        {kind for variant in study.variants for run in variant.runs for kind in run.false_positives}
    )
    first = study.variants[0]
    kinds.sort(key=first.false_positives, reverse=True)
    return Table(
        title="False positives per scan by mimic",
        columns=("mimic", *(variant.name for variant in study.variants)),
        rows=tuple(
            (kind.replace("_", " "), *(f"{variant.false_positives(kind):.2f}" for variant in study.variants))
            for kind in kinds
        ),
        note=(
            "At the operating point, mean over the seeds. The mimic whose cell (1 mm) is nearest to the "
            f"center, within {MIMIC_REACH_MM:g} mm; {UNNAMED}: there is none."
        ),
    )


def _cost_table(study: Study, costs: Mapping[str, Sequence[Cost]]) -> Table:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Table(
        title="Cost",
        columns=(
            "variant",
            "parameters",
            "of them at inference",
            "GFLOP a patch",
            "steps",
            "seconds per step",
            "hours",
        ),
        rows=tuple(
            (
                variant.name,
                costs[variant.name][0].parameters,
                costs[variant.name][0].parameters_at_inference,
                f"{costs[variant.name][0].gflop:.2f}",
                costs[variant.name][0].steps,
                f"{mean([cost.seconds_a_step for cost in costs[variant.name]]):.2f}",
                f"{mean([cost.hours for cost in costs[variant.name]]):.2f}",
            )
            for variant in study.variants
        ),
        note=(
            "GFLOP: convolutions of a forward pass of a training patch. Seconds per step: median of a run's "
            "log; hours: all its steps, validation left out; both mean over the seeds, on the machine as it "
            "was, shared or not."
        ),
    )


def _run_table(study: Study) -> Table:
    return Table(
        title="Runs",
        columns=("run", "threshold", "found", "microbleeds", "false positives", "FP per scan"),
        rows=tuple(
            (
                run.name,
                f"{run.threshold:.3f}",
                int(run.counts.tp.sum()),
                study.lesions,
                int(run.counts.fp.sum()),
                f"{run.counts.fp.sum() / study.scans:.2f}",
            )
            for variant in study.variants
            for run in variant.runs
        ),
        note="Each at its own threshold.",
    )


def csv_text(study: Study) -> str:
    """One line a variant and metric; empty where something is undefined."""
    columns = ("variant", "metric", "seeds", "mean", "sd", "low", "high")
    rows = []
    for variant in study.variants:
        for name in NAMES:
            metric = variant.metrics[name]
            numbers = [metric.mean.value, metric.deviation, metric.mean.low, metric.mean.high]
            if metric.difference is not None:
                estimate = metric.difference.difference
                numbers += [estimate.value, estimate.low, estimate.high, metric.difference.p_value]
            cells = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            rows.append((variant.name, name, len(variant.runs), *cells, *[""] * (8 - len(cells))))
    return table_text((*columns, "difference", "difference_low", "difference_high", "p"), rows)


def markdown_text(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Title, sentences and tables in Markdown."""
    parts = [f"# {title}", *lines]
    for table in tables:
        head = f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}"
        rows = [f"| {' | '.join(map(str, row))} |" for row in table.rows]
        parts.append("\n".join([f"## {table.title}\n", table.note, "", head, *rows]))
    return "\n\n".join(parts) + "\n"
