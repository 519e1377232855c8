"""The simulator as a function of a key: linear physics, batches, meshes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.sample import Plan, sample_at, simulate_batch, simulate_sample
from cmb_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), 2)


@pytest.fixture(scope="module")
def single(keys, anatomy, ranges, plan):
    return [jax.device_get(simulate_sample(k, anatomy, ranges, plan=plan)) for k in keys]


def _images(sample):
    return {
        name: np.asarray(getattr(sample, name)) for name in ("swi", "magnitude", "labels", "mimics", "code")
    }


def _assert_same(found, expected):
    for name, image in _images(expected).items():
        other = _images(found)[name]
        if image.dtype.kind == "f":
            np.testing.assert_allclose(other, image, atol=1e-3 * image.max())
        else:
            assert np.mean(other != image) < 1e-4  # a rounding may move a border by a voxel


def test_vmap_gives_what_single_calls_give(keys, single, anatomy, ranges, plan):
    batch = jax.device_get(simulate_batch(keys, anatomy, ranges, plan=plan))
    for i, one in enumerate(single):
        _assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], batch), one)


def test_devices_of_a_mesh_make_their_own_share(keys, single, anatomy, ranges, plan):
    mesh = make_mesh(2)
    batch = simulate_batch(keys, anatomy, ranges, plan=plan, mesh=mesh)
    assert len(batch.swi.sharding.device_set) == 2
    for i, one in enumerate(single):
        _assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], jax.device_get(batch)), one)


def test_tiers_share_one_compiled_program(anatomy, ranges, hard, plan):
    counted = chex.assert_max_traces(n=1)(lambda k, a, r: sample_at(k, a, r, a.centre_mm, plan))
    chex.clear_trace_counter()
    lowered = jax.jit(counted)
    shapes = jax.eval_shape(lowered, jax.random.key(0), anatomy, ranges)
    again = jax.eval_shape(lowered, jax.random.key(0), anatomy, dataclasses.replace(ranges, tier=hard))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, again)


def test_plans_of_one_protocol_are_one_key(plan):
    from cmb_jax.phantom import PROTOCOLS

    assert Plan.of(PROTOCOLS["thick3"], 2.0) == plan
    assert hash(Plan.of(PROTOCOLS["thick3"], 2.0)) == hash(plan)
    assert Plan.of(PROTOCOLS["thick3"], 1.0) != plan


def test_hard_subjects_are_harder(single, keys, anatomy, ranges, hard, plan):
    hard_ranges = dataclasses.replace(ranges, tier=hard)
    for key, easy in zip(keys, single, strict=True):
        other = jax.device_get(simulate_sample(key, anatomy, hard_ranges, plan=plan))
        assert (other.mimics > 0).sum() > (easy.mimics > 0).sum()
        assert float(other.scan.snr) < float(easy.scan.snr)
        drawn = other.bleeds.valid
        assert other.bleed_mm[drawn].min() < easy.bleed_mm[easy.bleeds.valid].min()
        assert jnp.sum(drawn) > 10
