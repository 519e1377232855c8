"""One program, any mesh: the same loss and gradients, halos from neighbors alone, memory that falls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import Config, DataConfig, LossConfig, TrainConfig
from cmb_jax.data.patches import PatchBatch
from cmb_jax.detector.network import Detector, Template
from cmb_jax.ops.cpu import library
from cmb_jax.training.detector import init_state, loss_function, put_batch, train_step
from cmb_jax.training.distributed import make_mesh
from cmb_jax.training.state import make_optimizer
from tests.tiny import TINY_MODEL
from tools.mesh_memory import collectives, compiled_step, peak_bytes

SHAPE = (32, 16, 16)
CONFIG = Config(
    model=TINY_MODEL,
    loss=LossConfig(max_positives=16, max_hard_negatives=16),
    data=DataConfig(patch_shape=SHAPE, batch_size=8, max_truths=4),
    train=TrainConfig(steps=20, warmup_steps=2, learning_rate=2e-3),
)
VOLUME = (128, 128, 128)
MESHES = (
    pytest.param(8, 1, marks=pytest.mark.slow),
    (4, 2),
    pytest.param(2, 4, marks=pytest.mark.slow),
    (1, 8),
)
STEPS = 20


def batch_of(number):
    """Dark boxes in noise; two lesions per patch, across the cuts as often as not."""
    rng = np.random.default_rng(number)
    count = CONFIG.data.batch_size
    image = rng.normal(0, 0.05, (count, *SHAPE, 2)) + np.array([1.0, 0.0])
    boxes = np.zeros((count, 4, 6), np.float32)
    for patch in range(count):
        for lesion in range(2):
            center, half = rng.uniform([2, 4, 4], [30, 12, 12]), np.array([1.5, 3, 3])
            low, high = np.maximum(np.rint(center - half), 0).astype(int), np.rint(center + half).astype(int)
            image[patch, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = [0.1, 0.6]
            boxes[patch, lesion] = np.concatenate([center - half, center + half])
    return PatchBatch(
        image=image.astype(np.float32),
        boxes=boxes,
        boxes_valid=np.arange(4)[None] < np.full((count, 1), 2),
        boxes_ignored=np.arange(4)[None] == np.arange(count)[:, None] % 3,
        mimics=(rng.random((count, SHAPE[0], SHAPE[1] // 2, SHAPE[2] // 2)) < 0.01).astype(np.uint8),
    )


@functools.cache
def trajectory(data, space, dtype, steps):
    """Loss and gradients at the first and at the last of some steps of training."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, precision="float32"))
    mesh = make_mesh(data, space)
    template = Template.of(lambda: Detector(config.model, rngs=nnx.Rngs(0)))

    @jax.jit
    def step(state, batch):
        batch = dataclasses.replace(batch, image=batch.image.astype(dtype))
        found = jax.value_and_grad(loss_function, has_aux=True)(state.params, batch, template, config, mesh)
        optimizer = make_optimizer(config.train)
        after, _ = train_step(state, batch, template=template, optimizer=optimizer, config=config, mesh=mesh)
        return after, (found[0][0], found[1])

    state = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        init_state(config, mesh),
    )
    seen = []
    for number in range(steps):
        state, found = step(state, put_batch(batch_of(number), mesh))
        seen.append(jax.tree.map(np.asarray, found))
    return seen[0], seen[-1]


def assert_close(one, many, tolerance):
    assert many[0] == pytest.approx(one[0], rel=tolerance)
    leaves = jax.tree_util.tree_leaves_with_path(one[1])
    for (path, a), b in zip(leaves, jax.tree.leaves(many[1]), strict=True):
        size = np.linalg.norm(a)
        assert size > 0
        assert np.linalg.norm(a - b) <= tolerance * size, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("data", "space"), MESHES)
def test_a_mesh_trains_as_one_device_does(data, space):
    """In double precision, because in single precision rounding soon changes which anchors are mined."""
    with jax.enable_x64(True):
        for one, many in zip(
            trajectory(1, 1, "float64", STEPS), trajectory(data, space, "float64", STEPS), strict=True
        ):
            assert_close(one, many, 1e-5)


def test_the_compiled_kernels_give_the_same_gradients_on_a_mesh():
    """In single precision; the sum over all logits' gradients cancels to a part of its terms."""
    assert_close(trajectory(1, 1, "float32", 1)[0], trajectory(2, 4, "float32", 1)[0], 5e-5)


@functools.cache
def compiled(space):
    config = dataclasses.replace(
        CONFIG, data=dataclasses.replace(CONFIG.data, patch_shape=VOLUME, batch_size=1)
    )
    return compiled_step(config, make_mesh(1, space))


def test_only_the_planes_at_the_cuts_are_exchanged():
    """Halos by collective-permute, one plane each; no feature map, nor the logits, is ever gathered."""
    found = collectives(compiled(8).as_text())
    permuted = [dims for name, dims in found if name == "collective-permute" and len(dims) == 5]
    assert len(permuted) >= 4 * 2  # convolutions along z: there and back, to both sides
    assert all(dims[1] == 1 for dims in permuted)
    gathered = [dims for name, dims in found if name in ("all-gather", "all-to-all")]
    assert all(len(dims) < 5 for dims in gathered)
    logits = np.prod(VOLUME) // 4 * len(CONFIG.model.anchor_diameters_mm)
    assert max(np.prod(dims) for dims in gathered) <= logits / 32  # the largest of each row of 64


def test_memory_of_a_device_falls_with_the_devices_that_share_the_depth():
    assert peak_bytes(compiled(1)) >= 5.5 * peak_bytes(compiled(8))


@pytest.mark.parametrize(("data", "space"), [(1, 1), (1, 8)])
def test_training_without_the_compiled_kernels_gives_the_same_gradients(monkeypatch, data, space):
    """Where no C++ compiler was there. Rounding may mine another anchor or two, hence the wide tolerance."""
    expected = trajectory(1, 1, "float32", 1)[0]
    monkeypatch.setattr(library, "available", lambda: False)
    # the kernels are chosen while a program is traced: nothing traced with them may be used again
    jax.clear_caches()
    try:
        assert_close(expected, trajectory.__wrapped__(data, space, "float32", 1)[0], 0.03)
    finally:
        jax.clear_caches()
