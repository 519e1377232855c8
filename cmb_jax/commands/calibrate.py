"""cmb-jax calibrate: weights whose scores mean something, from their predictions on validation scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.commands.calibration_inputs import LabelledCandidates, read_labelled
from cmb_jax.commands.common import check_output
from cmb_jax.commands.weights_record import describe, read_weights_record
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
from cmb_jax.inference.bundle import load_bundle, record_path, save_with_config
from cmb_jax.io.atomic import atomic_write_text, sha256_file

# With fewer, neither a curve nor an operating point says anything about the next scans.
FEWEST = 20
FEWEST_SCANS = 5
SEED = 0


def run(
    *,
    pred: Sequence[Path],
    truth: Sequence[Path],
    weights: str,
    out: Path,
    max_fp: float,
    overwrite: bool = False,
) -> None:
    """Fit, choose, write the weights and the record beside them, print what they are now.

    Raises:
      UserError: arguments or folders that do not fit each other, too little to learn from, files that exist.
    """
    _check_arguments(pred, truth, out, max_fp, overwrite)
    bundle = load_bundle(weights)
    if bundle.others:
        raise UserError(f"{weights}: only one network's weights can be calibrated; give one file")
    record = read_weights_record(bundle.record_path) or {}
    labelled = read_labelled(pred, truth, bundle)
    known = above(labelled.events, labelled.complete_from)
    _check_enough(known)
    chosen = operating_point(known, max_fp, complete_from=labelled.complete_from, seed=SEED)
    if chosen is None:
        raise UserError(
            f"{pred[0]}: the candidates end before {max_fp:g} false positives per scan; predict again "
            f"with --threshold {bundle.config.inference.candidate_threshold:g}, so that all are listed"
        )
    if not chosen.sensitivity.value:
        raise UserError(f"--max-fp {max_fp:g}: no microbleed is found at so few false positives; give more")
    fitted = calibrate(known, seed=SEED)
    config = calibrated_config(bundle.config, fitted, chosen)
    save_with_config(bundle, out, config)
    record |= {
        "calibrated_from": {"name": bundle.path.stem, "sha256": bundle.sha256},
        "operating_point": f"the highest sensitivity at no more than {max_fp:g} false positives per scan, "
        f"{CENTER3.title}, of the calibration's data",
        "score_threshold": config.inference.score_threshold,
        "definite_threshold": config.inference.definite_threshold,
        "sha256": sha256_file(out),
        "calibration": _calibration_record(labelled, known, fitted, config, chosen),
        "operating_points": _points_record(labelled, known, chosen),
    }
    atomic_write_text(record_path(out), json_text(record), overwrite=True)
    print(describe(load_bundle(out)))
    print(f"written: {out}, {record_path(out).name}")


def calibrated_config(config: Config, fitted: Calibration, chosen: OperatingPoint) -> Config:
    """The configuration with map and thresholds; definite starts at `DEFINITE_PROBABILITY`, but not below the
    operating point, and nothing is definite where no score reaches that probability."""
    definite = min(fitted.map.score_at(DEFINITE_PROBABILITY), float(np.nextafter(1.0, 2.0)))
    inference = dataclasses.replace(
        config.inference,
        score_threshold=chosen.threshold,
        definite_threshold=max(definite, chosen.threshold),
        calibration_scores=fitted.map.scores,
        calibration_probabilities=fitted.map.probabilities,
    )
    return dataclasses.replace(config, inference=inference)


def _check_arguments(
    pred: Sequence[Path], truth: Sequence[Path], out: Path, max_fp: float, overwrite: bool
) -> None:
    if not pred or len(pred) != len(truth):
        raise UserError(
            f"{len(pred)} folders of predictions and {len(truth)} of truth: give as many --truth as --pred, "
            "in the same order"
        )
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: weights are a .safetensors file; give such a name")
    if not max_fp > 0:
        raise UserError(f"--max-fp {max_fp}: give a number of false positives per scan above 0")
    for path in (out, record_path(out)):
        check_output(path, overwrite)


def _check_enough(events: FrocEvents) -> None:
    scans, lesions, found = len(np.unique(events.subject)), int(events.lesions.sum()), int(events.true.sum())
    false = len(events.true) - found
    for count, least, what in (
        (scans, FEWEST_SCANS, "scans with candidates"),
        (lesions, FEWEST, "microbleeds"),
        (found, FEWEST, "microbleeds found"),
        (false, FEWEST, "false candidates"),
    ):
        if count < least:
            raise UserError(
                f"only {count} {what} to calibrate with, {least} are the least; give more labelled scans"
            )


def _calibration_record(
    labelled: LabelledCandidates,
    known: FrocEvents,
    fitted: Calibration,
    config: Config,
    chosen: OperatingPoint,
) -> dict[str, Any]:
    """How the map came about and how good it was on scans that it was not fitted on."""
    scans = len(known.lesions)
    kept = known.scores >= chosen.threshold

    def measured(probabilities: np.ndarray, rows: np.ndarray) -> dict[str, Any] | None:
        found = reliability(probabilities[rows], known.true[rows], known.subject[rows], scans, seed=SEED)
        return None if found is None else reliability_values(found)

    definite = dataclasses.replace(known, scores=np.where(kept, fitted.held_out, 0.0))
    counts = counts_at(definite, DEFINITE_PROBABILITY)
    return {
        "what": "probability that a candidate is a true microbleed",
        "method": fitted.method,
        "rule": CENTER3.title,
        "data": [dataclasses.asdict(tree) for tree in labelled.trees],
        "scans": scans,
        "lesions": int(known.lesions.sum()),
        "candidates": len(known.true),
        "true_candidates": int(known.true.sum()),
        "scores_from": labelled.complete_from,
        "held_out": f"{fitted.folds}-fold cross-validation over scans, seed {SEED}",
        "held_out_log_loss": fitted.log_loss,
        "held_out_kept": measured(fitted.held_out, kept),
        "held_out_all": measured(fitted.held_out, np.ones(len(kept), bool)),
        "uncalibrated_kept": measured(known.scores, kept),
        "intervals": "95 %, percentile bootstrap over scans, 2000 resamples",
        "definite": {
            "probability": DEFINITE_PROBABILITY,
            "threshold": config.inference.definite_threshold,
            "held_out_detections": int(counts.tp.sum() + counts.fp.sum()),
            "held_out_precision": _values(bootstrap_counts(counts, seed=SEED)["precision"]),
        },
    }


def _points_record(labelled: LabelledCandidates, known: FrocEvents, chosen: OperatingPoint) -> dict[str, Any]:
    table = operating_table(known, complete_from=labelled.complete_from, seed=SEED)
    return {
        "rule": CENTER3.title,
        "data": [dataclasses.asdict(tree) for tree in labelled.trees],
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
