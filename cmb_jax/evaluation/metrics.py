"""Evaluation results as machine-readable JSON."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from cmb_jax import __version__
from cmb_jax.evaluation.calibration import Reliability
from cmb_jax.evaluation.evaluate import EvaluationResult, RuleResult
from cmb_jax.evaluation.froc import FROC_RATES, FrocCurve
from cmb_jax.evaluation.present import NOTICE, operating_point_text
from cmb_jax.evaluation.statistics import Estimate
from cmb_jax.io.atomic import atomic_write_text


def metrics(result: EvaluationResult) -> dict[str, Any]:
    """The evaluation as it goes into a JSON file; an estimate is {value, low, high}."""
    return {
        "notice": NOTICE,
        "version": __version__,
        "headline_rule": result.headline,
        "breakdown_rule": result.breakdown_rule,
        "threshold": result.threshold,
        "operating_point": operating_point_text(result),
        "false_positive_denominator": "all scans, those without microbleeds counted",
        "scans": result.scans,
        "scans_without_lesions": result.scans_without_lesions,
        "scans_without_prediction": [row.subject for row in result.subjects if row.missing],
        "lesions": result.lesions,
        "lesions_by_size": result.lesions_by_size,
        "lesions_ignored": result.lesions_ignored,
        "intervals": {
            "method": "percentile bootstrap over scans",
            "confidence": 0.95,
            "samples": result.bootstrap_samples,
            "seed": result.seed,
        },
        "rules": {each.rule.name: _rule(each) for each in result.rules},
        "valdo_2021": dataclasses.asdict(result.valdo),
        "breakdowns": {
            breakdown.by: [dataclasses.asdict(group) for group in breakdown.groups]
            for breakdown in result.breakdowns
        },
        "subsets": [{**dataclasses.asdict(each), "froc": _froc(each.froc)} for each in result.subsets],
        "false_positives_by_mimic": [dataclasses.asdict(group) for group in result.false_positives_by_mimic],
        "false_positives_by_zone": [dataclasses.asdict(group) for group in result.false_positives_by_zone],
        "count_agreement": dataclasses.asdict(result.counts),
        "place_agreement": None if result.places is None else dataclasses.asdict(result.places),
        "calibration": None if result.calibration is None else reliability_values(result.calibration),
        "rejection_by_rule": [dataclasses.asdict(each) for each in result.rejection],
        "subjects": [dataclasses.asdict(row) for row in result.subjects],
        "warnings": list(result.warnings),
    }


def reliability_values(found: Reliability) -> dict[str, Any]:
    """Expected calibration error and bins as JSON values."""
    content = dataclasses.asdict(found)
    for kind in ("equal_mass", "equal_width"):
        for values, each in zip(content[kind], getattr(found, kind), strict=True):
            values["share"] = each.share
    return content


def write_metrics(result: EvaluationResult, path: Path | str, *, overwrite: bool = False) -> None:
    """Write metrics.json, whole or not at all.

    Raises:
        UserError: the file exists and `overwrite` is not set, or it cannot be written.
    """
    atomic_write_text(Path(path), json_text(metrics(result)), overwrite=overwrite)


def _rule(each: RuleResult) -> dict[str, Any]:
    rule = each.rule
    figures = dataclasses.asdict(each)
    del figures["rule"]
    return {
        "title": rule.title,
        "limit": rule.limit,
        "one_to_one": rule.one_to_one,
        "connectivity": rule.connectivity,
        **figures,
        "froc": _froc(each.froc),
        "curve": None if each.curve is None else _curve(each.curve),
    }


def _froc(points: tuple[Estimate, ...]) -> list[dict[str, Any]]:
    return [
        {"fp_per_scan": rate, "sensitivity": dataclasses.asdict(point)}
        for rate, point in zip(FROC_RATES, points, strict=False)
    ]


def _curve(curve: FrocCurve) -> dict[str, list[float]]:
    corners = curve.corners()
    return {
        "threshold": curve.thresholds[corners].tolist(),
        "fp_per_scan": curve.fp_per_scan[corners].tolist(),
        "sensitivity": curve.sensitivity[corners].tolist(),
    }


def json_text(content: Any) -> str:
    """Text of a JSON file; see `json_values`."""
    return json.dumps(json_values(content), indent=2, allow_nan=False) + "\n"


def json_values(value: Any) -> Any:
    """The same dicts and lists with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
