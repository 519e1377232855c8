"""Prepared subjects and runs with drawn weights, small enough for tests."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import Config, DataConfig, InferenceConfig, LossConfig, TrainConfig
from cmb_jax.config_load import config_to_json
from cmb_jax.data.subjects import STORE_FILE, STORE_VERSION
from cmb_jax.detector.network import Detector, Template
from cmb_jax.inference.bundle import save_bundle
from cmb_jax.phantom import MimicKind
from cmb_jax.phantom.tree import VERSION
from cmb_jax.research.runs import Grid, four_configurations, runs_of
from tests.tiny import TINY_MODEL

BASE = Config(
    name="tiny",
    model=dataclasses.replace(TINY_MODEL, prototypes_per_class=2),
    loss=LossConfig(max_positives=8, max_hard_negatives=8),
    data=DataConfig(patch_shape=(16, 32, 32), batch_size=2, max_truths=4),
    train=TrainConfig(steps=2, warmup_steps=1, checkpoint_every=1, log_every=1),
    inference=InferenceConfig(candidate_threshold=0.0, max_candidates=256, max_detections=32),
)


@pytest.fixture(scope="session")
def subject_folder(tmp_path_factory):
    """Three subjects with two microbleeds and a vein each; one of them has no microbleed."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("subjects")
    for seed in (9, 10, 100):
        folder = root / f"seed-{seed}"
        folder.mkdir()
        image = rng.normal(0, 0.05, (16, 32, 32, 2)) + np.array([1.0, 0.0])
        boxes = []
        for center in rng.uniform([5, 10, 10], [11, 22, 22], (0 if seed == 10 else 2, 3)):
            half = np.array([1.5, 3, 3])
            low, high = np.rint(center - half), np.rint(center + half)
            image[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))] = [0.1, 0.6]
            boxes.append(np.concatenate([low, high]))
        mimics = np.zeros((16, 16, 16), np.uint8)
        mimics[:, 2, 2] = MimicKind.PIAL_VEIN
        np.save(folder / "image.npy", image.astype(np.float16))
        np.save(folder / "boxes.npy", np.array(boxes, np.float32).reshape(-1, 6))
        np.save(folder / "ignored_boxes.npy", np.zeros((0, 6), np.float32))
        np.save(folder / "mimics.npy", mimics)
        (folder / STORE_FILE).write_text(json.dumps({"store": STORE_VERSION, "phantom": VERSION}))
        np.save(folder / "mimic_points.npy", np.argwhere(mimics).astype(np.int32))
        np.save(folder / "brain_points.npy", rng.integers(4, 12, (50, 3)).astype(np.int32))
    return root


@pytest.fixture(scope="session")
def grid():
    plain, _, prototypes, _ = four_configurations(BASE)
    return Grid(variants=(plain, prototypes), seeds=(0,))


def finish(run, steps=2):
    """What train.py leaves behind, with drawn weights."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(config_to_json(run.config))
    rng = np.random.default_rng(run.seed)
    shapes = Template.of(lambda: Detector(run.config.model, rngs=nnx.Rngs(0))).shapes()
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    save_bundle(run.weights, params, run.config)
    (run.folder / "weights.json").write_text(json.dumps({"steps": steps, "hours": 0.1}))
    log = "step,loss,steps/s,validation/quality\n1,3.0,2.0,\n2,2.0,4.0,\n2,,,0.5\n"
    (run.folder / "metrics.csv").write_text(log)


@pytest.fixture(scope="session")
def finished_study(grid, tmp_path_factory):
    """A folder with all runs of the grid."""
    workdir = tmp_path_factory.mktemp("study")
    for run in runs_of(grid, workdir):
        finish(run)
    return workdir
