"""What an evaluation says."""

from __future__ import annotations

import dataclasses

from cmb_jax.evaluation.agreement import CountAgreement
from cmb_jax.evaluation.bootstrap import Estimate
from cmb_jax.evaluation.breakdown import Breakdown, FalsePositiveGroup, PlaceAgreement
from cmb_jax.evaluation.froc import FrocCurve
from cmb_jax.evaluation.matching import Rule
from cmb_jax.evaluation.rejection import RejectionRule
from cmb_jax.evaluation.reliability import Reliability
from cmb_jax.evaluation.subsets import SubsetResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleResult:
    """All scans by one rule at the operating point, and the FROC curve where the rule has one."""

    rule: Rule
    tp: int
    fp: int
    fn: int
    sensitivity: Estimate
    fp_per_scan: Estimate
    precision: Estimate
    f1: Estimate
    average_precision: Estimate | None = None
    froc: tuple[Estimate, ...] = ()  # sensitivity at FROC_RATES
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
    """Everything that an evaluation says."""

    headline: str  # name of the rule that stands first
    breakdown_rule: str  # of the breakdowns and the rows of the scans; the headline where it can be
    threshold: float | None  # of the score; None: what the program itself kept
    scans: int
    scans_without_lesions: int
    lesions: int
    lesions_by_size: dict[str, int]  # of subsets.SIZES but the first
    lesions_ignored: int  # that no reader would see for sure: neither missed nor false
    rules: tuple[RuleResult, ...]
    valdo: ValdoSummary
    breakdowns: tuple[Breakdown, ...]
    subsets: tuple[SubsetResult, ...]  # by phase, size, protocol, tier; with and without calcifications
    false_positives_by_mimic: tuple[FalsePositiveGroup, ...]
    false_positives_by_zone: tuple[FalsePositiveGroup, ...]
    counts: CountAgreement
    places: PlaceAgreement | None  # None: one side names no places
    calibration: Reliability | None  # of what is reported; None: detections carry no probabilities
    rejection: tuple[RejectionRule, ...]  # empty where the prediction rejects nothing
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
