"""Train a detector from nothing on phantoms that it makes itself, or resume."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import cmb_jax
from cmb_jax.boxes.geometry import box_centers
from cmb_jax.commands.common import run_for_people, use_compilation_cache
from cmb_jax.config import Config, PhantomConfig
from cmb_jax.config_io import config_from_json, config_to_json
from cmb_jax.config_load import config_from_file, override
from cmb_jax.data.subjects import STORE_VERSION, StoredSubject, stored_subjects
from cmb_jax.errors import UserError
from cmb_jax.evaluation.froc import FrocCurve, choose_threshold, collect_events, froc_curve, sensitivity_at
from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.inference.bundle import save_bundle
from cmb_jax.inference.proposals import ProposalFinder
from cmb_jax.io.atomic import atomic_write_text, sha256_file
from cmb_jax.phantom import SubjectSettings, simulate_subject
from cmb_jax.phantom.tree import PackLoader
from cmb_jax.training.checkpoint import QUALITY
from cmb_jax.training.loop import train
from cmb_jax.training.memory import keep_freed_memory

FP_RATES = (0.5, 1.0, 2.0, 4.0)
OPERATING_FP_RATE = 2.0


def phantom_member(
    phantom: PhantomConfig, index: int, mean_cmbs: float | None = None
) -> tuple[SubjectSettings, str]:
    """Settings and anatomy of subject `index`: protocols in turn, then tiers, then anatomies."""
    turn, protocol = divmod(index, len(phantom.protocols))
    tier = phantom.tiers[turn % len(phantom.tiers)]
    settings = SubjectSettings(protocol=phantom.protocols[protocol], tier=tier, mean_cmbs=mean_cmbs)
    return settings, phantom.anatomies[index % len(phantom.anatomies)]


def phantom_subjects(config: Config, workdir: Path, which: str) -> tuple[StoredSubject, ...]:
    """The training or validation subjects of a configuration, simulated where they are not cached yet."""
    phantom = config.phantom
    training = which == "training"
    count = phantom.train_subjects if training else phantom.validation_subjects
    first = phantom.train_seed if training else phantom.validation_seed
    mean = phantom.mean_cmbs if training else None
    members = [phantom_member(phantom, index, mean) for index in range(count)]
    described = json.dumps(
        [STORE_VERSION, config.data.spacing_mm, [(dataclasses.asdict(one), name) for one, name in members]]
    )
    root = Path(phantom.cache_dir) if phantom.cache_dir else workdir / "phantoms"
    folder = root / f"{which}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    pack_of = PackLoader()

    def simulate(index: int, seed: int):
        settings, anatomy = members[index]
        return simulate_subject(pack_of(anatomy), seed, settings)

    return stored_subjects(folder, range(first, first + count), simulate, config.data.spacing_mm, which)


def validation_curve(config: Config, params: Any, subjects: Sequence[StoredSubject]) -> FrocCurve:
    """FROC (3 mm rule) on prepared subjects, in mm of each one's own working grid, without localization."""
    finder = ProposalFinder(config, params)
    spacing = np.array(config.data.spacing_mm)
    happened, lesions = [], []
    for stored in subjects:
        name = stored.folder.name
        detections = finder.find(stored.image())
        keep = np.asarray(detections.valid)
        centers = np.asarray(box_centers(detections.boxes))[keep] * spacing
        found = SubjectDetections(
            subject=name,
            centers_mm=centers,
            scores=np.asarray(detections.scores)[keep],
            diameters_mm=np.ones(len(centers)),
        )
        boxes = stored.boxes()
        truth = SubjectTruth(
            subject=name,
            centers_mm=(boxes[:, :3] + boxes[:, 3:]) / 2 * spacing,
            diameters_mm=(boxes[:, 3] - boxes[:, 0]) * spacing[0],
        )
        happened.append(events(pairs_of(CENTER3, found, truth), found.scores))
        lesions.append(len(boxes))
    return froc_curve(collect_events(happened, lesions))


def validate(config: Config, params: Any, subjects: Sequence[StoredSubject]) -> dict[str, float]:
    """Sensitivity at some false positives a scan (3 mm rule) and their mean, on validation subjects."""
    curve = validation_curve(config, params, subjects)
    at = sensitivity_at(curve.fp_per_scan, curve.sensitivity, FP_RATES)
    values = {f"sensitivity@{rate:g}": float(value) for rate, value in zip(FP_RATES, at, strict=True)}
    return values | {QUALITY: float(np.mean(list(values.values())))}


def with_operating_point(config: Config, params: Any, subjects: Sequence[StoredSubject]) -> Config:
    """The configuration with the operating point chosen on validation subjects.

    The highest sensitivity at no more than `OPERATING_FP_RATE` false positives a scan: a missed microbleed is
    not seen again, a false one is looked at in the report.
    """
    curve = validation_curve(config, params, subjects)
    threshold = float(choose_threshold(curve, max_fp_per_scan=OPERATING_FP_RATE))
    inference = dataclasses.replace(
        config.inference,
        score_threshold=threshold,
        # until scores are calibrated: definite is halfway between the operating point and certainty
        definite_threshold=(1.0 + threshold) / 2,
    )
    return dataclasses.replace(config, inference=inference)


def _remember(config: Config, workdir: Path) -> None:
    """Keep the configuration in the run's folder; refuse to go on with another network."""
    path = workdir / "config.json"
    if path.exists():
        before = config_from_json(path.read_text())
        if before.model != config.model or before.data.spacing_mm != config.data.spacing_mm:
            raise UserError(
                f"{workdir}: this run was begun with another network; "
                "choose a new --workdir or the old settings"
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(config_to_json(config))
    temporary.replace(path)


def training_record(
    config: Config, steps: int, hours: float, quality: Mapping[str, float], weights: Path
) -> dict[str, Any]:
    """How the weights came about, for the file beside them; `hours` is of the last start of the run."""
    phantom = config.phantom
    last = phantom.train_seed + phantom.train_subjects - 1
    return {
        "use": "research use only; trained on simulated subjects, never on patients",
        "name": config.name,
        "date": datetime.date.today().isoformat(),
        "version": cmb_jax.__version__,
        "jax": jax.__version__,
        "steps": steps,
        "patches": steps * config.data.batch_size,
        "hours": round(hours, 2),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "training_data": f"{phantom.train_subjects} simulated subjects, seeds {phantom.train_seed} to {last}",
        "validation_data": (
            f"{phantom.validation_subjects} simulated subjects, seeds from {phantom.validation_seed}, "
            "without localization; the operating point is the highest sensitivity at no more than "
            f"{OPERATING_FP_RATE:g} false positives a scan on them"
        ),
        "protocols": list(phantom.protocols),
        "validation": {name: round(value, 4) for name, value in quality.items()},
        "score_threshold": config.inference.score_threshold,
        "sha256": sha256_file(weights),
    }


def run(config: Config, workdir: Path) -> None:
    """Simulate, train, choose the operating point, write `weights.safetensors`."""
    workdir.mkdir(parents=True, exist_ok=True)
    _remember(config, workdir)
    use_compilation_cache()
    training = phantom_subjects(config, workdir, "training")
    validation = phantom_subjects(config, workdir, "validation")

    def evaluate(params: Any) -> Mapping[str, float]:
        return validate(config, params, validation)

    tick = time.perf_counter()
    state = train(config, workdir, training, evaluate if validation else None)
    hours = (time.perf_counter() - tick) / 3600
    final = with_operating_point(config, state.ema, validation) if validation else config
    save_bundle(workdir / "weights.safetensors", state.ema, final)
    quality = evaluate(state.ema) if validation else {}
    record = training_record(final, int(state.step), hours, quality, workdir / "weights.safetensors")
    atomic_write_text(workdir / "weights.json", json.dumps(record, indent=2) + "\n", overwrite=True)
    print(
        f"weights: {workdir / 'weights.safetensors'} (operating point {final.inference.score_threshold:.3f})"
    )


def parse(arguments: Sequence[str], prog: str, text: str) -> tuple[Config, Path]:
    """--config and --workdir, then dotted overrides of the configuration."""
    parser = argparse.ArgumentParser(prog=prog, description=text, add_help=False)
    parser.add_argument("--config", type=Path, required=not {"-h", "--help"} & set(arguments))
    parser.add_argument("--workdir", type=Path, required=not {"-h", "--help"} & set(arguments))
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        parser.print_help()
        print("\nSettings that can be overridden (defaults of the configuration tree):\n")
    config = Config() if known.config is None else config_from_file(known.config)
    return override(config, rest, prog), known.workdir


def main() -> None:
    """Entry point of train.py."""
    keep_freed_memory()
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    text = "Train a detector on phantoms; run again to resume."

    def command() -> None:
        config, workdir = parse(sys.argv[1:], "train.py", text)
        run(config, workdir)

    run_for_people(command)
