"""The PyTorch twin that timings are compared with does the same as the JAX detector."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks.torch_detector import TorchDetector, channels_last
from benchmarks.torch_loss import assign, spread
from benchmarks.torch_step import TorchBatch, TorchTrainer, learning_rate
from benchmarks.torch_weights import to_jax, to_torch
from cmb_jax.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from cmb_jax.data.patches import PatchBatch
from cmb_jax.detector import mining
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.assignment import assign_lattice
from cmb_jax.detector.network import Detector, Template
from cmb_jax.training import state as jax_state
from cmb_jax.training.detector import DeviceBatch, loss_function, train_step

MODEL = ModelConfig(
    widths=(4, 6, 8),
    encoder_convs=(0, 1, 1),
    decoder_convs=(0, 1),
    fusion_width=4,
    head_width=5,
    anchor_diameters_mm=(2.5, 5.0),
    embedding_dim=7,
    prototypes_per_class=2,
)
CONFIG = Config(
    model=MODEL,
    loss=LossConfig(positive_iou=0.2, negative_iou=0.1, max_positives=12, max_hard_negatives=9),
    data=DataConfig(patch_shape=(8, 16, 24), batch_size=2, max_truths=5),
    # the gradients are longer than the clip, so that it counts; a high rate from the second step on
    train=TrainConfig(steps=10, warmup_steps=1, learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5),
)


@functools.cache
def template(model=MODEL):
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0)))


@functools.cache
def weights(model=MODEL):
    """Every parameter drawn, none at 0 or 1; convolutions keep the variance."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if leaf.ndim == 5:
            return rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:4])) ** 0.5
        return (path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, template(model).shapes())
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), drawn)


def patches():
    rng = np.random.default_rng(2)
    shape, count, batch = np.array(CONFIG.data.patch_shape), CONFIG.data.max_truths, CONFIG.data.batch_size
    center = rng.uniform(0.1, 0.9, (batch, count, 3)) * shape
    half = rng.uniform(1, 3, (batch, count, 1)) * np.array([0.5, 1, 1])
    boxes = np.concatenate([center - half, center + half], axis=-1)
    boxes[0, 1] = boxes[0, 0]  # two truths that want the same anchor
    valid = np.arange(count) < np.array([[4], [3]])
    boxes[~valid] = np.nan
    return PatchBatch(
        image=rng.normal(size=(batch, *shape, 2)).astype(np.float32),
        boxes=boxes.astype(np.float32),
        boxes_valid=valid,
        boxes_ignored=np.zeros_like(valid),
        mimics=(rng.random((batch, *(shape // (1, 2, 2)))) < 0.03).astype(np.uint8),
    )


@contextlib.contextmanager
def precision(dtype, monkeypatch):
    """For float64 every float32 of the package is double and the convolution is XLA's own."""
    if dtype == np.float32:
        yield
        return
    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(jnp, "float32", jnp.float64)
        yield


def both(dtype, model=MODEL):
    """Configuration, weights and batch in JAX; trainer and batch in PyTorch."""
    train = dataclasses.replace(CONFIG.train, precision="float32")
    config = dataclasses.replace(CONFIG, model=model, train=train)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), weights(model))
    data = patches()
    batch = DeviceBatch(
        image=jnp.asarray(data.image, dtype),
        truths=Truths(boxes=jnp.asarray(data.boxes, dtype), valid=jnp.asarray(data.boxes_valid)),
        mimics=jnp.asarray(data.mimics),
    )
    twin = TorchDetector(model).to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    to_torch(params, twin)
    trainer = TorchTrainer(twin, config)
    return config, params, batch, trainer, TorchBatch.of(data, trainer.params[0])


def compare(dtype, model, monkeypatch, output_tolerance, gradient_tolerance):
    with precision(dtype, monkeypatch):
        config, params, batch, trainer, twin_batch = both(dtype, model)
        structure = template(config.model)

        @jax.jit
        def run(params, batch):
            value = jax.value_and_grad(loss_function, has_aux=True)
            return structure.bind(params)(batch.image), *value(params, batch, structure, config)

        maps, (total, (terms, _)), grads = jax.device_get(run(params, batch))
    features, objectness, deltas = (
        channels_last(part).detach().numpy() for part in trainer.model(twin_batch.image)
    )
    assert maps.objectness.dtype == dtype
    np.testing.assert_allclose(features, maps.features, rtol=0, atol=output_tolerance)
    np.testing.assert_allclose(objectness, maps.objectness, rtol=0, atol=output_tolerance)
    np.testing.assert_allclose(deltas.reshape(maps.deltas.shape), maps.deltas, rtol=0, atol=output_tolerance)

    loss, twin_terms = trainer.loss(twin_batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(total), rel=output_tolerance)
    assert int(terms.positives) > 20
    for field in dataclasses.fields(terms):
        want = float(getattr(terms, field.name))
        assert float(getattr(twin_terms, field.name)) == pytest.approx(want, rel=output_tolerance), field.name

    twin_grads = to_jax({name: p.grad for name, p in trainer.model.named_parameters()}, grads)
    for (path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(twin_grads), strict=True
    ):
        largest = np.abs(want).max()
        assert largest > 0, path
        np.testing.assert_allclose(got, want, rtol=0, atol=gradient_tolerance * largest, err_msg=str(path))


def test_outputs_loss_and_gradients_in_float32(monkeypatch):
    compare(np.float32, MODEL, monkeypatch, 1e-4, 1e-3)


def test_outputs_loss_and_gradients_in_float64(monkeypatch):
    compare(np.float64, MODEL, monkeypatch, 1e-9, 1e-7)


def test_concatenation_without_prototypes(monkeypatch):
    model = dataclasses.replace(MODEL, fusion="concat", use_prototypes=False)
    compare(np.float32, model, monkeypatch, 1e-4, 1e-3)


def test_blocks_on_the_finest_level(monkeypatch):
    model = dataclasses.replace(MODEL, encoder_convs=(2, 1, 1), decoder_convs=(1, 1))
    compare(np.float32, model, monkeypatch, 1e-4, 1e-3)


def test_boxes_with_a_block_of_their_own_and_a_semantic_head():
    model = dataclasses.replace(MODEL, box_width=6, semantic_head=True)
    twin, image = TorchDetector(model).eval(), patches().image
    to_torch(weights(model), twin)
    maps = jax.jit(lambda params, image: template(model).bind(params)(image))(weights(model), image)
    with torch.inference_mode():
        ours = twin(torch.from_numpy(image).permute(0, 4, 1, 2, 3))
    for got, want in zip(ours, (maps.features, maps.objectness, maps.deltas), strict=True):
        np.testing.assert_allclose(channels_last(got).numpy().reshape(want.shape), want, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="box_width"):
        TorchTrainer(twin, dataclasses.replace(CONFIG, model=model))


def test_three_training_steps_give_the_same_parameters(monkeypatch):
    with precision(np.float64, monkeypatch):
        config, params, batch, trainer, twin_batch = both(np.float64)
        optimizer = jax_state.make_optimizer(config.train)
        zero = jnp.zeros((), jnp.int32)
        state = jax_state.TrainState(
            step=zero,
            params=params,
            ema=params,
            opt_state=jax.jit(optimizer.init)(params),
            skipped_in_a_row=zero,
            skipped=zero,
        )
        step = jax.jit(
            lambda state, batch: train_step(
                state, batch, template=template(config.model), optimizer=optimizer, config=config
            )
        )
        for _ in range(3):  # the first has a learning rate of 0
            state, metrics = step(state, batch)
            terms, norm = trainer.train_step(twin_batch)
            assert float(norm) == pytest.approx(float(metrics.gradient_norm), rel=1e-7)
            assert float(norm) > config.train.clip_norm
            assert float(terms.total) == pytest.approx(float(metrics.terms.total), rel=1e-7)
        state = jax.device_get(state)
    names = [name for name, _ in trainer.model.named_parameters()]
    ema = to_jax(dict(zip(names, trainer.ema, strict=True)), params)
    for start, want, got, want_ema, got_ema in zip(
        *map(jax.tree.leaves, (params, state.params, to_jax(trainer.model, params), state.ema, ema)),
        strict=True,
    ):
        assert np.abs(want - start).max() > 1e-3
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)
        np.testing.assert_allclose(got_ema, want_ema, rtol=0, atol=1e-7)


def test_a_step_that_is_not_finite_changes_only_the_counters():
    _, _, _, trainer, batch = both(np.float32)
    before = [p.detach().clone() for p in trainer.params]
    batch.image[0, 0, 0, 0, 0] = torch.nan
    for _ in range(2):
        trainer.train_step(batch)
    assert (trainer.step, trainer.updates, trainer.skipped, trainer.skipped_in_a_row) == (2, 0, 2, 2)
    for old, new in zip(before, trainer.params, strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=0)


def test_weights_survive_the_round_trip():
    model = ModelConfig()
    twin = TorchDetector(model)
    to_torch(weights(model), twin)
    back = to_jax(twin, template(model).shapes())
    jax.tree.map(np.testing.assert_array_equal, back, weights(model))
    assert jax.tree.structure(back) == jax.tree.structure(weights(model))


def test_weights_of_another_network_are_refused():
    twin = TorchDetector(dataclasses.replace(MODEL, use_prototypes=False))
    with pytest.raises(ValueError, match=r"one side only: \['embedding.bias'"):
        to_torch(weights(), twin)


def test_learning_rate_is_that_of_the_schedule():
    config = TrainConfig(steps=40, warmup_steps=7)
    schedule = jax_state.learning_rate(config)
    for step in (0, 1, 6, 7, 8, 25, 39, 40, 50):
        assert learning_rate(config, step) == pytest.approx(float(schedule(step)), rel=1e-5, abs=1e-12)


def test_assignment_is_equal_where_truths_crowd_and_leave_the_patch(rng):
    grid, count = (6, 7, 8), 12
    sizes = np.array([[2.5, 5, 5], [5, 10, 10]], np.float32)
    size = (6, 14, 16)
    center = np.rint(rng.uniform(-0.2, 1.2, (3, count, 3)) * size)  # whole voxels: many equal overlaps
    half = rng.integers(0, 4, (3, count, 1)) * np.array([0.5, 1, 1])
    boxes = np.concatenate([center - half, center + half], axis=-1).astype(np.float32)
    boxes[2] = boxes[2, :1] = [1, 4, 4, 3, 8, 8]  # all on one place
    valid = rng.random((3, count)) < 0.8
    config = LossConfig(positive_iou=0.3, negative_iou=0.1)
    label, matched = assign(
        torch.from_numpy(boxes), torch.from_numpy(valid), torch.Size(grid), torch.from_numpy(sizes), config
    )
    for patch in range(3):
        want = assign_lattice(
            Truths(boxes=jnp.asarray(boxes[patch]), valid=jnp.asarray(valid[patch])),
            grid,
            (1, 2, 2),
            sizes,
            config.positive_iou,
            config.negative_iou,
        )
        np.testing.assert_array_equal(label[patch], np.asarray(want.label).ravel())
        positive = np.asarray(want.label).ravel() == 1
        np.testing.assert_array_equal(
            matched[patch].numpy()[positive], np.asarray(want.matched_index).ravel()[positive]
        )


@pytest.mark.parametrize("share", [0.0, 0.02, 0.9])
def test_an_even_choice_of_flags(rng, share):
    flags = rng.random((2, 500)) < share
    places, valid = spread(torch.from_numpy(flags), 37)
    for row in range(2):
        want, want_valid = mining.spread(jnp.asarray(flags[row]), 37)
        np.testing.assert_array_equal(places[row], want)
        np.testing.assert_array_equal(valid[row], want_valid)
