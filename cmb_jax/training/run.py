"""A training run: simulated or own scans in, weights with their record out; resumed where it stopped."""

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cmb_jax
from cmb_jax.config import Config
from cmb_jax.config_load import config_to_json, read_config
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.devices import use_compilation_cache
from cmb_jax.errors import UserError
from cmb_jax.evaluation import froc
from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
from cmb_jax.inference.bundle import WeightsBundle, load_bundle, save_bundle
from cmb_jax.inference.proposals import ProposalFinder, detect, truth_of
from cmb_jax.io.atomic import atomic_write_text, locked, make_folder, sha256_file
from cmb_jax.io.weights import INPUT_VERSION
from cmb_jax.ops.cpu import library
from cmb_jax.ops.cpu.library import usable_precision
from cmb_jax.training import distributed
from cmb_jax.training.checkpoint import QUALITY
from cmb_jax.training.detector import train_detector
from cmb_jax.training.run_data import TrainingData, training_data
from cmb_jax.training.state import TrainState

FP_RATES = (0.5, 1.0, 2.0, 4.0)
OPERATING_FP_RATE = 2.0
# A handful of lesions may all score high: an operating point chosen by them would miss others.
FEWEST_LESIONS = 20


def validation_curve(config: Config, params: Any, subjects: Sequence[StoredSubject]) -> froc.FrocCurve:
    """FROC (3 mm rule) on prepared subjects, in mm of each one's own working grid, without localization."""
    finder = ProposalFinder(config, params)
    events_per_scan, lesions = [], []
    for stored in subjects:
        found, truth = detect(finder, stored), truth_of(stored, config.data.spacing_mm)
        events_per_scan.append(events(pairs_of(CENTER3, found, truth), found.scores))
        lesions.append(len(truth.centers_mm))
    return froc.froc_curve(froc.collect_events(events_per_scan, lesions))


def quality_of(curve: froc.FrocCurve) -> dict[str, float]:
    """Sensitivity at some false positives per scan (3 mm rule) and their mean."""
    at = froc.sensitivity_at(curve.fp_per_scan, curve.sensitivity, FP_RATES)
    values = {f"sensitivity@{rate:g}": float(value) for rate, value in zip(FP_RATES, at, strict=True)}
    return values | {QUALITY: float(np.mean(list(values.values())))}


def with_threshold(config: Config, threshold: float) -> Config:
    """The configuration with an operating point."""
    inference = dataclasses.replace(
        config.inference,
        score_threshold=threshold,
        # until `cmb-jax calibrate` has fitted probabilities: halfway between operating point and certainty
        definite_threshold=(1.0 + threshold) / 2,
    )
    return dataclasses.replace(config, inference=inference)


def choose_operating_point(
    config: Config, curve: froc.FrocCurve | None, lesions: int, start: WeightsBundle | None
) -> tuple[Config, str]:
    """The configuration with its operating point, and where that comes from.

    The highest sensitivity at no more than `OPERATING_FP_RATE` false positives per validation scan: nobody
    looks at a missed microbleed again, but a reader sees a false one in the report. With fewer than
    `FEWEST_LESIONS` lesions the false positives alone decide. Without validation subjects the operating point
    of the starting weights is kept, if there are any.
    """
    rate = f"{OPERATING_FP_RATE:g} false positives per validation scan"
    if curve is not None and lesions >= FEWEST_LESIONS:
        threshold = froc.choose_threshold(curve, OPERATING_FP_RATE)
        return with_threshold(config, threshold), f"the highest sensitivity at no more than {rate}"
    if curve is not None:
        how = f"{rate}; {lesions} lesions there are too few to look at what is found as well"
        return with_threshold(config, froc.threshold_at_fp_rate(curve, OPERATING_FP_RATE)), how
    if start is None:
        return config, "that of the configuration: there are no validation subjects to choose one by"
    theirs = start.config.inference
    inference = dataclasses.replace(
        config.inference,
        score_threshold=theirs.score_threshold,
        definite_threshold=theirs.definite_threshold,
    )
    how = "that of the starting weights: there are no validation subjects to choose another by"
    return dataclasses.replace(config, inference=inference), how


def incompatible_changes(before: Config, config: Config) -> list[str]:
    """Why a run begun with one configuration cannot continue with another, in words."""
    changed = {
        "another network": before.model.network() != config.model.network(),
        "another working grid": before.data.spacing_mm != config.data.spacing_mm,
        "other weights": before.train.init_from != config.train.init_from,
        "other data": (before.data.index is None) != (config.data.index is None),
        "another loss.memory_bank": before.loss.memory_bank != config.loss.memory_bank,
    }
    return [what for what, differs in changed.items() if differs]


def _store_config(config: Config, workdir: Path) -> None:
    """Write the configuration to the run's folder; refuse one that the run there cannot continue with."""
    path = workdir / "config.json"
    if path.exists():
        for what in incompatible_changes(
            read_config(path, "bring it back, or choose a new --workdir"), config
        ):
            raise UserError(
                f"{workdir}: this run was begun with {what}; choose a new --workdir or the old settings"
            )
    atomic_write_text(path, config_to_json(config), overwrite=True)


def with_start(config: Config) -> tuple[Config, WeightsBundle | None]:
    """The configuration, with the network of its starting weights if it asks for that, and these weights.

    Raises:
      UserError: no such weights, or they are of another network or working grid.
    """
    name = config.train.init_from
    if name is None:
        return config, None
    bundle = load_bundle(name)
    theirs = bundle.config
    if config.train.network_of_start:
        config = dataclasses.replace(config, model=theirs.model, loss=theirs.loss)
    wanted = dataclasses.asdict(config.model.network())
    present = dataclasses.asdict(theirs.model.network())
    pairs = {f"model.{field}": (wanted[field], present[field]) for field in wanted}
    pairs["data.spacing_mm"] = (config.data.spacing_mm, theirs.data.spacing_mm)
    for field, (ours, its) in pairs.items():
        if ours != its:
            raise UserError(
                f"{name}: cannot start from these weights: their {field} is {its}, but the configuration has "
                f"{ours}; with --train.network-of-start true it takes theirs"
            )
    return config, bundle


def train_run(config: Config, workdir: Path) -> None:
    """Prepare the data, train, choose the operating point, write `weights.safetensors`.

    Raises:
      UserError: settings, data or weights that cannot be used.
    """
    config, start = with_start(config)
    use_compilation_cache()
    precision = usable_precision(config.train.precision, "train.precision")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))

    def prepare() -> TrainingData:
        _store_config(config, workdir)
        return training_data(config, workdir)

    with _locked(workdir):
        _run(config, workdir, start, prepare)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Lock the run's folder; of several processes the first one does it for all."""
    if not distributed.is_primary():
        yield
        return
    make_folder(workdir)
    with locked(workdir, "wait until it is done, or choose another --workdir"):
        yield


def _run(
    config: Config, workdir: Path, start: WeightsBundle | None, prepare: Callable[[], TrainingData]
) -> None:
    data = distributed.primary_first(prepare, "training data")

    def evaluate(params: Any) -> Mapping[str, float]:
        return quality_of(validation_curve(config, params, data.validation))

    tick = time.perf_counter()
    state = train_detector(
        config,
        workdir,
        data.training,
        evaluate if data.validation else None,
        phantoms=data.phantoms,
        start_from=None if start is None else start.params,
    )
    hours = (time.perf_counter() - tick) / 3600
    if distributed.is_primary():
        _write_weights(config, workdir, state, data, start, hours)
    distributed.wait_for_all("weights")


def _write_weights(
    config: Config,
    workdir: Path,
    state: TrainState,
    data: TrainingData,
    start: WeightsBundle | None,
    hours: float,
) -> None:
    """The averaged weights with their operating point, and how they were trained in the file beside them."""
    params = jax.device_get(state.ema)
    curve = validation_curve(config, params, data.validation) if data.validation else None
    lesions = sum(len(subject.boxes()) for subject in data.validation)
    final, operating_point = choose_operating_point(config, curve, lesions, start)
    weights = workdir / "weights.safetensors"
    save_bundle(weights, params, final)
    quality = {} if curve is None else quality_of(curve)
    threshold, steps, device = final.inference.score_threshold, int(state.step), jax.devices()[0]
    record = {
        "use": data.use,
        "name": final.name,
        "date": datetime.date.today().isoformat(),
        "version": cmb_jax.__version__,
        "input_version": INPUT_VERSION,
        "jax": jax.__version__,
        "steps": steps,
        "patches": steps * final.data.batch_size,
        "hours": round(hours, 2),  # since the last start
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "precision": final.train.precision,
        "cpu_kernel": library.instruction_set() if device.platform == "cpu" else None,
        "started_from": None if start is None else {"name": start.path.stem, "sha256": start.sha256},
        "training_data": data.trained_on,
        "validation_data": f"{data.validated_on}, without localization" if data.validation else "none",
        "operating_point": operating_point,
        "validation": {name: round(value, 4) for name, value in quality.items()},
        "score_threshold": threshold,
        "sha256": sha256_file(weights),
    }
    atomic_write_text(workdir / "weights.json", json.dumps(record, indent=2) + "\n", overwrite=True)
    if quality:
        print("validation: " + ", ".join(f"{name} {value:.3f}" for name, value in quality.items()))
    print(f"weights: {weights}\noperating point: {threshold:.3f}, {operating_point}")
    print(f"curves: tensorboard --logdir {workdir / 'tensorboard'}, or {workdir / 'metrics.csv'}")
