"""Data that both sides of a case draw from the same seed, in NumPy alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from cmb_jax.config import Config, DataConfig, ModelConfig, Precision, Triple
from cmb_jax.data.patches import PatchBatch
from cmb_jax.detector.network import Detector, Template
from cmb_jax.ops.cpu.library import usable_precision

MODELS = {
    "small": ModelConfig(),
    "wide": ModelConfig(widths=(32, 48, 64, 96), fusion_width=32, head_width=32),
}
TRUTHS_A_PATCH = 4


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def triple(values: Sequence[int]) -> Triple:
    """Three integers, as JSON gives them."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def train_config(options: dict[str, Any]) -> Config:
    """The experiment of a training case, in its precision or the nearest that this device has."""
    data = DataConfig(patch_shape=triple(options["patch"]), batch_size=options["batch"])
    train = dataclasses.replace(Config().train, precision=precision(options))
    return dataclasses.replace(Config(), model=MODELS[options["model"]], data=data, train=train)


def precision(options: dict[str, Any]) -> Precision:
    """Our side's precision in a case, or float32 where this device does not have it."""
    return usable_precision(options["precision"], "the case's precision")


def parameter_shapes(model: ModelConfig) -> Any:
    """Pure dict of the detector's parameters as shapes."""
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0))).shapes()


def parameters(model: ModelConfig) -> Any:
    """A pure dict of NumPy parameters: convolutions keep the variance, norms begin near the identity."""
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        size = (2 / np.prod(leaf.shape[:4])) ** 0.5 if len(leaf.shape) == 5 else 0.1
        if path[0].key == "head" and path[1].key != "block":
            size *= 0.01  # small logits and box codes, as the head begins with
        drawn = size * rng.standard_normal(leaf.shape)
        return (drawn + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))


def patches(config: Config) -> PatchBatch:
    """Noise with a few true boxes and mimics in each patch."""
    rng = np.random.default_rng(2)
    data = config.data
    shape, batch = np.array(data.patch_shape), data.batch_size
    center = rng.uniform(0.1, 0.9, (batch, data.max_truths, 3)) * shape
    half = rng.uniform(1, 4, (batch, data.max_truths, 1)) / np.array(data.spacing_mm) / 2
    return PatchBatch(
        image=rng.standard_normal((batch, *data.patch_shape, 2), np.float32),
        boxes=np.concatenate([center - half, center + half], axis=-1).astype(np.float32),
        boxes_valid=np.tile(np.arange(data.max_truths) < TRUTHS_A_PATCH, (batch, 1)),
        boxes_ignored=np.zeros((batch, data.max_truths), bool),
        mimics=(rng.random((batch, *(shape // (1, 2, 2)))) < 0.002).astype(np.uint8),
    )


def image(shape: Triple) -> np.ndarray:
    """(Z, Y, X, 2) float32 noise."""
    return np.random.default_rng(3).standard_normal((*shape, 2), np.float32)


def head(shape: Triple, bleeds: int = 60) -> np.ndarray:
    """A prepared image (Z, Y, X, 2) float32: a bright ellipsoid with noise, dark balls with raised phase."""
    rng = np.random.default_rng(4)
    result = np.zeros((*shape, 2), np.float32)
    axes = np.ogrid[tuple(slice(-1, 1, complex(size)) for size in shape)]
    inside = sum(axis**2 for axis in axes) < 0.9
    result[..., 0] = np.where(inside, 0.8 + 0.04 * rng.standard_normal(shape, np.float32), 0)
    result[..., 1] = np.where(inside, 0.02 * rng.standard_normal(shape, np.float32), 0)
    for _ in range(bleeds):
        center = (0.5 + 0.25 * rng.uniform(-1, 1, 3)) * shape
        radius = rng.uniform(1, 3) / np.array([1.0, 0.5, 0.5])
        low = np.maximum(np.floor(center - radius).astype(int), 0)
        high = np.minimum(np.ceil(center + radius).astype(int) + 1, shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        near = np.ogrid[box]
        ball = sum(((a - c) / r) ** 2 for a, c, r in zip(near, center, radius, strict=True)) < 1
        result[box][ball] = (0.1, 0.3)
    return result


def clustered_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 6) and scores (N,) as a detector proposes them: ten about each of N / 10 places."""
    rng = np.random.default_rng(5)
    places = rng.uniform(0, 10 * count ** (1 / 3), (max(1, count // 10), 3))
    center = places[np.arange(count) % len(places)] + rng.normal(0, 0.7, (count, 3))
    half = rng.uniform(2, 4, (count, 3))
    boxes = np.concatenate([center - half, center + half], axis=1).astype(np.float32)
    return boxes, rng.permutation(count).astype(np.float32) / count


def regions(shape: Triple) -> np.ndarray:
    """Codes (X, Y, Z) uint8 of `cmb_jax.anatomy.regions` in cubes of 8 voxels."""
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 48, [-(-size // 8) for size in shape]).astype(np.uint8)
    x, y, z = shape
    return np.kron(coarse, np.ones((8, 8, 8), np.uint8))[:x, :y, :z]


def places(count: int, extent_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in mm and diameters (N,) in mm."""
    rng = np.random.default_rng(9)
    return (
        (rng.random((count, 3)) * extent_mm).astype(np.float32),
        rng.uniform(2, 10, count).astype(np.float32),
    )


def candidates(scans: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each scan's scores of the lesions found (T,) and of the false positives (F,)."""
    rng = np.random.default_rng(6)
    return [(rng.beta(4, 2, rng.poisson(4)), rng.beta(1, 4, rng.poisson(40))) for _ in range(scans)]


def phantom(shape: Triple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Susceptibility in ppm, signal and R2* in 1/s, each (X, Y, Z) float32."""
    rng = np.random.default_rng(7)
    chi = 0.05 * rng.standard_normal(shape, np.float32)
    return chi, 1 + 0.1 * rng.standard_normal(shape, np.float32), np.full(shape, 20, np.float32)
