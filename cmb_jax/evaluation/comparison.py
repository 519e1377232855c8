"""Two programs on the same scans: what each finds, and whether they differ (paired bootstrap over scans)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmb_jax.evaluation import statistics
from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.evaluation.matching import HEADLINE, RULES, Rule, froc_events, match, pairs_of
from cmb_jax.evaluation.metrics import json_values
from cmb_jax.evaluation.present import aligned
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric of both programs, and the first minus the second."""

    name: str
    first: statistics.Estimate
    second: statistics.Estimate
    paired: statistics.PairedDifference


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
        rule: center3, center5, touch or box_iou.
    """
    matching = RULES[rule]
    counts = [_counts(matching, found, truths) for found in (first, second)]
    curves = [froc_events(matching, found, truths) for found in (first, second)]
    # the same seed, and with it the same resamples of scans, for both programs and for their difference
    points = [statistics.bootstrap_counts(each, samples=samples, seed=seed).values() for each in counts]
    rates = [statistics.bootstrap_froc(each, samples=samples, seed=seed) for each in curves]
    differences = [
        *statistics.paired_bootstrap(*counts, samples=samples, seed=seed).values(),
        *statistics.paired_bootstrap_froc(*curves, samples=samples, seed=seed),
    ]
    at_rates = [f"sensitivity at {rate:g} FP per scan" for rate in FROC_RATES]
    return Comparison(
        names=names,
        rule=rule,
        scans=len(truths),
        lesions=int(counts[0].lesions.sum()),
        metrics=tuple(
            ComparedMetric(name=name, first=a, second=b, paired=paired)
            for name, a, b, paired in zip(
                (*statistics.METRICS, *at_rates, "average precision"),
                (*points[0], *rates[0]),
                (*points[1], *rates[1]),
                differences,
                strict=True,
            )
        ),
        samples=samples,
        seed=seed,
    )


def _counts(
    rule: Rule, found: Sequence[SubjectDetections], truths: Sequence[SubjectTruth]
) -> statistics.Counts:
    """At the program's own operating point."""
    matches = [match(pairs_of(rule, scan.at(None), truth)) for scan, truth in zip(found, truths, strict=True)]
    return statistics.Counts(
        tp=np.array([each.tp for each in matches]),
        fp=np.array([each.fp for each in matches]),
        lesions=np.array([len(truth.centers_mm) for truth in truths]),
    )


def comparison_table(result: Comparison) -> str:
    """The comparison as text."""
    cells: list[tuple[str, ...]] = [("metric", *result.names, "difference", "p")]
    for metric in result.metrics:
        difference, p_value = metric.paired.difference, metric.paired.p_value
        cells.append(
            (
                metric.name,
                *(statistics.estimate_text(each) for each in (metric.first, metric.second, difference)),
                "-" if math.isnan(p_value) else f"{p_value:.3f}",
            )
        )
    lines = [
        f"{result.names[0]} against {result.names[1]}: {result.scans} scans, {result.lesions} microbleeds",
        f"Rule {RULES[result.rule].title}; first four rows at each one's own operating point. In brackets: "
        f"95 % interval of {result.samples} bootstrap resamples of the scans; the difference is paired.",
        *aligned(cells),
    ]
    return "\n".join(lines) + "\n"


def comparison_values(result: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; what is undefined is None."""
    return json_values(dataclasses.asdict(result))
