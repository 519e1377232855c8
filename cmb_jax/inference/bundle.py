"""Weights with what is needed to use them, and the record beside them in words: training, calibration."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from cmb_jax.config import Config, Flips, InferenceConfig, ModelConfig, Precision
from cmb_jax.config_load import config_from_json, config_to_json, without_paths
from cmb_jax.detector.network import Detector, Template
from cmb_jax.errors import UserError
from cmb_jax.evaluation.calibration import CalibrationMap
from cmb_jax.evaluation.present import table_text
from cmb_jax.evaluation.statistics import Estimate, estimate_text
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.outside import read_json_object, reading
from cmb_jax.io.weights import (
    INPUT_VERSION,
    input_version_of,
    load_weights,
    relabeled_weights,
    save_weights,
    with_input_version,
)
from cmb_jax.report.evaluation import Table

BUNDLED = Path(__file__).resolve().parent.parent / "weights"
CONFIG_KEY = "config"
UNCALIBRATED = "none: scores are the network's own and no probabilities"
_REMEDY = "remove or restore this record"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsBundle:
    """A detector's weights as read from a file, or from several whose networks are averaged."""

    path: Path  # of the first
    sha256: str  # of the file; of several, of their sums joined by commas
    config: Config  # of the first: operating point, calibration
    params: Any  # pure dict of arrays
    input_version: int = INPUT_VERSION  # that the network was trained on
    others: tuple[WeightsBundle, ...] = ()  # networks of the same configuration, averaged with this one

    @property
    def file_name(self) -> str:
        """Name of the file, or of all of them with commas between."""
        return ",".join(each.path.name for each in (self, *self.others))

    @property
    def bundled(self) -> bool:
        """Whether all of them come with the package, which are trained on simulated scans only."""
        return all(each.path.parent == BUNDLED for each in (self, *self.others))

    @property
    def name(self) -> str:
        """`file_name` without suffixes."""
        return ",".join(each.path.stem for each in (self, *self.others))

    @property
    def calibration(self) -> CalibrationMap | None:
        """The map from score to probability, None if there is none; see `calibration_of` for one scan's."""
        return calibration_of(self.config.inference)

    @property
    def record_path(self) -> Path:
        """The file that says how the weights came about, which need not be there."""
        return record_path(self.path)


def calibration_of(knots: InferenceConfig) -> CalibrationMap | None:
    """The map from score to probability that settings hold, None if they hold none.

    Raises:
      ValueError: its knots do not make a map.
    """
    if not knots.calibration_scores and not knots.calibration_probabilities:
        return None
    return CalibrationMap(scores=knots.calibration_scores, probabilities=knots.calibration_probabilities)


def record_path(weights: Path) -> Path:
    """Where the record of weights lies: beside them."""
    return weights.with_suffix(".json")


def bundled_names() -> tuple[str, ...]:
    """Names of the detectors that come with the package."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.safetensors") if path.stem != "region"))


def _metadata(config: Config, input_version: int) -> dict[str, str]:
    return with_input_version({CONFIG_KEY: config_to_json(without_paths(config))}, input_version)


def save_bundle(
    path: Path, params: Any, config: Config, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write weights with configuration (without names of files) and input version in the file's metadata.

    Raises:
      UserError: the file cannot be written.
    """
    save_weights(path, params, _metadata(config, INPUT_VERSION), dtype=dtype)


def with_config(bundle: WeightsBundle, config: Config) -> bytes:
    """A file of the bundle's arrays, byte for byte as they are stored, with another configuration."""
    return relabeled_weights(bundle.path, _metadata(config, bundle.input_version))


def load_bundle(
    weights: str | Path, flips: Flips | None = None, precision: Precision | None = None
) -> WeightsBundle:
    """Read weights by bundled name or by path, or several with commas between, to be averaged.

    Args:
      weights: the first of several gives operating point, calibration and settings.
      flips: takes the place of the weights' own `inference.flips`, and
      precision: of their `inference.precision`.

    Raises:
      UserError: no such name or file, a damaged file, weights that are not a detector's or are for another
        version of the network's input, several that are not of one network and working grid.
    """
    # a file whose name holds a comma is one file
    parts = [str(weights)] if Path(weights).exists() else [part.strip() for part in str(weights).split(",")]
    first, *others = map(_load_one, parts)
    for other in others:
        if _averaged_by(other.config) != _averaged_by(first.config):
            raise UserError(
                f"{other.path}: cannot be averaged with {first.path.name}: another network or working grid; "
                "give weights that were trained with one configuration"
            )
    config, sha256 = first.config, first.sha256
    if others:
        sums = ",".join(each.sha256 for each in (first, *others))
        sha256 = hashlib.sha256(sums.encode()).hexdigest()
    inference = dataclasses.replace(
        config.inference,
        flips=config.inference.flips if flips is None else flips,
        precision=config.inference.precision if precision is None else precision,
    )
    config = dataclasses.replace(config, inference=inference)
    return dataclasses.replace(first, sha256=sha256, config=config, others=tuple(others))


def _averaged_by(config: Config) -> tuple[object, ...]:
    """What networks that are averaged must share."""
    return config.model.network(), config.data.spacing_mm


@functools.lru_cache(maxsize=8)
def shapes_of(model: ModelConfig) -> Any:
    """Shapes of a detector's parameters, as a pure dict."""
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0))).shapes()


def _load_one(weights: str) -> WeightsBundle:
    path = Path(weights)
    if not path.exists() and path.name == weights and path.suffix == "":
        path = BUNDLED / f"{weights}.safetensors"
        if not path.exists():
            known = ", ".join(bundled_names()) or "none"
            raise UserError(f"{weights}: no such weights; give a file or one of the bundled names: {known}")
    # read twice: the first time for the configuration, which says what shapes the second must find
    _, metadata = load_weights(path)
    if CONFIG_KEY not in metadata:
        raise UserError(f"{path}: these are not weights of a detector (no configuration inside); give others")
    version = input_version_of(path, metadata)
    with reading(path, "its configuration is of another version: train anew or use the one that wrote it"):
        config = config_from_json(metadata[CONFIG_KEY])
        for phase in (True, False):
            calibration_of(config.inference.for_scan(phase=phase))  # refuses invalid knots
    params, _ = load_weights(path, shapes_of(config.model))
    return WeightsBundle(
        path=path, sha256=sha256_file(path), config=config, params=params, input_version=version
    )


def read_weights_record(path: Path) -> dict[str, Any] | None:
    """The record, None if there is none. Raises UserError if it is damaged."""
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
    def row(point: dict[str, Any], before: str = "") -> tuple[str, ...]:
        estimates = (estimate_of(point[name]) for name in ("sensitivity", "fp_per_scan", "precision"))
        return (f"{before}{point['max_fp_per_scan']:g}", f"{point['threshold']:.4f}", *estimates)

    source = (
        f"{points['rule']}; on {data_text(points['data'])}: {points['measured_on']}. In brackets: "
        f"{points['intervals']}."
    )
    return Table(
        title=title,
        columns=("FP per scan, at most", "threshold", "sensitivity", "FP per scan", "precision"),
        rows=(row(points["chosen"], "chosen: "), *map(row, points["table"])),
        note=source,
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
    by_chance = ""
    if "by_chance_equal_mass" in kept:  # earlier versions did not record it
        by_chance = f"; perfect probabilities would have {kept['by_chance_equal_mass']:.3f} by chance"
    return [
        f"{found['method']}, fitted on {found['candidates']} candidates, {found['true_candidates']} of them "
        f"true, of {data_text(found['data'])}",
        f"expected calibration error {estimate_of(kept['ece_equal_mass'])} in {kept['bins']} bins of equal "
        f"numbers, {estimate_of(kept['ece_equal_width'])} of equal width, of {kept['detections']} kept "
        f"detections in {found['held_out']}{by_chance}",
        f"the score taken as a probability would have an error of {estimate_of(raw['ece_equal_mass'])}",
        f"definite, probability {definite['probability']:g} or more: {definite['held_out_detections']} "
        f"detections, {estimate_of(definite['held_out_precision'])} of them true",
    ]


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
