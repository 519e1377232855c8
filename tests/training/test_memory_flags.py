"""Accumulation and rematerialization change no gradient; mixed precision and bfloat16 follow float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.inputs import parameters, patches
from cmb_jax.config import Config, DataConfig, TrainConfig
from cmb_jax.detector.network import Detector, Template
from cmb_jax.errors import UserError
from cmb_jax.training.detector import in_micro_batches, loss_function, make_step, put_batch
from cmb_jax.training.distributed import make_mesh
from tests.tiny import TINY_MODEL

CONFIG = Config(
    model=TINY_MODEL,
    data=DataConfig(patch_shape=(8, 16, 16), batch_size=4, max_truths=4),
    train=TrainConfig(steps=10, warmup_steps=2),
)


def variant(remat=False, **train):
    return dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(TINY_MODEL, remat=remat),
        train=dataclasses.replace(CONFIG.train, **{"precision": "float32", **train}),
    )


def value_and_gradient(config, loss):
    """Value, gradient as one vector and program text of `loss(params, template, batch)`."""
    template = Template.of(lambda: Detector(config.model, precision=config.train.precision, rngs=nnx.Rngs(0)))
    params = jax.tree.map(jnp.asarray, parameters(TINY_MODEL))
    batch = put_batch(patches(config), make_mesh())
    lowered = jax.jit(jax.value_and_grad(lambda p: loss(p, template, batch))).lower(params)
    value, grads = lowered.compile()(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}
    return float(value), np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)]), lowered.as_text()


@functools.cache
def of_the_network(**changes):
    """Of a simple function of the maps, which compiles sooner than the loss."""

    def loss(params, template, batch):
        maps = template.bind(params)(batch.image)
        return jnp.square(maps.objectness).mean() + jnp.square(maps.features.astype(jnp.float32)).mean()

    return value_and_gradient(variant(**changes), loss)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    """Of the real loss, which divides by counts over the batch and mines in it."""
    (value, grads, _), (other_value, other_grads, text) = (
        value_and_gradient(config, lambda p, t, b, c=config: loss_function(p, b, t, c)[0])
        for config in (variant(), variant(accumulate=2, remat=True))
    )
    assert "stablehlo.while" in text
    assert other_value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(other_grads, grads, rtol=1e-4, atol=1e-6 * np.abs(grads).max())


def test_rematerialization_changes_no_value():
    (value, grads, text), (other_value, other_grads, other_text) = (
        of_the_network(),
        of_the_network(remat=True),
    )
    assert other_text.count("optimization_barrier") > text.count("optimization_barrier")
    assert other_value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(other_grads, grads, rtol=1e-4, atol=1e-6 * np.abs(grads).max())


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_less_precision_follows_float32(precision):
    value, grads, _ = of_the_network()
    low_value, low_grads, text = of_the_network(precision=precision)
    assert ("bf16" in text) == (precision == "bfloat16")
    assert low_value != value
    assert low_value == pytest.approx(value, rel=0.02)
    cosine = np.dot(grads, low_grads) / np.linalg.norm(grads) / np.linalg.norm(low_grads)
    assert cosine > 0.99


def test_parts_come_back_in_order():
    def twice(params, images):
        return {"a": params * images, "b": images[:, 0]}

    images = jnp.arange(24.0).reshape(6, 4)
    whole, parts = twice(2.0, images), in_micro_batches(twice, 3)(2.0, images)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_batch_that_cannot_be_cut_is_refused():
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=2))
    with pytest.raises(UserError, match="multiple of 8"):
        make_step(config, make_mesh(4, 1))
