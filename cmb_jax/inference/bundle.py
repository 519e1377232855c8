"""Weights with what is needed to use them: configuration, operating point, training record."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from flax import nnx

from cmb_jax.config import Config, Flips, InferenceConfig, ModelConfig, Precision
from cmb_jax.config_io import config_from_json, config_to_json, without_paths
from cmb_jax.detector.functional import Template
from cmb_jax.detector.network import Detector
from cmb_jax.errors import UserError
from cmb_jax.evaluation.calibration import CalibrationMap
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.outside import reading
from cmb_jax.io.weights import (
    INPUT_VERSION,
    input_version_of,
    load_weights,
    relabeled_weights,
    save_weights,
    with_input_version,
)

BUNDLED = Path(__file__).resolve().parent.parent / "weights"
CONFIG_KEY = "config"


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
        return ",".join(one.path.name for one in (self, *self.others))

    @property
    def bundled(self) -> bool:
        """Whether all of them come with the package, which are trained on simulated scans only."""
        return all(one.path.parent == BUNDLED for one in (self, *self.others))

    @property
    def name(self) -> str:
        """`file_name` without suffixes."""
        return ",".join(one.path.stem for one in (self, *self.others))

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
      ValueError: its knots are none of such a map.
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


def save_bundle(path: Path, params: Any, config: Config, dtype: str = "float32") -> None:
    """Write weights with configuration (without names of files) and input version in the file's metadata.

    Raises:
      UserError: the file cannot be written.
    """
    save_weights(
        path,
        params,
        with_input_version({CONFIG_KEY: config_to_json(without_paths(config))}, INPUT_VERSION),
        dtype="float16" if dtype == "float16" else "float32",
    )


def with_config(bundle: WeightsBundle, config: Config) -> bytes:
    """A file of the bundle's arrays, byte for byte as they are stored, with another configuration."""
    metadata = {CONFIG_KEY: config_to_json(without_paths(config))}
    return relabeled_weights(bundle.path, with_input_version(metadata, bundle.input_version))


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
        sums = ",".join(one.sha256 for one in (first, *others))
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
    _, metadata = load_weights(path)
    if CONFIG_KEY not in metadata:
        raise UserError(f"{path}: these are not weights of a detector (no configuration inside); give others")
    version = input_version_of(path, metadata)
    with reading(path, "its configuration is of another version: train anew or use the one that wrote it"):
        config = config_from_json(metadata[CONFIG_KEY])
        for phase in (True, False):
            calibration_of(config.inference.for_scan(phase=phase))  # refuses knots that are no map
    params, _ = load_weights(path, shapes_of(config.model))
    return WeightsBundle(
        path=path, sha256=sha256_file(path), config=config, params=params, input_version=version
    )
