"""Two programs on the same scans: what each finds, and whether they differ (paired bootstrap over scans)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmb_jax.evaluation.bootstrap import (
    METRICS,
    Counts,
    Estimate,
    PairedDifference,
    bootstrap_counts,
    bootstrap_froc,
    paired_bootstrap,
    paired_bootstrap_froc,
)
from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, collect_events
from cmb_jax.evaluation.matching import HEADLINE, RULES, events, match, pairs_of
from cmb_jax.evaluation.present import estimate_text
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric of both programs, and the first minus the second."""

    name: str
    first: Estimate
    second: Estimate
    paired: PairedDifference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two programs on S scans."""

    names: tuple[str, str]
    rule: str
    scans: int
    lesions: int
    metrics: tuple[ComparedMetric, ...]
    samples: int
    seed: int


def compare(
    names: tuple[str, str],
    first: Sequence[SubjectDetections],
    second: Sequence[SubjectDetections],
    truths: Sequence[SubjectTruth],
    *,
    rule: str = HEADLINE,
    samples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two programs at their own operating points and over all thresholds.

    Args:
        names: of the programs.
        first: detections of S scans.
        second: of the same scans, in the same order.
        truths: of the same scans.
        rule: center3, center5, touch or box_iou.
        samples: resamples of the scans, each applied to both.
        seed: of the resampling.
    """
    lesions = np.array([len(truth.centers_mm) for truth in truths])
    counts = tuple(_counts(rule, found, truths, lesions) for found in (first, second))
    all_events = tuple(_events(rule, found, truths, lesions) for found in (first, second))
    points = [bootstrap_counts(each, samples=samples, seed=seed) for each in counts]
    point_difference = paired_bootstrap(*counts, samples=samples, seed=seed)
    curves = [bootstrap_froc(each, samples=samples, seed=seed) for each in all_events]
    curve_difference = paired_bootstrap_froc(*all_events, samples=samples, seed=seed)
    curve_names = [*(f"sensitivity at {rate:g} FP per scan" for rate in FROC_RATES), "average precision"]
    return Comparison(
        names=names,
        rule=rule,
        scans=len(truths),
        lesions=int(lesions.sum()),
        metrics=(
            *(
                ComparedMetric(
                    name=name, first=points[0][name], second=points[1][name], paired=point_difference[name]
                )
                for name in METRICS
            ),
            *(
                ComparedMetric(name=name, first=a, second=b, paired=paired)
                for name, a, b, paired in zip(curve_names, *curves, curve_difference, strict=True)
            ),
        ),
        samples=samples,
        seed=seed,
    )


def _counts(
    rule: str, found: Sequence[SubjectDetections], truths: Sequence[SubjectTruth], lesions: np.ndarray
) -> Counts:
    matches = [
        match(pairs_of(RULES[rule], scan.at(None), truth)) for scan, truth in zip(found, truths, strict=True)
    ]
    return Counts(
        tp=np.array([each.tp for each in matches]),
        fp=np.array([each.fp for each in matches]),
        lesions=lesions,
    )


def _events(
    rule: str, found: Sequence[SubjectDetections], truths: Sequence[SubjectTruth], lesions: np.ndarray
) -> FrocEvents:
    candidates = [scan.candidates() for scan in found]
    return collect_events(
        [
            events(pairs_of(RULES[rule], scan, truth), scan.scores)
            for scan, truth in zip(candidates, truths, strict=True)
        ],
        lesions,
    )


def comparison_table(result: Comparison) -> str:
    """The comparison as text."""
    title = f"{result.names[0]} against {result.names[1]}: {result.scans} scans, {result.lesions} microbleeds"
    lines = [
        title,
        f"Rule {RULES[result.rule].title}; first four rows at each one's own operating point. In brackets: "
        f"95 % interval of {result.samples} bootstrap resamples of the scans; the difference is paired.",
    ]
    cells = [("metric", *result.names, "difference", "p")]
    for metric in result.metrics:
        paired = metric.paired
        cells.append(
            (
                metric.name,
                estimate_text(metric.first),
                estimate_text(metric.second),
                estimate_text(paired.difference),
                "-" if math.isnan(paired.p_value) else f"{paired.p_value:.3f}",
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines) + "\n"


def comparison_values(result: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; what is undefined is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return plain(dataclasses.asdict(result))
