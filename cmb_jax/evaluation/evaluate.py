"""Detections against truth: every rule side by side, with intervals and breakdowns."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.evaluation import breakdown, records, statistics
from cmb_jax.evaluation.calibration import Reliability, reliability
from cmb_jax.evaluation.froc import FrocCurve, collect_events, froc_curve
from cmb_jax.evaluation.matching import (
    CENTER5,
    HEADLINE,
    RULES,
    VALDO,
    Match,
    Rule,
    ValdoCase,
    events,
    match,
    pairs_of,
    valdo_case,
)
from cmb_jax.evaluation.read import find_predictions, find_truth, listed
from cmb_jax.evaluation.subsets import SIZES, ScanCells, SubsetResult, of_size, scan_cells, subset_results
from cmb_jax.io.provenance import is_pseudonym

# Limits beyond which the figures of a scan are doubtful, see `_doubts`.
_FEW_TIMES = 2  # lesions by one rule over those by another: touching lesions alone do not explain more
_LARGEST_MM = 50.0  # of a microbleed, with room to spare
_FEW_LESIONS, _NEAR_MM = 2, 5.0  # so many that lie so near to a position by no chance
_MOST = 0.8  # share of the lesions
_RIM_VOXELS = 3.0  # a detector may put a center slightly beyond the edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleResult:
    """All scans by one rule at the operating point, and the FROC curve where the rule has one."""

    rule: Rule
    tp: int
    fp: int
    fn: int
    sensitivity: statistics.Estimate
    fp_per_scan: statistics.Estimate
    precision: statistics.Estimate
    f1: statistics.Estimate
    average_precision: statistics.Estimate | None = None
    froc: tuple[statistics.Estimate, ...] = ()  # sensitivity at FROC_RATES
    curve: FrocCurve | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValdoSummary:
    """The challenge's own figures: medians over scans; scans where one is undefined are left out."""

    median_f1: float
    median_dice: float
    median_count_difference: float
    median_volume_difference_mm3: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectRow:
    """One scan by the rule of the breakdowns."""

    subject: str
    protocol: str | None
    lesions: int
    detections: int
    tp: int
    fp: int
    fn: int
    ignored: int  # detections on lesions that are ignored, left out of the count
    missing: bool  # no prediction was found


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """All figures of an evaluation."""

    headline: str  # name of the rule that is shown first
    breakdown_rule: str  # of the breakdowns and the rows of the scans; the headline's where it works on pairs
    threshold: float | None  # of the score; None: what the program itself kept
    scans: int
    scans_without_lesions: int
    lesions: int
    lesions_by_size: dict[str, int]  # of subsets.SIZES but the first
    lesions_ignored: int  # that a reader might not see: neither missed nor false
    rules: tuple[RuleResult, ...]
    valdo: ValdoSummary
    breakdowns: tuple[breakdown.Breakdown, ...]
    subsets: tuple[SubsetResult, ...]  # by phase, size, protocol, tier; with and without calcifications
    false_positives_by_mimic: tuple[breakdown.FalsePositiveGroup, ...]
    false_positives_by_zone: tuple[breakdown.FalsePositiveGroup, ...]
    counts: statistics.CountAgreement
    places: breakdown.PlaceAgreement | None  # None: one side names no places
    calibration: Reliability | None  # of the reported detections; None: they have no probabilities
    rejection: tuple[breakdown.RejectionRule, ...]  # empty where the prediction rejects nothing
    subjects: tuple[SubjectRow, ...]
    bootstrap_samples: int
    seed: int
    warnings: tuple[str, ...] = ()

    def by_rule(self, name: str) -> RuleResult:
        """The result of a rule by its name."""
        return next(result for result in self.rules if result.rule.name == name)

    @property
    def headline_result(self) -> RuleResult:
        """The result of the headline rule."""
        return self.by_rule(self.headline)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scored:
    """One scan by every rule; small, so that its volumes can be freed."""

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
    probabilities: np.ndarray | None  # (K,) of the reported detections, NaN where unknown; None: all unknown
    true: np.ndarray  # (K,) bool, whether each matches a lesion
    rejected: Counter[tuple[str, bool]]  # see breakdown.rejected_by_reason
    scores: tuple[float, float]  # the lowest and the highest of the candidates; 0 and 1 lie between
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

    Every scan with a truth counts. One without a prediction counts as empty, with a warning.

    Args:
        pred_dir: see `read.find_predictions`.
        truth_dir: see `read.find_truth`.
        rule: name of the headline rule, a key of `matching.RULES`; all rules are computed.
        threshold: of the score; None: what the prediction keeps (probability maps: 0.5).
        bootstrap_samples: resamples of the scans for the 95 % intervals; 0 for none.
        keep_identifiers: False numbers the scans whose names are not pseudonyms (`io.provenance`).

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
    note = f"no prediction for {len(missing)} of {len(truths)} scans, counted as empty: {listed(missing)}"
    read_predictions = (source.read(threshold) for source in predictions)
    read_truths = (source.read() for source in truths)
    return evaluate_records(
        (dataclasses.replace(each, subject=name) for each, name in zip(read_predictions, names, strict=True)),
        (dataclasses.replace(each, subject=name) for each, name in zip(read_truths, names, strict=True)),
        rule=rule,
        threshold=threshold,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        warnings=(note,) if missing else (),
    )


def evaluate_records(
    detections: Iterable[records.SubjectDetections],
    truths: Iterable[records.SubjectTruth],
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
        rule: name of the headline rule, a key of `matching.RULES`. The challenge's rule splits lesions anew:
            breakdowns are by center5 then.
        threshold: operating point on the score; None: what the program itself kept.
        bootstrap_samples: resamples of the scans for the 95 % intervals; 0 for none.

    Raises:
        ValueError: no scans, or scans that do not correspond.
        UserError: an unknown rule; voxels of prediction and truth on different grids.
    """
    shown = CENTER5 if rule == VALDO.name else _pairing_rule(rule)
    # Volumes of a whole cohort would not fit into memory: each scan is reduced to counts, events and names
    # before the next one is read, and everything else is computed from these.
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
        breakdowns=breakdown.sensitivity_breakdowns((scan.groups, scan.found) for scan in scored),
        subsets=subset_results([scan.cells for scan in scored], samples=bootstrap_samples, seed=seed),
        false_positives_by_mimic=breakdown.false_positive_groups(
            [scan.mimics or () for scan in scored], samples=bootstrap_samples, seed=seed
        ),
        false_positives_by_zone=breakdown.false_positive_groups(
            [scan.zones or () for scan in scored], samples=bootstrap_samples, seed=seed
        ),
        counts=statistics.count_agreement(
            np.array([row.detections - row.ignored for row in rows]), np.array([row.lesions for row in rows])
        ),
        places=breakdown.join_places([scan.places for scan in scored]),
        calibration=_calibration(scored, bootstrap_samples, seed),
        rejection=breakdown.rejection_rules(
            (scan.rejected for scan in scored), sum(row.lesions for row in rows), scans
        ),
        subjects=rows,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        warnings=(*warnings, *_odd_scores(scored), *(line for scan in scored for line in scan.warnings)),
    )


def _pairing_rule(name: str) -> Rule:
    """A rule on pairs of the record's rows, which has a FROC curve: any but the challenge's own."""
    known = [rule for rule in RULES if rule != VALDO.name]
    if name not in known:
        raise UserError(f"no FROC curve and no breakdowns by rule {name!r}: choose one of {', '.join(known)}")
    return RULES[name]


def _score(
    detections: records.SubjectDetections,
    truth: records.SubjectTruth,
    breakdown_rule: Rule,
    threshold: float | None,
) -> _Scored:
    if detections.subject != truth.subject:
        raise ValueError(f"detections of {detections.subject} are compared with truth of {truth.subject}")
    # Two sets of detections: all candidates, for curves over all thresholds, and those reported at the
    # operating point, for everything else.
    candidates = detections.candidates()
    reported = detections.at(threshold)
    valdo = valdo_case(reported, truth)
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
        groups=breakdown.lesion_groups(truth),
        found=shown.found,
        mimics=None if truth.mimics is None else breakdown.name_by_mimic(false.centers_mm, truth.mimics),
        zones=None if false.zones is None else list(false.zones),
        places=breakdown.place_agreement(reported, truth, shown.lesion),
        probabilities=None if reported.probabilities is None else reported.probabilities[shown.counted],
        true=shown.lesion[shown.counted] >= 0,
        rejected=breakdown.rejected_by_reason(detections, truth, shown.found, breakdown_rule, threshold),
        scores=(np.min(candidates.scores, initial=0.0), np.max(candidates.scores, initial=1.0)),
        warnings=tuple(_doubts(reported, truth, len(valdo.match.found), matches)),
    )


def _rule_result(rule: Rule, scored: list[_Scored], samples: int, seed: int) -> RuleResult:
    tp, fp, lesions = np.array([scan.counts[rule.name] for scan in scored]).T
    figures: dict[str, Any] = {
        **statistics.bootstrap_counts(
            statistics.Counts(tp=tp, fp=fp, lesions=lesions), samples=samples, seed=seed
        )
    }
    missed = lesions - tp
    result = RuleResult(rule=rule, tp=int(tp.sum()), fp=int(fp.sum()), fn=int(missed.sum()), **figures)
    if rule is VALDO:
        return result
    joined = collect_events([scan.events[rule.name] for scan in scored], lesions)
    *froc, precision = statistics.bootstrap_froc(joined, samples=samples, seed=seed)
    return dataclasses.replace(
        result, average_precision=precision, froc=tuple(froc), curve=froc_curve(joined)
    )


def _calibration(scored: list[_Scored], samples: int, seed: int) -> Reliability | None:
    """Reliability of the reported detections, if each of them has a probability.

    A detection is true by the rule of the breakdowns, which is not the headline's where that splits lesions
    anew.
    """
    # one detection without a probability makes the set of those with one a selection: then there is no figure
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
    medians = {}
    for name in ("f1", "dice", "count_difference", "volume_difference_mm3"):
        values = np.array([getattr(case, name) for case in cases], float)
        defined = values[~np.isnan(values)]
        medians[f"median_{name}"] = float(np.median(defined)) if len(defined) else float("nan")
    return ValdoSummary(**medians)


def _odd_scores(scored: list[_Scored]) -> tuple[str, ...]:
    """A warning if scores are not numbers from 0 to 1; order decides all figures but those at a threshold."""
    low, high = min(scan.scores[0] for scan in scored), max(scan.scores[1] for scan in scored)
    if low >= 0.0 and high <= 1.0:
        return ()
    return (f"the scores lie between {low:.4g} and {high:.4g}, not 0 and 1: a threshold has another meaning",)


def _doubts(
    reported: records.SubjectDetections, truth: records.SubjectTruth, pieces: int, matches: dict[str, Match]
) -> Iterator[str]:
    """Warnings about figures that may mislead: unclear labels, contradicting rules, odd positions.

    Args:
        pieces: lesions of the truth by the challenge's rule, which splits voxels anew.
    """
    # Each of these gives plausible figures that mean nothing: masks read as labels, another frame or unit.
    name = truth.subject
    for side, volume in (("truth", truth.volume), ("prediction", reported.volume)):
        if volume is not None and volume.note:
            yield f"{name}: {side}: {volume.note}"
    lesions = len(truth.centers_mm)
    if max(lesions, pieces) > _FEW_TIMES * min(lesions, pieces) and lesions and pieces:
        yield (
            f"{name}: the truth holds {lesions} lesions by its labels, but {pieces} connected pieces, which "
            "are the lesions of the challenge's rule: the rules contradict each other"
        )
    rates = [match.tp / len(match.found) for match in matches.values() if len(match.found)]
    if rates and min(rates) == 0 and max(rates) >= _MOST:
        zero = ", ".join(rule for rule, match in matches.items() if not match.tp)
        most = ", ".join(rule for rule, match in matches.items() if match.tp >= _MOST * len(match.found))
        yield (
            f"{name}: nothing is found by {zero}, and nearly all by {most}: the labels or the positions of "
            "one side mean something else"
        )
    for side, sizes in (("truth", truth.diameters_mm), ("prediction", reported.diameters_mm)):
        if np.max(sizes, initial=0.0) > _LARGEST_MM:
            yield (
                f"{name}: {side}: a lesion of {np.max(sizes):.0f} mm; no microbleed is so large (an inverted "
                "mask, another unit?)"
            )
    if outside := _outside(reported, truth):
        yield outside
    if fitting := _fitting_frame(reported, truth):
        yield f"{name}: few lesions are found, but most would be with the table's positions {fitting}"


def _fitting_frame(reported: records.SubjectDetections, truth: records.SubjectTruth) -> str:
    """How a table's positions must be read for most of the truth to lie at one of them; "" if none helps."""
    if reported.volume is not None or not len(reported.centers_mm) or len(truth.centers_mm) < _FEW_LESIONS:
        return ""
    points = reported.centers_mm
    frames = {"in LPS": points * [-1.0, -1.0, 1.0], "in centimeters": 10 * points, "in meters": 1000 * points}
    if truth.volume is not None:
        affine = truth.volume.affine
        frames["as voxel indices"] = points @ affine[:3, :3].T + affine[:3, 3]

    def near(positions: np.ndarray) -> float:
        distance = np.linalg.norm(truth.centers_mm[:, None] - positions[None], axis=-1)
        return float(np.mean(distance.min(axis=1) < _NEAR_MM))

    # only where the positions as they are fit badly: a better frame may also fit by chance
    if near(points) > 0.25:
        return ""
    return next((name for name, moved in frames.items() if near(moved) > 0.5), "")


def _outside(reported: records.SubjectDetections, truth: records.SubjectTruth) -> str:
    """A warning if detections of a table lie outside the truth's image, maybe because they are in LPS."""
    if truth.volume is None or reported.volume is not None or not len(reported.centers_mm):
        return ""
    shape, affine = np.array(truth.volume.labels.shape), truth.volume.affine

    def inside(points_mm: np.ndarray) -> np.ndarray:
        index = records.to_index(points_mm, affine)
        return np.all((index >= -_RIM_VOXELS) & (index <= shape - 1 + _RIM_VOXELS), axis=1)

    beyond = int((~inside(reported.centers_mm)).sum())
    if not beyond:
        return ""
    is_lps = inside(reported.centers_mm * [-1.0, -1.0, 1.0]).all()
    why = "; with x and y negated all lie inside: is the table in LPS?" if is_lps else ""
    return f"{truth.subject}: {beyond} of {len(reported.centers_mm)} detections lie outside the image{why}"
