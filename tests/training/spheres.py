"""A stored subject made in a moment: dark spheres of 3 mm in noise."""

import dataclasses
from pathlib import Path

import numpy as np

from cmb_jax.config import Config, DataConfig, LossConfig, TrainConfig
from cmb_jax.data.subjects import StoredSubject
from tests.tiny import TINY_MODEL

SHAPE = (32, 64, 64)

CONFIG = Config(
    name="tiny",
    # a head that is wide enough to learn these spheres in some tens of steps
    model=dataclasses.replace(TINY_MODEL, head_width=6, prototypes_per_class=2),
    loss=LossConfig(max_positives=16, max_hard_negatives=16),
    data=DataConfig(patch_shape=(16, 32, 32), batch_size=4, max_truths=4),
    train=TrainConfig(
        steps=6, warmup_steps=2, checkpoint_every=3, evaluate_every=100, log_every=2, learning_rate=5e-3
    ),
)


def store_spheres(folder: Path) -> StoredSubject:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.05, (*SHAPE, 2)) + np.array([1.0, 0.0])
    z, y, x = np.meshgrid(*[np.arange(n) + 0.5 for n in SHAPE], indexing="ij")
    boxes = []
    for center in rng.uniform([5, 10, 10], [27, 54, 54], (6, 3)):
        distance = np.sqrt((z - center[0]) ** 2 + ((y - center[1]) / 2) ** 2 + ((x - center[2]) / 2) ** 2)
        image[distance < 1.5] = [0.1, 0.6]
        half = np.array([1.5, 3, 3])
        boxes.append(np.concatenate([center - half, center + half]))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "boxes.npy", np.array(boxes, np.float32))
    np.save(folder / "ignored_boxes.npy", np.zeros((0, 6), np.float32))
    np.save(folder / "mimics.npy", np.zeros((32, 32, 32), np.uint8))
    np.save(folder / "mimic_points.npy", np.zeros((0, 3), np.int32))
    np.save(folder / "brain_points.npy", rng.integers(4, 28, (50, 3)).astype(np.int32))
    return StoredSubject(folder=folder)
