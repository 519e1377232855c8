"""Detections against truth: every rule side by side, with intervals and breakdowns."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.evaluation.agreement import count_agreement
from cmb_jax.evaluation.bootstrap import Counts, bootstrap_counts, bootstrap_froc
from cmb_jax.evaluation.breakdown import (
    false_positive_groups,
    join_places,
    lesion_groups,
    name_by_mimic,
    place_agreement,
    sensitivity_breakdowns,
)
from cmb_jax.evaluation.doubts import doubts
from cmb_jax.evaluation.froc import collect_events, froc_curve
from cmb_jax.evaluation.matching import CENTER5, HEADLINE, RULES, VALDO, Match, Rule, events, match, pairs_of
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table
from cmb_jax.evaluation.read import find_predictions, find_truth, listed
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.rejection import rejected_by_reason, rejection_rules
from cmb_jax.evaluation.reliability import Reliability, reliability
from cmb_jax.evaluation.result import EvaluationResult, RuleResult, SubjectRow, ValdoSummary
from cmb_jax.evaluation.subsets import SIZES, ScanCells, of_size, scan_cells, subset_results
from cmb_jax.evaluation.valdo import ValdoCase, valdo_case
from cmb_jax.io.provenance import is_pseudonym

__all__ = [
    "EvaluationResult",
    "evaluate",
    "evaluate_records",
    "format_table",
    "write_metrics",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scored:
    """One scan by every rule; small, so that the volumes can be let go."""

    row: SubjectRow
    counts: dict[str, tuple[int, int, int]]  # rule name -> tp, fp, lesions
    events: dict[str, tuple[np.ndarray, np.ndarray]]  # rule name -> see matching.events
    valdo: ValdoCase
    cells: ScanCells
    sizes: dict[str, int]  # lesions by size
    lesions_ignored: int
    groups: dict[str, tuple[str, ...]]
    found: np.ndarray  # (M,) bool, by the rule of the breakdowns
    mimics: list[str] | None  # names of the false positives; None: the truth knows no mimics
    zones: list[str] | None  # zones of the false positives; None: the prediction has none
    places: tuple[int, int, int] | None  # see breakdown.place_agreement
    probabilities: np.ndarray | None  # (K,) of the reported detections, NaN where not known; None: of none
    true: np.ndarray  # (K,) bool, whether each matches a lesion
    rejected: Counter[tuple[str, bool]]  # see rejection.rejected_by_reason
    warnings: tuple[str, ...]


def evaluate(
    pred_dir: Path | str,
    truth_dir: Path | str,
    rule: str = HEADLINE,
    threshold: float | None = None,
    *,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    keep_identifiers: bool = True,
) -> EvaluationResult:
    """Evaluate a folder of predictions against a folder of truth.

    Every scan with a truth counts: one without a prediction counts as empty, with a warning.

    Args:
        pred_dir: DIR/SUBJECT/detections.csv, DIR/SUBJECT/*.nii.gz or DIR/SUBJECT*.nii.gz (instance labels,
            masks or probabilities); of a single scan also the folder of its detections.csv.
        truth_dir: a simulated tree, VALDO's Task2 folder, or a folder of label images.
        rule: name of the headline rule, a key of `matching.RULES`; all rules are computed.
        threshold: of the score; None takes what the prediction keeps (probability maps: 0.5).
        bootstrap_samples: resamples of the scans for the 95 % intervals; 0 for none.
        seed: of the resampling.
        keep_identifiers: False numbers the scans whose names are no pseudonyms (`io.provenance`).

    Raises:
        UserError: folders or files that are missing, empty, unreadable or do not fit each other.
    """
    truths = find_truth(Path(truth_dir))
    predictions = find_predictions(Path(pred_dir), [source.subject for source in truths])
    names = [
        source.subject if keep_identifiers or is_pseudonym(source.subject) else f"subject-{number}"
        for number, source in enumerate(truths, start=1)
    ]
    missing = [name for name, source in zip(names, predictions, strict=True) if source.path is None]
    warnings = (
        (f"no prediction for {len(missing)} of {len(truths)} scans, counted as empty: {listed(missing)}",)
        if missing
        else ()
    )
    return evaluate_records(
        (
            dataclasses.replace(source.read(threshold), subject=name)
            for name, source in zip(names, predictions, strict=True)
        ),
        (
            dataclasses.replace(source.read(), subject=name)
            for name, source in zip(names, truths, strict=True)
        ),
        rule=rule,
        threshold=threshold,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        warnings=warnings,
    )


def evaluate_records(
    detections: Iterable[SubjectDetections],
    truths: Iterable[SubjectTruth],
    *,
    rule: str = HEADLINE,
    threshold: float | None = None,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    warnings: tuple[str, ...] = (),
) -> EvaluationResult:
    """Evaluate scans in memory, both sides in the same order.

    Iterables may be generators: then one scan is held at a time.

    Args:
        detections: of S scans.
        truths: of the same S scans.
        rule: name of the headline rule, a key of `matching.RULES`. The challenge's rule splits lesions anew,
            so that breakdowns are by center5 then.
        threshold: operating point on the score; None takes what the program itself kept.
        bootstrap_samples: resamples of the scans for the 95 % intervals; 0 for none.
        seed: of the resampling.
        warnings: lines to hand on.

    Raises:
        ValueError: no scans, or scans that do not correspond.
        UserError: an unknown rule; voxels of prediction and truth on different grids.
    """
    shown = CENTER5 if rule == VALDO.name else _pairing_rule(rule)
    scored = [_score(d, t, shown, threshold) for d, t in zip(detections, truths, strict=True)]
    if not scored:
        raise ValueError("no scans to evaluate")
    scans = len(scored)
    if scans == 1:
        bootstrap_samples = 0  # one scan gives no interval
    rows = tuple(scan.row for scan in scored)
    return EvaluationResult(
        headline=rule,
        breakdown_rule=shown.name,
        threshold=threshold,
        scans=scans,
        scans_without_lesions=sum(row.lesions == 0 for row in rows),
        lesions=sum(row.lesions for row in rows),
        lesions_by_size={size: sum(scan.sizes[size] for scan in scored) for size in SIZES[1:]},
        lesions_ignored=sum(scan.lesions_ignored for scan in scored),
        rules=tuple(_rule_result(r, scored, bootstrap_samples, seed) for r in RULES.values()),
        valdo=_valdo_summary([scan.valdo for scan in scored]),
        breakdowns=sensitivity_breakdowns((scan.groups, scan.found) for scan in scored),
        subsets=subset_results([scan.cells for scan in scored], samples=bootstrap_samples, seed=seed),
        false_positives_by_mimic=false_positive_groups(
            [scan.mimics or () for scan in scored], samples=bootstrap_samples, seed=seed
        ),
        false_positives_by_zone=false_positive_groups(
            [scan.zones or () for scan in scored], samples=bootstrap_samples, seed=seed
        ),
        counts=count_agreement(
            np.array([row.detections - row.ignored for row in rows]), np.array([row.lesions for row in rows])
        ),
        places=join_places([scan.places for scan in scored]),
        calibration=_calibration(scored, bootstrap_samples, seed),
        rejection=rejection_rules(
            (scan.rejected for scan in scored), sum(row.lesions for row in rows), scans
        ),
        subjects=rows,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        warnings=(*warnings, *(line for scan in scored for line in scan.warnings)),
    )


def _pairing_rule(name: str) -> Rule:
    """A rule on pairs of the record's rows, which has a FROC curve: any but the challenge's own."""
    known = [rule for rule in RULES if rule != VALDO.name]
    if name not in known:
        raise UserError(f"no FROC curve and no breakdowns by rule {name!r}: choose one of {', '.join(known)}")
    return RULES[name]


def _score(
    detections: SubjectDetections, truth: SubjectTruth, breakdown_rule: Rule, threshold: float | None
) -> _Scored:
    if detections.subject != truth.subject:
        raise ValueError(f"detections of {detections.subject} stand against truth of {truth.subject}")
    candidates = detections.candidates()
    reported = detections.at(threshold)
    valdo = valdo_case(reported, truth, limit_mm=VALDO.limit, connectivity=VALDO.connectivity)
    matches: dict[str, Match] = {VALDO.name: valdo.match}
    scan_events = {}
    for rule in RULES.values():
        if rule is VALDO:
            continue
        matches[rule.name] = match(pairs_of(rule, reported, truth))
        scan_events[rule.name] = events(pairs_of(rule, candidates, truth), candidates.scores)
    shown = matches[breakdown_rule.name]
    false = reported.select(shown.false_positive)
    return _Scored(
        row=SubjectRow(
            subject=truth.subject,
            protocol=truth.protocol,
            lesions=len(truth.centers_mm),
            detections=len(reported.centers_mm),
            tp=shown.tp,
            fp=shown.fp,
            fn=shown.fn,
            ignored=int((~shown.counted).sum()),
            missing=detections.missing,
        ),
        counts={name: (m.tp, m.fp, len(m.found)) for name, m in matches.items()},
        events=scan_events,
        valdo=valdo,
        cells=scan_cells(candidates, reported, truth, breakdown_rule),
        sizes={size: int(of_size(truth.seen_diameters_mm, size).sum()) for size in SIZES},
        lesions_ignored=len(truth.ignored_centers_mm),
        groups=lesion_groups(truth),
        found=shown.found,
        mimics=None if truth.mimics is None else name_by_mimic(false.centers_mm, truth.mimics),
        zones=None if false.zones is None else list(false.zones),
        places=place_agreement(reported, truth, shown.lesion),
        probabilities=None if reported.probabilities is None else reported.probabilities[shown.counted],
        true=shown.lesion[shown.counted] >= 0,
        rejected=rejected_by_reason(detections, truth, shown.found, breakdown_rule, threshold),
        warnings=tuple(doubts(reported, truth, len(valdo.match.found), matches)),
    )


def _rule_result(rule: Rule, scored: list[_Scored], samples: int, seed: int) -> RuleResult:
    tp, fp, lesions = np.array([scan.counts[rule.name] for scan in scored]).T
    metrics = bootstrap_counts(Counts(tp=tp, fp=fp, lesions=lesions), samples=samples, seed=seed)
    result = RuleResult(
        rule=rule,
        tp=int(tp.sum()),
        fp=int(fp.sum()),
        fn=int((lesions - tp).sum()),
        sensitivity=metrics["sensitivity"],
        fp_per_scan=metrics["fp_per_scan"],
        precision=metrics["precision"],
        f1=metrics["f1"],
    )
    if rule is VALDO:
        return result
    joined = collect_events([scan.events[rule.name] for scan in scored], lesions)
    *froc, precision = bootstrap_froc(joined, samples=samples, seed=seed)
    return dataclasses.replace(
        result, average_precision=precision, froc=tuple(froc), curve=froc_curve(joined)
    )


def _calibration(scored: list[_Scored], samples: int, seed: int) -> Reliability | None:
    """Reliability of the reported detections, if each of them has a probability.

    Where the headline is the challenge's rule, which splits lesions anew, a detection is true by the rule of
    the breakdowns, like everything that is said of single detections.
    """
    parts = [
        np.full(len(scan.true), np.nan) if scan.probabilities is None else scan.probabilities
        for scan in scored
    ]
    probabilities = np.concatenate(parts)
    if np.isnan(probabilities).any():
        return None
    true = np.concatenate([scan.true for scan in scored])
    subject = np.repeat(np.arange(len(scored)), [len(part) for part in parts])
    return reliability(probabilities, true, subject, len(scored), samples=samples, seed=seed)


def _valdo_summary(cases: list[ValdoCase]) -> ValdoSummary:
    def median(values: list[float]) -> float:
        defined = [value for value in values if not math.isnan(value)]
        return float(np.median(defined)) if defined else float("nan")

    return ValdoSummary(
        median_f1=median([case.f1 for case in cases]),
        median_dice=median([case.dice for case in cases]),
        median_count_difference=median([float(case.count_difference) for case in cases]),
        median_volume_difference_mm3=median([case.volume_difference_mm3 for case in cases]),
    )
