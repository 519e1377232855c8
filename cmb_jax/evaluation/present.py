"""Evaluation results for reading: the same tables as text and for the HTML page."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from cmb_jax import __version__
from cmb_jax.evaluation.breakdown import MIMIC_REACH_MM, UNNAMED
from cmb_jax.evaluation.calibration import Reliability
from cmb_jax.evaluation.evaluate import EvaluationResult, RuleResult
from cmb_jax.evaluation.froc import FROC_RATES
from cmb_jax.evaluation.matching import RULES
from cmb_jax.evaluation.statistics import Estimate, estimate_text
from cmb_jax.report.evaluation import EvaluationContent, Headline, Table
from cmb_jax.report.plots import CountAgreementText, FrocLine, ReliabilityLine, SubjectLine

NOTICE = "Research use only."
_NOTE_WIDTH = 100
_SUBSET_RATES = (0.5, 1.0)  # of FROC_RATES

_BREAKDOWN_TITLES = {
    "zone": "Sensitivity by zone",
    "region": "Sensitivity by region",
    "size_mm": "Sensitivity by diameter as seen",
    "cnr": "Sensitivity by contrast-to-noise ratio",
    "protocol": "Sensitivity by protocol",
    "tier": "Sensitivity by tier",
    "phase": "Sensitivity with and without phase",
}


def operating_point_text(result: EvaluationResult) -> str:
    """What counts as reported."""
    if result.threshold is None:
        return "what the prediction keeps (tables: status kept; probability maps: >= 0.5)"
    return f"score >= {result.threshold:g}"


def scans_text(result: EvaluationResult) -> str:
    """`1 scan`, `12 scans`."""
    return f"{result.scans} scan{'' if result.scans == 1 else 's'}"


def summary_text(result: EvaluationResult) -> str:
    """How many scans and lesions, in one line."""
    lacking, unseen = sum(row.missing for row in result.subjects), result.lesions_ignored
    missing = f"; {lacking} without a prediction, counted as empty" if lacking else ""
    sizes = ", ".join(f"{count} {size}" for size, count in result.lesions_by_size.items())
    ignored = f"; {unseen} that no reader would see are ignored" if unseen else ""
    return (
        f"{scans_text(result)}, {result.scans_without_lesions} of them without microbleeds, "
        f"{result.lesions} microbleeds ({sizes}){ignored}{missing}"
    )


def tables(result: EvaluationResult) -> tuple[Table, ...]:
    """All tables but that of the scans."""
    return (
        _found_table(result),
        _precision_table(result),
        _froc_table(result),
        *_subset_tables(result),
        *_breakdown_tables(result),
        *_false_positive_tables(result),
        *_rejection_tables(result),
        _count_table(result),
        *_calibration_tables(result),
        _valdo_table(result),
    )


def _interval_note(result: EvaluationResult) -> str:
    if not result.bootstrap_samples:
        return ""
    return (
        f" In brackets: 95 % interval of {result.bootstrap_samples} bootstrap resamples of the scans; "
        "an interval of zero width only means that all scans agreed."
    )


def _found_table(result: EvaluationResult) -> Table:
    return Table(
        title="Found, by every matching rule",
        columns=("rule", "connectivity", "TP", "FP", "FN", "sensitivity", "FP per scan"),
        rows=tuple(
            (
                _title(result, each),
                *(each.rule.connectivity, each.tp, each.fp, each.fn),
                *(estimate_text(each.sensitivity), estimate_text(each.fp_per_scan, 2)),
            )
            for each in result.rules
        ),
        note=(
            f"* headline. Operating point: {operating_point_text(result)}. FP per scan: over "
            f"{scans_text(result)}, including those without microbleeds. Connectivity: of the components of "
            "masks; instance labels and tables are taken as they are, but the challenge's rule splits "
            "labels anew." + _interval_note(result)
        ),
    )


def _precision_table(result: EvaluationResult) -> Table:
    return Table(
        title="Precision, by every matching rule",
        columns=("rule", "precision", "F1", "average precision"),
        rows=tuple(
            (_title(result, each), *map(estimate_text, (each.precision, each.f1, each.average_precision)))
            for each in result.rules
        ),
        note="Precision and F1 at the operating point; average precision over all thresholds.",
    )


def _title(result: EvaluationResult, each: RuleResult) -> str:
    return each.rule.title + (" *" if each.rule.name == result.headline else "")


def _froc_table(result: EvaluationResult) -> Table:
    curves = [each for each in result.rules if each.froc]
    return Table(
        title="Sensitivity at false positives per scan (FROC)",
        columns=("FP per scan", *(each.rule.name for each in curves)),
        rows=tuple(
            (f"{rate:g}", *(estimate_text(each.froc[row]) for each in curves))
            for row, rate in enumerate(FROC_RATES)
        ),
        note="Linear between the curve's points, constant beyond its end; rejected detections are left out.",
    )


def _subset_tables(result: EvaluationResult) -> tuple[Table, Table]:
    """Parts of the scans and lesions at the operating point, and over all thresholds."""
    part = ("scans", "size", "calcified")
    names = [(each.scans_of, each.size, each.calcifications) for each in result.subsets]
    rates = [FROC_RATES.index(rate) for rate in _SUBSET_RATES]
    point = Table(
        title="By phase, size, protocol",
        columns=(*part, "number", "lesions", "sensitivity", "FP per scan"),
        rows=tuple(
            (
                *(*name, each.scans, each.lesions),
                *(estimate_text(each.sensitivity), estimate_text(each.fp_per_scan, 2)),
            )
            for name, each in zip(names, result.subsets, strict=True)
        ),
        note=(
            f"At the operating point, by the rule {RULES[result.breakdown_rule].title}. Lesions of other "
            "sizes are ignored: never missed, and a detection on one is not a false positive. Calcified, "
            "left out: in scans without a phase, where nobody can tell a calcification from a microbleed, a "
            "detection on one is not a false positive."
        ),
    )
    curve = Table(
        title="By phase, size, protocol: sensitivity at false positives per scan",
        columns=(*part, "average precision", *(f"at {rate:g}" for rate in _SUBSET_RATES)),
        rows=tuple(
            (*name, *map(estimate_text, (each.average_precision, *(each.froc[row] for row in rates))))
            for name, each in zip(names, result.subsets, strict=True)
        ),
        note="Over all thresholds." + _interval_note(result),
    )
    return point, curve


def _breakdown_tables(result: EvaluationResult) -> list[Table]:
    note = f"By the rule {RULES[result.breakdown_rule].title}; Wilson 95 % intervals, lesions as independent."
    return [
        Table(
            title=_BREAKDOWN_TITLES[breakdown.by],
            columns=("group", "found", "lesions", "sensitivity"),
            rows=tuple(
                (group.group, group.found, group.lesions, estimate_text(group.sensitivity))
                for group in breakdown.groups
            ),
            note=note,
        )
        for breakdown in result.breakdowns
    ]


def _false_positive_tables(result: EvaluationResult) -> list[Table]:
    reach = f"The mimic nearest to the center, within {MIMIC_REACH_MM:g} mm; {UNNAMED}: there is none."
    return [
        Table(
            title=f"False positives by {by}",
            columns=("group", "false positives", "per scan"),
            rows=tuple((group.group, group.count, estimate_text(group.per_scan, 2)) for group in groups),
            note=note,
        )
        for by, groups, note in (
            ("mimic", result.false_positives_by_mimic, reach),
            ("zone", result.false_positives_by_zone, "The zone that the prediction gives."),
        )
        if groups
    ]


def _rejection_tables(result: EvaluationResult) -> list[Table]:
    if not result.rejection:
        return []
    return [
        Table(
            title="What rejection by place costs",
            columns=("reason", "true lesions lost", "share of all", "false positives removed", "per scan"),
            rows=tuple(
                (
                    *(each.reason, each.true_lost, estimate_text(each.lost_share)),
                    *(each.false_removed, f"{each.false_removed_per_scan:.2f}"),
                )
                for each in result.rejection
            ),
            note=(
                f"Candidates at the operating point that a rule removed, by the rule "
                f"{RULES[result.breakdown_rule].title} against the lesions that nothing reported matches; "
                f"share of all {result.lesions} lesions with its Wilson 95 % interval."
            ),
        )
    ]


def _count_table(result: EvaluationResult) -> Table:
    counts, places = result.counts, result.places
    rows = [
        ("ICC(2,1) of the counts", _number(counts.icc)),
        (
            "predicted - true per scan: mean [95 % limits of agreement]",
            estimate_text(Estimate(value=counts.bias, low=counts.limit_low, high=counts.limit_high)),
        ),
    ]
    if places is not None:
        rows += [
            (f"right zone, of {places.matched} matches", estimate_text(places.zone)),
            (f"right region, of {places.matched} matches", estimate_text(places.region)),
        ]
    return Table(title="Agreement", columns=("measure", "value"), rows=tuple(rows))


def _calibration_tables(result: EvaluationResult) -> list[Table]:
    found = result.calibration
    if found is None:
        return []
    note = (
        f"Of the {found.detections} reported detections, true by the rule "
        f"{RULES[result.breakdown_rule].title}: expected calibration error "
        f"{estimate_text(found.ece_equal_mass)} in {found.bins} bins of equal numbers (those shown), "
        f"{estimate_text(found.ece_equal_width)} in {found.bins} of equal width; perfect probabilities would "
        f"have {found.by_chance_equal_mass:.3f} and {found.by_chance_equal_width:.3f} by chance; mean "
        f"probability {found.mean_probability:.3f}, share of true ones {found.true / found.detections:.3f}."
    )
    if not math.isnan(found.ece_equal_mass.low):
        note += " Resampling adds scatter to every bin, so that the intervals lie high."
    return [
        Table(
            title="Calibration of the probabilities",
            columns=("probability", "detections", "true", "mean probability", "share of true ones"),
            rows=tuple(
                (
                    f"{each.low:.3f} to {each.high:.3f}",
                    *(each.detections, each.true, f"{each.mean_probability:.3f}", f"{each.share:.3f}"),
                )
                for each in found.equal_mass
            ),
            note=note,
        )
    ]


def _valdo_table(result: EvaluationResult) -> Table:
    valdo = result.valdo
    return Table(
        title="VALDO 2021 figures",
        columns=("median over scans of", "value"),
        rows=(
            ("F1 (scans with microbleeds)", _number(valdo.median_f1)),
            ("Dice of the matches (scans with microbleeds)", _number(valdo.median_dice)),
            ("count difference", _number(valdo.median_count_difference)),
            ("volume difference, mm3", _number(valdo.median_volume_difference_mm3)),
        ),
        note=(
            "6-connected, centroids less than 5 mm apart. Dice and volume need voxels on both sides. "
            "Each row of a table counts as one element."
        ),
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def format_table(result: EvaluationResult) -> str:
    """All tables as text."""
    lines = [f"Evaluation. {NOTICE}", summary_text(result)]
    lines += [f"warning: {warning}" for warning in result.warnings]
    for table in tables(result):
        lines += ["", table_text(table)]
    return "\n".join(lines) + "\n"


def table_text(table: Table) -> str:
    """A table as text, the note below it."""
    lines = aligned([table.columns, *([str(cell) for cell in row] for row in table.rows)])
    ruler = "-" * max(len(line) for line in lines)
    text = [table.title, ruler, lines[0], ruler, *lines[1:], *textwrap.wrap(table.note, _NOTE_WIDTH)]
    return "\n".join(text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines whose columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _interval(estimate: Estimate, digits: int) -> str:
    if math.isnan(estimate.low):
        return ""
    return f"95 % interval {estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _curves(shown: RuleResult, with_band: bool) -> tuple[FrocLine, ...]:
    if shown.curve is None or not shown.curve.lesions:
        return ()
    line = FrocLine(
        name=shown.rule.title,
        fp_per_scan=shown.curve.fp_per_scan,
        sensitivity=shown.curve.sensitivity,
        operating_point=(shown.fp_per_scan.value, shown.sensitivity.value),
    )
    if not with_band:
        return (line,)
    return (
        dataclasses.replace(
            line,
            band_fp_per_scan=np.array(FROC_RATES),
            band_low=np.array([point.low for point in shown.froc]),
            band_high=np.array([point.high for point in shown.froc]),
        ),
    )


def _reliability_line(found: Reliability | None) -> ReliabilityLine | None:
    if found is None:
        return None
    return ReliabilityLine(
        probability=np.array([each.mean_probability for each in found.equal_mass]),
        share=np.array([each.share for each in found.equal_mass]),
        detections=np.array([each.detections for each in found.equal_mass]),
        note=f"{found.bins} bins of equal numbers; expected calibration error "
        f"{estimate_text(found.ece_equal_mass)}, by chance alone {found.by_chance_equal_mass:.3f}",
    )


def report_content(
    result: EvaluationResult,
    *,
    title: str,
    settings: tuple[tuple[str, str], ...] = (),
    weights_sha256: str = "",
    steps: tuple[str, ...] = (),
    timings: tuple[tuple[str, float], ...] = (),
) -> EvaluationContent:
    """The evaluation as the HTML page shows it, see `report.evaluation`."""
    main = result.headline_result
    shown = result.by_rule(result.breakdown_rule)
    return EvaluationContent(
        title=title,
        subtitle=f"{main.rule.title}; {operating_point_text(result)}; {summary_text(result)}",
        headlines=tuple(
            Headline(
                label=label, value=estimate_text(Estimate(each.value), digits), note=_interval(each, digits)
            )
            for label, each, digits in (
                ("Sensitivity", main.sensitivity, 3),
                ("False positives per scan", main.fp_per_scan, 2),
                ("Precision", main.precision, 3),
                ("F1", main.f1, 3),
            )
        ),
        tables=tables(result),
        curves=_curves(shown, result.bootstrap_samples > 0),
        reliability=_reliability_line(result.calibration),
        curve_note=f"{shown.rule.title}; false positives per scan over {scans_text(result)}."
        + (" Band: 95 % interval." if result.bootstrap_samples else ""),
        subjects=tuple(
            SubjectLine(
                subject=row.subject,
                group=row.protocol or "",
                lesions=row.lesions,
                detections=row.detections,
                tp=row.tp,
                fp=row.fp,
                fn=row.fn,
                note="no prediction found" if row.missing else "",
            )
            for row in result.subjects
        ),
        agreement=CountAgreementText(**dataclasses.asdict(result.counts)),
        warnings=result.warnings,
        settings=settings,
        weights_sha256=weights_sha256,
        version=__version__,
        steps=steps,
        timings=timings,
    )
