"""What the runs of each variant found, over seeds and scans, and whether variants differ.

Hit: centers less than 3 mm apart, one to one (Hungarian). Each run's threshold is chosen on the validation
subjects; everything else is of the test subjects. Intervals: scans and seeds are both drawn with replacement,
the same scans for every variant.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, choose_threshold, collect_events, froc_curve
from cmb_jax.evaluation.matching import CENTER3, events, match, pairs_of
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import (
    METRICS,
    Counts,
    Estimate,
    PairedDifference,
    count_metrics,
    estimates,
    fp_at_sensitivity,
    froc_metrics,
    paired_differences,
    resample_weights,
)
from cmb_jax.research.detections import SetDetections

BAND_RATES: tuple[float, ...] = tuple(np.geomspace(0.125, 8.0, 49).tolist())
AVERAGE_PRECISION = "average_precision"
FP_MATCHED = "fp_per_scan_at_matched_sensitivity"
AT_RATES: tuple[str, ...] = tuple(f"sensitivity_at_{rate:g}_fp" for rate in FROC_RATES)
NAMES: tuple[str, ...] = (*METRICS, *AT_RATES, AVERAGE_PRECISION, FP_MATCHED)
"""Metrics in the order of the tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunScores:
    """One run on S test scans."""

    name: str
    threshold: float  # chosen on validation subjects
    counts: Counts  # at the threshold
    events: FrocEvents
    false_positives: Counter[str]  # at the threshold, by the kind of the mimic there

    def metrics(self, weights: np.ndarray, matched: float) -> np.ndarray:
        """`NAMES`, then the sensitivity at `BAND_RATES`: (B, N) of weighted scans (B, S)."""
        curve = froc_metrics(self.events, weights, (*FROC_RATES, *BAND_RATES))
        at_rates, band, precision = np.split(curve, [len(FROC_RATES), -1], axis=1)
        at_matched = fp_at_sensitivity(self.events, weights, matched)[:, None]
        return np.hstack([count_metrics(self.counts, weights), at_rates, precision, at_matched, band])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a variant."""

    mean: Estimate  # over the seeds, with the interval over seeds and scans
    deviation: float  # standard deviation over the seeds; NaN for one seed
    difference: PairedDifference | None  # from the reference; None for the reference itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantScores:
    """All runs of one variant."""

    name: str
    runs: tuple[RunScores, ...]
    metrics: dict[str, Metric]  # by `NAMES`
    band: tuple[Estimate, ...]  # sensitivity at `BAND_RATES`

    def false_positives(self, kind: str) -> float:
        """Of one kind a scan at the operating point, mean over the seeds."""
        scans = len(self.runs[0].counts.lesions)
        return sum(run.false_positives[kind] for run in self.runs) / len(self.runs) / scans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """All variants on the same S test scans, the reference first."""

    variants: tuple[VariantScores, ...]
    reference: str
    matched_sensitivity: float
    scans: int
    lesions: int
    samples: int


def score_run(
    name: str,
    validation: SetDetections,
    validation_truths: Sequence[SubjectTruth],
    test: SetDetections,
    test_truths: Sequence[SubjectTruth],
    max_fp_per_scan: float,
) -> RunScores:
    """Threshold by the validation subjects (the highest sensitivity at no more than so many false positives a
    scan), counts and events of the test subjects."""
    threshold = choose_threshold(
        froc_curve(_events(validation.scans, validation_truths)), max_fp_per_scan=max_fp_per_scan
    )
    tp, fp, names = [], [], Counter[str]()
    for found, kinds, truth in zip(test.scans, test.mimics, test_truths, strict=True):
        kept = found.scores >= threshold
        outcome = match(pairs_of(CENTER3, found.select(kept), truth))
        tp.append(outcome.tp)
        fp.append(outcome.fp)
        names.update(np.array(kinds, dtype=object)[kept][outcome.false_positive])
    lesions = np.array([len(truth.centers_mm) for truth in test_truths])
    return RunScores(
        name=name,
        threshold=threshold,
        counts=Counts(tp=np.array(tp), fp=np.array(fp), lesions=lesions),
        events=_events(test.scans, test_truths),
        false_positives=names,
    )


def _events(scans: Sequence[SubjectDetections], truths: Sequence[SubjectTruth]) -> FrocEvents:
    happened = [
        events(pairs_of(CENTER3, found, truth), found.scores)
        for found, truth in zip(scans, truths, strict=True)
    ]
    return collect_events(happened, [len(truth.centers_mm) for truth in truths])


def compare_variants(
    runs: Mapping[str, Sequence[RunScores]],
    reference: str,
    *,
    matched_sensitivity: float | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Study:
    """Means over seeds, intervals over seeds and scans, differences from the reference.

    Args:
      runs: by variant, all on the same test scans.
      reference: one of the variants.
      matched_sensitivity: at which false positives are compared; None: the reference's mean sensitivity at
        its operating points.
      samples: resamples.
      seed: of the resampling.
    """
    lesions = runs[reference][0].counts.lesions
    scans = len(lesions)
    once = np.ones((1, scans), int)
    if matched_sensitivity is None:
        found = [count_metrics(run.counts, once)[0, 0] for run in runs[reference]]
        matched_sensitivity = float(np.mean(found))
    weights = np.concatenate(list(resample_weights(scans, samples, seed)))

    def values(name: str) -> tuple[np.ndarray, np.ndarray]:
        """Metrics of each seed (K, N) and of each resample (B, N)."""
        each = np.stack([run.metrics(once, matched_sensitivity)[0] for run in runs[name]])
        resampled = np.stack([run.metrics(weights, matched_sensitivity) for run in runs[name]], axis=1)
        count = len(each)
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
        # a seed that was not drawn may be undefined
        counting = np.where(drawn[..., None] > 0, resampled, 0.0)
        return each, (drawn[..., None] * counting).sum(axis=1) / count

    base, base_resampled = values(reference)
    found_variants = []
    for name in (reference, *(other for other in runs if other != reference)):
        each, resampled = (base, base_resampled) if name == reference else values(name)
        means = estimates(each.mean(axis=0), resampled)
        differences = paired_differences(each.mean(axis=0) - base.mean(axis=0), resampled - base_resampled)
        deviation = each.std(axis=0, ddof=1) if len(each) > 1 else np.full(each.shape[1], np.nan)
        found_variants.append(
            VariantScores(
                name=name,
                runs=tuple(runs[name]),
                metrics={
                    metric: Metric(
                        mean=means[column],
                        deviation=float(deviation[column]),
                        difference=None if name == reference else differences[column],
                    )
                    for column, metric in enumerate(NAMES)
                },
                band=tuple(means[len(NAMES) :]),
            )
        )
    return Study(
        variants=tuple(found_variants),
        reference=reference,
        matched_sensitivity=matched_sensitivity,
        scans=scans,
        lesions=int(lesions.sum()),
        samples=samples,
    )
