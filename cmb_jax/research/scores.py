"""Scores of the runs of each variant over seeds and scans, comparisons between variants, and their tables.

Hit: centers less than 3 mm apart, one to one (Hungarian). Each run's threshold is chosen on the validation
subjects; everything else is measured on the test subjects. For intervals, scans and seeds are both resampled,
with the same scans for every variant.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cmb_jax.evaluation import statistics
from cmb_jax.evaluation.breakdown import MIMIC_REACH_MM, UNNAMED
from cmb_jax.evaluation.froc import FROC_RATES, FrocEvents, choose_threshold, froc_curve
from cmb_jax.evaluation.matching import CENTER3, froc_events, match, pairs_of
from cmb_jax.evaluation.records import SubjectTruth
from cmb_jax.io.tables import table_text
from cmb_jax.report.evaluation import Table
from cmb_jax.research.findings import SetDetections
from cmb_jax.research.runs import Cost, Verdict

BAND_RATES: tuple[float, ...] = tuple(np.geomspace(0.125, 8.0, 49).tolist())
AVERAGE_PRECISION = "average_precision"
FP_MATCHED = "fp_per_scan_at_matched_sensitivity"
LOCALIZED = "_with_localization"
AT_RATES: tuple[str, ...] = tuple(f"sensitivity_at_{rate:g}_fp" for rate in FROC_RATES)
# in the order of the tables
NAMES: tuple[str, ...] = (*statistics.METRICS, *AT_RATES, AVERAGE_PRECISION, FP_MATCHED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunScores:
    """One run on S test scans."""

    name: str
    threshold: float  # chosen on validation subjects
    counts: statistics.Counts  # at the threshold
    events: FrocEvents
    false_positives: Counter[str]  # at the threshold, by the kind of mimic there

    def metrics(self, weights: np.ndarray, matched: float) -> np.ndarray:
        """`NAMES`, then the sensitivity at `BAND_RATES`: (B, N), for weights of the scans (B, S)."""
        curve = statistics.froc_metrics(self.events, weights, (*FROC_RATES, *BAND_RATES))
        at_rates, band, precision = np.split(curve, [len(FROC_RATES), -1], axis=1)
        at_matched = statistics.fp_at_sensitivity(self.events, weights, matched)[:, None]
        return np.hstack(
            [statistics.count_metrics(self.counts, weights), at_rates, precision, at_matched, band]
        )

    def reaches(self, sensitivity: float) -> bool:
        """Whether all detections together reach this sensitivity."""
        # minus a little, because the product may exceed a whole number by rounding
        return bool(self.events.true.sum() >= sensitivity * self.counts.lesions.sum() - 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a variant."""

    mean: statistics.Estimate  # over the seeds, with the interval over seeds and scans
    deviation: float  # standard deviation over the seeds; NaN for one seed
    difference: statistics.PairedDifference | None  # from the reference; None for the reference itself
    ratio: statistics.Estimate | None  # to the mean of the reference; None for the reference itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantScores:
    """All runs of one variant."""

    name: str
    runs: tuple[RunScores, ...]
    metrics: dict[str, Metric]  # by `NAMES`
    band: tuple[statistics.Estimate, ...]  # sensitivity at `BAND_RATES`

    def false_positives(self, kind: str) -> float:
        """False positives of one kind per scan at the operating point, mean over the seeds."""
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
    ratios: dict[
        tuple[str, str], statistics.Estimate
    ]  # FP at the matched sensitivity of (variant, another reference)


def score_run(
    name: str,
    validation: SetDetections,
    validation_truths: Sequence[SubjectTruth],
    test: SetDetections,
    test_truths: Sequence[SubjectTruth],
    max_fp_per_scan: float,
) -> RunScores:
    """Threshold from the validation subjects, counts and events from the test subjects.

    The threshold gives the highest sensitivity at no more than `max_fp_per_scan`.
    """
    curve = froc_curve(froc_events(CENTER3, validation.scans, validation_truths))
    threshold = choose_threshold(curve, max_fp_per_scan)
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
        counts=statistics.Counts(tp=np.array(tp), fp=np.array(fp), lesions=lesions),
        events=froc_events(CENTER3, test.scans, test_truths),
        false_positives=names,
    )


def compare_variants(
    runs: Mapping[str, Sequence[RunScores]],
    reference: str,
    *,
    matched_sensitivity: float | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    samples: int = 2000,
    seed: int = 0,
) -> Study:
    """Means over seeds, intervals over seeds and scans, differences from the reference.

    Args:
        runs: by variant, all on the same test scans.
        matched_sensitivity: for the comparison of false positives; None: the mean sensitivity of the
            reference at its operating points.
        pairs: further (variant, reference) for `Study.ratios`; those without runs are left out.
    """
    lesions = runs[reference][0].counts.lesions
    once = np.ones((1, len(lesions)), int)
    if matched_sensitivity is None:
        found = [statistics.count_metrics(run.counts, once)[0, 0] for run in runs[reference]]
        matched_sensitivity = float(np.mean(found))
    # The same draws of scans for every variant and seed make the differences paired: a hard scan that is
    # drawn often is hard for all of them.
    weights = np.concatenate(list(statistics.resample_weights(len(lesions), samples, seed)))
    # by variant: of each seed (K, N), and of each resample (B, N)
    values = {
        name: (
            np.stack([run.metrics(once, matched_sensitivity)[0] for run in runs[name]]),
            _over_drawn_seeds([run.metrics(weights, matched_sensitivity) for run in runs[name]], seed),
        )
        for name in (reference, *(other for other in runs if other != reference))
    }
    base, base_resampled = values[reference]
    variants = []
    for name, (each, resampled) in values.items():
        means = statistics.estimates(each.mean(axis=0), resampled)
        differences = statistics.paired_differences(
            each.mean(axis=0) - base.mean(axis=0), resampled - base_resampled
        )
        ratios = _ratios(values[name], values[reference])
        deviation = each.std(axis=0, ddof=1) if len(each) > 1 else np.full(each.shape[1], np.nan)
        variants.append(
            VariantScores(
                name=name,
                runs=tuple(runs[name]),
                metrics={
                    metric: Metric(
                        mean=means[column],
                        deviation=float(deviation[column]),
                        difference=None if name == reference else differences[column],
                        ratio=None if name == reference else ratios[column],
                    )
                    for column, metric in enumerate(NAMES)
                },
                band=tuple(means[len(NAMES) :]),
            )
        )
    return Study(
        variants=tuple(variants),
        reference=reference,
        matched_sensitivity=matched_sensitivity,
        scans=len(lesions),
        lesions=int(lesions.sum()),
        samples=samples,
        ratios={
            (name, other): _ratios(values[name], values[other])[NAMES.index(FP_MATCHED)]
            for name, other in pairs
            if name in values and other in values
        },
    )


def _ratios(
    of: tuple[np.ndarray, np.ndarray], to: tuple[np.ndarray, np.ndarray]
) -> list[statistics.Estimate]:
    """Ratios of means over seeds, from the values of each seed (K, N) and of each resample (B, N)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistics.estimates(of[0].mean(axis=0) / to[0].mean(axis=0), of[1] / to[1])


def _over_drawn_seeds(metrics: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Means (B, N) over seeds drawn with replacement in each resample, from (B, N) of each of K seeds."""
    values, count = np.stack(metrics, axis=1), len(metrics)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=len(values))
    # metrics of a seed that was not drawn may be NaN, and 0 times NaN would spoil the sum
    drawn = np.where(times[..., None] > 0, values, 0.0)
    return (times[..., None] * drawn).sum(axis=1) / count


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


def _metric_text(metric: Metric, digits: int = 3) -> str:
    """Mean, deviation over seeds and interval, as in `0.812 ± 0.010 [0.750, 0.861]`."""
    text = statistics.estimate_text(metric.mean, digits)
    if math.isnan(metric.deviation) or math.isnan(metric.mean.value):
        return text
    value, space, interval = text.partition(" ")
    return f"{value} ± {metric.deviation:.{digits}f}{space}{interval}"


def _p_text(p_value: float) -> str:
    return "-" if math.isnan(p_value) else f"{p_value:.3f}"


def study_tables(
    study: Study, localized: Study, costs: Mapping[str, Sequence[Cost]], verdict: Verdict | None = None
) -> tuple[Table, ...]:
    """All tables.

    Args:
      study: what was found.
      localized: the same without what anatomy rejects.
      costs: of each variant's runs.
      verdict: what the plan of the study says of ratios.
    """
    return (
        _operating_table(study),
        _matched_table(study),
        *([_ratio_table(study, verdict)] if verdict or study.ratios else []),
        _localized_table(study, localized),
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
    note = "Each run's threshold was chosen on the validation subjects. " + _spread_note(study)
    return Table(
        title="At the operating point",
        columns=("variant", "seeds", *(_TITLES[name] for name in statistics.METRICS)),
        rows=tuple(
            (each.name, len(each.runs), *_metric_texts(each, statistics.METRICS)) for each in study.variants
        ),
        note=note,
    )


def _metric_texts(variant: VariantScores, names: Sequence[str]) -> list[str]:
    return [_metric_text(variant.metrics[name], 2 if name == "fp_per_scan" else 3) for name in names]


def _matched_table(study: Study) -> Table:
    def row(variant: VariantScores) -> tuple[str, ...]:
        metric = variant.metrics[FP_MATCHED]
        difference, ratio = metric.difference, metric.ratio
        compared = (
            ("-", "-", "-")
            if difference is None
            else (
                statistics.estimate_text(difference.difference, 2),
                _p_text(difference.p_value),
                statistics.estimate_text(ratio, 2),
            )
        )
        return (variant.name, _metric_text(metric, 2), *compared)

    return Table(
        title=f"False positives per scan at sensitivity {study.matched_sensitivity:.3f}",
        columns=(
            "variant",
            "FP per scan",
            f"difference from {study.reference}",
            "p",
            f"ratio to {study.reference}",
        ),
        rows=tuple(row(variant) for variant in study.variants),
        note=(
            "The fewest false positives at which a run's own curve on the test subjects reaches this "
            f"sensitivity. {_unreached(study)}{_spread_note(study)}"
        ),
    )


def _unreached(study: Study) -> str:
    """A sentence that names the runs that never reach the matched sensitivity; empty if all do."""
    short = [
        run.name
        for variant in study.variants
        for run in variant.runs
        if not run.reaches(study.matched_sensitivity)
    ]
    if not short:
        return ""
    return (
        f"{', '.join(short)} never reached it: the false positives of the whole list count, the least that "
        "it would take. "
    )


def _ratio_table(study: Study, verdict: Verdict | None) -> Table:
    of_reference = {
        (variant.name, study.reference): ratio
        for variant in study.variants
        if (ratio := variant.metrics[FP_MATCHED].ratio) is not None
    }
    rows = [
        (
            name,
            to,
            statistics.estimate_text(ratio, 2),
            "-" if verdict is None else verdict.of(ratio.low, ratio.high),
        )
        for (name, to), ratio in (of_reference | study.ratios).items()
    ]
    rule = ""
    if verdict is not None:
        rule = (
            f" As in the paper: its upper end is below {verdict.claimed_below:g}; absent: its lower end is "
            f"above {verdict.absent_above:g}. Fixed before the first run."
        )
    return Table(
        title=f"Ratio of false positives at sensitivity {study.matched_sensitivity:.3f}",
        columns=("variant", "over", "ratio of the means", "reduction"),
        rows=tuple(rows),
        note=f"In brackets: 95 % interval of {study.samples} paired resamples of scans and seeds.{rule}",
    )


def _localized_table(study: Study, localized: Study) -> Table:
    def row(variant: VariantScores, with_regions: VariantScores) -> tuple[str, ...]:
        ratio = with_regions.metrics[FP_MATCHED].ratio
        return (
            variant.name,
            *(_metric_text(each.metrics[FP_MATCHED], 2) for each in (variant, with_regions)),
            "-" if ratio is None else statistics.estimate_text(ratio, 2),
            _metric_text(with_regions.metrics[AVERAGE_PRECISION]),
        )

    return Table(
        title=f"With localization, at sensitivity {localized.matched_sensitivity:.3f}",
        columns=(
            "variant",
            "FP per scan without",
            "FP per scan with",
            f"ratio to {localized.reference}",
            "average precision",
        ),
        rows=tuple(row(*pair) for pair in zip(study.variants, localized.variants, strict=True)),
        note=(
            "Without and with the rejection of what lies where no microbleed can be, by the bundled region "
            f"network. {_unreached(localized)}{_spread_note(localized)}"
        ),
    )


def _froc_table(study: Study) -> Table:
    names = (*AT_RATES, AVERAGE_PRECISION)
    return Table(
        title="Sensitivity at false positives per scan (FROC)",
        columns=("variant", *(f"{rate:g}" for rate in FROC_RATES), "average precision"),
        rows=tuple((each.name, *_metric_texts(each, names)) for each in study.variants),
        note="Linear between the curve's points, constant beyond its end. " + _spread_note(study),
    )


def _difference_table(study: Study) -> Table:
    rows = []
    for variant in study.variants:
        for name in (*_COMPARED, AVERAGE_PRECISION):
            if (difference := variant.metrics[name].difference) is not None:
                text = statistics.estimate_text(difference.difference)
                rows.append((variant.name, _TITLES[name], text, _p_text(difference.p_value)))
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
    def row(name: str, runs: Sequence[Cost]) -> tuple[str | float, ...]:
        seconds = sum(cost.seconds_per_step for cost in runs) / len(runs)
        hours = sum(cost.hours for cost in runs) / len(runs)
        of_network = (runs[0].parameters, runs[0].parameters_at_inference, f"{runs[0].gflop:.2f}")
        return (name, *of_network, runs[0].steps, f"{seconds:.2f}", f"{hours:.2f}")

    return Table(
        title="Cost",
        columns=(
            "variant",
            "parameters",
            "of them at inference",
            "GFLOP per patch",
            "steps",
            "seconds per step",
            "hours",
        ),
        rows=tuple(row(variant.name, costs[variant.name]) for variant in study.variants),
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


def csv_text(study: Study, localized: Study) -> str:
    """One line per variant and metric; a cell is empty where its number is undefined.

    A further pair of the grid has a line of its own, with its ratio, and its reference in the last column.
    Metrics with localization end in `LOCALIZED`.
    """
    nothing = statistics.Estimate(math.nan)
    rows = []

    def add(
        variant: VariantScores, name: str, reference: str, ratio: statistics.Estimate | None, suffix: str = ""
    ) -> None:
        metric = variant.metrics[name]
        compared = metric.difference if reference == study.reference else None
        difference = nothing if compared is None else compared.difference
        ratio = ratio or nothing
        numbers = (
            *(metric.mean.value, metric.deviation, metric.mean.low, metric.mean.high),
            *(difference.value, difference.low, difference.high),
            math.nan if compared is None else compared.p_value,
            *(ratio.value, ratio.low, ratio.high),
        )
        cells = [f"{number:.6g}" if math.isfinite(number) else "" for number in numbers]
        rows.append((variant.name, name + suffix, len(variant.runs), *cells, reference))

    for variant, with_regions in zip(study.variants, localized.variants, strict=True):
        for name in NAMES:
            add(variant, name, study.reference, variant.metrics[name].ratio)
        for (name, reference), ratio in study.ratios.items():
            if name == variant.name:
                add(variant, FP_MATCHED, reference, ratio)
        for name in (AVERAGE_PRECISION, FP_MATCHED):
            add(with_regions, name, study.reference, with_regions.metrics[name].ratio, LOCALIZED)
    columns = ("variant", "metric", "seeds", "mean", "sd", "low", "high")
    compared = ("difference", "difference_low", "difference_high", "p", "ratio", "ratio_low", "ratio_high")
    return table_text((*columns, *compared, "reference"), rows)


def markdown_text(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Title, sentences and tables in Markdown."""
    parts = [f"# {title}", *lines]
    for table in tables:
        head = f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}"
        rows = [f"| {' | '.join(map(str, row))} |" for row in table.rows]
        parts.append("\n".join([f"## {table.title}\n", table.note, "", head, *rows]))
    return "\n\n".join(parts) + "\n"
