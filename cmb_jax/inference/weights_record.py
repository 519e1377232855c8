"""The record beside weights, read and told to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmb_jax.config import InferenceConfig
from cmb_jax.evaluation.present import table_text
from cmb_jax.evaluation.statistics import Estimate, estimate_text
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.io.outside import read_json_object, reading
from cmb_jax.report.evaluation_content import Table

_REMEDY = "remove or restore this record"
UNCALIBRATED = "none: scores are the network's own and no probabilities"


def read_weights_record(path: Path) -> dict[str, Any] | None:
    """The record, None if there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_json_object(path, _REMEDY) if path.exists() else None


def estimate_of(values: dict[str, Any], digits: int = 3) -> str:
    """Value and interval of an estimate in a JSON file."""
    value, low, high = (
        float("nan") if values[part] is None else values[part] for part in ("value", "low", "high")
    )
    return estimate_text(Estimate(value, low, high), digits)


def operating_tables(record: dict[str, Any]) -> tuple[Table, ...]:
    """The thresholds to choose from, a table for each kind of scans with thresholds of its own."""
    title = "Operating points"
    tables = {title: record}
    if "magnitude_alone" in record:
        tables = {
            f"{title}, scans with a phase": record,
            f"{title}, scans without a phase": record["magnitude_alone"],
        }
    return tuple(
        _operating_table(part["operating_points"], name)
        for name, part in tables.items()
        if "operating_points" in part
    )


def _operating_table(points: dict[str, Any], title: str) -> Table:
    rows = [("chosen: " + _limit(points["chosen"]), *_figures(points["chosen"]))]
    rows += [(_limit(point), *_figures(point)) for point in points["table"]]
    return Table(
        title=title,
        columns=("FP per scan, at most", "threshold", "sensitivity", "FP per scan", "precision"),
        rows=tuple(rows),
        note=f"{points['rule']}; on {data_text(points['data'])}: {points['measured_on']}. In brackets: "
        f"{points['intervals']}.",
    )


def _limit(point: dict[str, Any]) -> str:
    return f"{point['max_fp_per_scan']:g}"


def _figures(point: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{point['threshold']:.4f}",
        *(estimate_of(point[name]) for name in ("sensitivity", "fp_per_scan", "precision")),
    )


def data_text(trees: list[dict[str, Any]]) -> str:
    """The scans that something was measured on, in words."""
    return "; ".join(
        f"{each['name']} ({each['scans']} scans, {each['lesions']} microbleeds)" for each in trees
    )


def calibration_lines(bundle: WeightsBundle, record: dict[str, Any]) -> list[str]:
    """How scores were made probabilities and how good they are, a statement each."""
    if bundle.calibration is None:
        return [UNCALIBRATED]
    found = record.get("calibration")
    if found is None:
        return ["scores have probabilities; how they were fitted is not recorded"]
    magnitude = record.get("magnitude_alone")
    if magnitude is None:
        return _calibration_lines(found)
    return [
        *(f"with a phase: {line}" for line in _calibration_lines(found)),
        *(f"without a phase: {line}" for line in _calibration_lines(magnitude["calibration"])),
    ]


def _calibration_lines(found: dict[str, Any]) -> list[str]:
    kept, raw, definite = found["held_out_kept"], found["uncalibrated_kept"], found["definite"]
    return [
        f"{found['method']}, fitted on {found['candidates']} candidates, {found['true_candidates']} of them "
        f"true, of {data_text(found['data'])}",
        f"expected calibration error {estimate_of(kept['ece_equal_mass'])} in {kept['bins']} bins of equal "
        f"numbers, {estimate_of(kept['ece_equal_width'])} of equal width, of {kept['detections']} kept "
        f"detections in {found['held_out']}{_by_chance(kept)}",
        f"the score taken as a probability would have an error of {estimate_of(raw['ece_equal_mass'])}",
        f"definite, probability {definite['probability']:g} or more: {definite['held_out_detections']} "
        f"detections, {estimate_of(definite['held_out_precision'])} of them true",
    ]


def _by_chance(kept: dict[str, Any]) -> str:
    """What perfect probabilities would have; records of earlier versions do not say it."""
    if "by_chance_equal_mass" not in kept:
        return ""
    return f"; perfect probabilities would have {kept['by_chance_equal_mass']:.3f} by chance"


def describe(bundle: WeightsBundle) -> str:
    """What weights are, for people.

    Raises:
        UserError: the record beside them is damaged.
    """
    with reading(bundle.record_path, _REMEDY):
        return _described(bundle, read_weights_record(bundle.record_path) or {})


def _described(bundle: WeightsBundle, record: dict[str, Any]) -> str:
    inference = bundle.config.inference
    calibration = calibration_lines(bundle, record)
    magnitude = record.get("magnitude_alone")
    lines = [
        f"weights:     {bundle.path.name}",
        f"sha256:      {bundle.sha256}",
        f"use:         {record.get('use', 'research use only')}",
        f"input:       version {bundle.input_version}",
        f"trained on:  {record.get('training_data', 'not recorded')}",
        f"kept:        score >= {threshold_text(inference, 'score_threshold')}",
        f"             {record.get('operating_point', 'how it was chosen is not recorded')}",
        *([f"             {magnitude['operating_point']}"] if magnitude else []),
        f"definite:    score >= {threshold_text(inference, 'definite_threshold')}",
        f"calibration: {calibration[0]}",
        *(f"             {line}" for line in calibration[1:]),
    ]
    if record.get("sha256", bundle.sha256) != bundle.sha256:
        lines.append("warning: the record beside these weights is of others (another sha256)")
    for table in operating_tables(record):
        lines += ["", table_text(table)]
    return "\n".join(lines)


def threshold_text(inference: InferenceConfig, name: str) -> str:
    """A threshold in words, with that of scans without a phase if it is another."""
    values = [getattr(inference.for_scan(phase=phase), name) for phase in (True, False)]
    if values[0] == values[1]:
        return f"{values[0]:.4f}"
    return f"{values[0]:.4f}, without a phase {values[1]:.4f}"


def key_statement(card: str) -> str:
    """The paragraph below the title of a model card, without its marks."""
    paragraphs = [part for part in card.split("\n\n") if part and not part.startswith("#")]
    return paragraphs[0].replace("**", "").replace("`", "") if paragraphs else ""
