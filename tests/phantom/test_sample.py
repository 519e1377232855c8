"""The simulator as a function of a key: linear physics, batches, meshes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom import PROTOCOLS
from cmb_jax.phantom.simulate import Plan, simulate_batch, simulate_sample
from cmb_jax.training.distributed import make_mesh


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), 4)


@pytest.fixture(scope="module")
def single(keys, anatomy, ranges, plan):
    return [jax.device_get(simulate_sample(k, anatomy, ranges, plan=plan)) for k in keys]


def _images(sample):
    return {
        name: np.asarray(getattr(sample, name)) for name in ("swi", "magnitude", "labels", "mimics", "code")
    }


def _assert_same(found, expected):
    """But for a few voxels: a rounding may turn a phase of pi into -pi, or move a border by a voxel."""
    others = _images(found)
    for name, image in _images(expected).items():
        limit = 1e-3 * image.max() if image.dtype.kind == "f" else 0
        assert np.mean(np.abs(others[name].astype(float) - image.astype(float)) > limit) < 1e-4, name


def test_a_batch_on_a_mesh_is_what_single_calls_give(keys, single, anatomy, ranges, plan):
    """Two devices with two samples each, vmapped."""
    batch = simulate_batch(keys, anatomy, ranges, plan=plan, mesh=make_mesh(2))
    assert len(batch.swi.sharding.device_set) == 2
    assert batch.swi.shape == (4, *plan.acquired.shape)
    batch = jax.device_get(batch)
    for i, one in enumerate(single):
        _assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], batch), one)


def test_tiers_share_one_compiled_program(anatomy, ranges, hard, plan):
    counted = chex.assert_max_traces(n=1)(lambda k, a, r: simulate_sample.__wrapped__(k, a, r, plan=plan))
    chex.clear_trace_counter()
    lowered = jax.jit(counted)
    shapes = jax.eval_shape(lowered, jax.random.key(0), anatomy, ranges)
    again = jax.eval_shape(lowered, jax.random.key(0), anatomy, dataclasses.replace(ranges, tier=hard))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, again)


def test_plans_of_one_protocol_are_one_key(plan):
    assert Plan.of(PROTOCOLS["thick3"], 2.0) == plan
    assert hash(Plan.of(PROTOCOLS["thick3"], 2.0)) == hash(plan)
    assert Plan.of(PROTOCOLS["thick3"], 1.0) != plan


def test_hard_subjects_are_harder(single, keys, anatomy, ranges, hard, plan):
    hard_ranges = dataclasses.replace(ranges, tier=hard)
    for key, easy in list(zip(keys, single, strict=True))[:2]:
        other = jax.device_get(simulate_sample(key, anatomy, hard_ranges, plan=plan))
        assert (other.mimics > 0).sum() > (easy.mimics > 0).sum()
        assert float(other.scan.snr) < float(easy.scan.snr)
        drawn = other.bleeds.valid
        assert other.bleed_mm[drawn].min() < easy.bleed_mm[easy.bleeds.valid].min()
        assert jnp.sum(drawn) > 10
