"""Weights whose scores mean something, from their predictions on validation scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.calibration.labeled import LabeledCandidates, read_labeled
from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.evaluation.bootstrap import Estimate, bootstrap_counts
from cmb_jax.evaluation.calibration import DEFINITE_PROBABILITY, Calibration, calibrate
from cmb_jax.evaluation.froc import FrocEvents
from cmb_jax.evaluation.matching import CENTER3
from cmb_jax.evaluation.metrics import json_text, reliability_values
from cmb_jax.evaluation.operating_points import (
    OperatingPoint,
    above,
    counts_at,
    operating_point,
    operating_table,
)
from cmb_jax.evaluation.reliability import reliability
from cmb_jax.inference.bundle import (
    WeightsBundle,
    load_bundle,
    read_weights_record,
    record_path,
    save_with_config,
)
from cmb_jax.io.atomic import atomic_write_text, sha256_file

# With fewer, neither a curve nor an operating point says anything about the next scans.
FEWEST = 20
FEWEST_SCANS = 5
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Map and operating point of one kind of scans, and what they were learned from."""

    labeled: LabeledCandidates
    known: FrocEvents  # the candidates above the end of every list
    fitted: Calibration
    chosen: OperatingPoint

    @property
    def definite(self) -> float:
        """Score from which a detection is definite.

        There the map reaches `DEFINITE_PROBABILITY`; never below the operating point, and above every score
        where none reaches that probability.
        """
        start = min(self.fitted.map.score_at(DEFINITE_PROBABILITY), float(np.nextafter(1.0, 2.0)))
        return max(start, self.chosen.threshold)


def calibrate_weights(
    pred: Sequence[Path],
    truth: Sequence[Path],
    weights: str,
    out: Path,
    *,
    max_fp: float,
    max_fp_magnitude: float,
) -> None:
    """Fit, choose, write the weights and the record beside them.

    Scans with and without a phase have levels of their own where there are enough of both: without one,
    calcifications look like blood, so that the same score is worth less.

    Args:
      pred: folders of predictions of these weights.
      truth: folders of truth, in the same order.
      weights: name of bundled weights, or a file.
      out: weights to write, with their record beside them.
      max_fp: most false positives per scan at the operating point.
      max_fp_magnitude: the same for scans without a phase.

    Raises:
      UserError: folders that do not fit each other, too little to learn from.
    """
    bundle = load_bundle(weights)
    if bundle.others:
        raise UserError(f"{weights}: only one network's weights can be calibrated; give one file")
    record = read_weights_record(bundle.record_path) or {}
    labeled = read_labeled(pred, truth, bundle)
    with_phase, without = labeled.of_scans(labeled.phase), labeled.of_scans(~labeled.phase)
    magnitude = None
    if _lacking(with_phase) is None and _lacking(without) is None:
        levels = learn_levels(with_phase, bundle, max_fp, "--max-fp")
        magnitude = learn_levels(without, bundle, max_fp_magnitude, "--max-fp-magnitude")
    else:
        levels = learn_levels(labeled, bundle, max_fp, "--max-fp")
    config = calibrated_config(bundle.config, levels, magnitude)
    save_with_config(bundle, out, config)
    record.pop("magnitude_alone", None)
    record |= {
        "calibrated_from": {"name": bundle.path.stem, "sha256": bundle.sha256},
        "sha256": sha256_file(out),
        **_levels_record(levels, max_fp, "scans with a phase" if magnitude else "all scans"),
    }
    if magnitude is not None:
        record["magnitude_alone"] = _levels_record(magnitude, max_fp_magnitude, "scans without a phase")
    atomic_write_text(record_path(out), json_text(record), overwrite=True)


def learn_levels(labeled: LabeledCandidates, bundle: WeightsBundle, max_fp: float, option: str) -> Levels:
    """Operating point and map of these scans.

    Args:
      labeled: their candidates.
      bundle: the weights.
      max_fp: most false positives per scan at the operating point.
      option: how the command line calls it.

    Raises:
      UserError: there is too little to learn from.
    """
    lacking = _lacking(labeled)
    if lacking is not None:
        raise UserError(lacking)
    known = above(labeled.events, labeled.complete_from)
    chosen = operating_point(known, max_fp, complete_from=labeled.complete_from, seed=SEED)
    if chosen is None:
        raise UserError(
            f"{option}: the candidates end before {max_fp:g} false positives per scan; predict again "
            f"with --threshold {bundle.config.inference.candidate_threshold:g}, so that all are listed"
        )
    if not chosen.sensitivity.value:
        raise UserError(f"{option} {max_fp:g}: no microbleed is found at so few false positives; give more")
    return Levels(labeled=labeled, known=known, fitted=calibrate(known, seed=SEED), chosen=chosen)


def calibrated_config(config: Config, levels: Levels, magnitude: Levels | None = None) -> Config:
    """The configuration with maps and thresholds; `magnitude`: of scans without a phase, None: the same."""
    inference = dataclasses.replace(
        config.inference,
        score_threshold=levels.chosen.threshold,
        definite_threshold=levels.definite,
        calibration_scores=levels.fitted.map.scores,
        calibration_probabilities=levels.fitted.map.probabilities,
        magnitude_score_threshold=magnitude.chosen.threshold if magnitude else None,
        magnitude_definite_threshold=magnitude.definite if magnitude else None,
        magnitude_calibration_scores=magnitude.fitted.map.scores if magnitude else (),
        magnitude_calibration_probabilities=magnitude.fitted.map.probabilities if magnitude else (),
    )
    return dataclasses.replace(config, inference=inference)


def _lacking(labeled: LabeledCandidates) -> str | None:
    """What there is too little of to calibrate with, in words; None if there is enough."""
    if not len(labeled.list_ends):
        return "no scans to calibrate with; give labeled scans"
    events = above(labeled.events, labeled.complete_from)
    scans, lesions, found = len(np.unique(events.subject)), int(events.lesions.sum()), int(events.true.sum())
    false = len(events.true) - found
    for count, least, what in (
        (scans, FEWEST_SCANS, "scans with candidates"),
        (lesions, FEWEST, "microbleeds"),
        (found, FEWEST, "microbleeds found"),
        (false, FEWEST, "false candidates"),
    ):
        if count < least:
            return f"only {count} {what} to calibrate with, {least} are the least; give more labeled scans"
    return None


def _levels_record(levels: Levels, max_fp: float, scans: str) -> dict[str, Any]:
    return {
        "operating_point": f"the highest sensitivity at no more than {max_fp:g} false positives per scan, "
        f"{CENTER3.title}, of the calibration's data ({scans})",
        "score_threshold": levels.chosen.threshold,
        "definite_threshold": levels.definite,
        "calibration": _calibration_record(levels),
        "operating_points": _points_record(levels),
    }


def _calibration_record(levels: Levels) -> dict[str, Any]:
    """How the map came about and how good it was on scans that it was not fitted on."""
    labeled, known, fitted = levels.labeled, levels.known, levels.fitted
    scans = len(known.lesions)
    kept = known.scores >= levels.chosen.threshold

    def measured(probabilities: np.ndarray, rows: np.ndarray) -> dict[str, Any] | None:
        found = reliability(probabilities[rows], known.true[rows], known.subject[rows], scans, seed=SEED)
        return None if found is None else reliability_values(found)

    definite = dataclasses.replace(known, scores=np.where(kept, fitted.held_out, 0.0))
    counts = counts_at(definite, DEFINITE_PROBABILITY)
    return {
        "what": "probability that a candidate is a true microbleed",
        "method": fitted.method,
        "rule": CENTER3.title,
        "data": [dataclasses.asdict(tree) for tree in labeled.trees],
        "scans": scans,
        "lesions": int(known.lesions.sum()),
        "candidates": len(known.true),
        "true_candidates": int(known.true.sum()),
        "scores_from": labeled.complete_from,
        "held_out": f"{fitted.folds}-fold cross-validation over scans, seed {SEED}",
        "held_out_log_loss": fitted.log_loss,
        "held_out_kept": measured(fitted.held_out, kept),
        "held_out_all": measured(fitted.held_out, np.ones(len(kept), bool)),
        "uncalibrated_kept": measured(known.scores, kept),
        "intervals": "95 %, percentile bootstrap over scans, 2000 resamples",
        "definite": {
            "probability": DEFINITE_PROBABILITY,
            "threshold": levels.definite,
            "held_out_detections": int(counts.tp.sum() + counts.fp.sum()),
            "held_out_precision": _values(bootstrap_counts(counts, seed=SEED)["precision"]),
        },
    }


def _points_record(levels: Levels) -> dict[str, Any]:
    labeled, chosen = levels.labeled, levels.chosen
    table = operating_table(levels.known, complete_from=labeled.complete_from, seed=SEED)
    return {
        "rule": CENTER3.title,
        "data": [dataclasses.asdict(tree) for tree in labeled.trees],
        "measured_on": "the scans that the thresholds were chosen on",
        "intervals": "95 %, percentile bootstrap over scans, 2000 resamples",
        "chosen": _point(chosen),
        "table": [_point(point) for point in table],
    }


def _point(point: OperatingPoint) -> dict[str, Any]:
    return {
        "max_fp_per_scan": point.max_fp_per_scan,
        "threshold": point.threshold,
        "sensitivity": _values(point.sensitivity),
        "fp_per_scan": _values(point.fp_per_scan),
        "precision": _values(point.precision),
    }


def _values(estimate: Estimate) -> dict[str, float]:
    return dataclasses.asdict(estimate)
