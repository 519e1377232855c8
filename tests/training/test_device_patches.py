"""Patches that are simulated where they are trained on."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.config import DataConfig
from cmb_jax.phantom import PROTOCOLS, TIERS, SubjectSettings
from cmb_jax.phantom.packed import pack_anatomy
from cmb_jax.phantom.sample import Ranges
from cmb_jax.training.device_patches import PatchPlan, _truths, for_patches, simulate_patches
from cmb_jax.training.sharding import make_mesh

DATA = DataConfig(spacing_mm=(2.0, 1.0, 1.0), patch_shape=(16, 32, 32), max_truths=6, phase_dropout=0.5)
BATCH = 4


@pytest.fixture(scope="module")
def anatomy():
    return pack_anatomy(synthetic_pack())


@pytest.fixture(scope="module")
def plan():
    return PatchPlan.of(PROTOCOLS["iso08"], DATA, 1.6, pack_spacing_mm=2.0)


@pytest.fixture(scope="module")
def ranges(plan):
    settings = SubjectSettings(protocol="iso08", mean_cmbs=12.0)
    return for_patches(Ranges.of(PROTOCOLS["iso08"], TIERS["easy"], settings), plan)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), BATCH)


@pytest.fixture(scope="module")
def batch(keys, anatomy, ranges, plan):
    return jax.device_get(simulate_patches(keys, anatomy, ranges, plan=plan))


def test_shapes_and_values(batch):
    assert batch.image.shape == (BATCH, 16, 32, 32, 2)
    assert batch.mimics.shape == (BATCH, 16, 16, 16)
    assert batch.truths.boxes.shape == (BATCH, 6, 6)
    assert np.isfinite(batch.image).all()
    assert batch.image[..., 0].min() >= 0
    assert 0.5 < np.median(batch.image[..., 0]) < 1.3  # scaled by the brain
    with_phase = np.abs(batch.image[..., 1]).max(axis=(1, 2, 3)) > 0
    assert 0 < with_phase.sum() < BATCH  # half of them lost it
    assert np.abs(batch.image[..., 1]).max() <= 1.0


def test_microbleeds_are_dark_where_their_boxes_are(batch):
    inside, around = [], []
    truths = batch.truths
    for image, boxes, valid, ignored in zip(
        batch.image, truths.boxes, truths.valid, truths.ignored, strict=True
    ):
        assert (valid[:-1] >= valid[1:]).all()  # the valid ones come first
        assert valid[ignored].all()
        for z0, y0, x0, z1, y1, x1 in boxes[valid & ~ignored]:
            centre = np.floor([(z0 + z1) / 2, (y0 + y1) / 2, (x0 + x1) / 2]).astype(int)
            if ((centre < 2) | (centre >= np.array(image.shape[:3]) - 2)).any():
                continue
            core = tuple(slice(c, c + 1) for c in centre)
            near = tuple(slice(max(0, c - 5), c + 6) for c in centre)
            inside.append(image[core][..., 0].min())
            around.append(np.median(image[near][..., 0]))
    assert len(inside) >= 3
    assert np.mean(np.array(inside) < 0.8 * np.array(around)) > 0.8


def test_devices_make_the_same_patches(keys, batch, anatomy, ranges, plan):
    spread = simulate_patches(keys, anatomy, ranges, plan=plan, mesh=make_mesh(4))
    assert len(spread.image.sharding.device_set) == 4
    found = jax.device_get(spread)
    np.testing.assert_allclose(found.image, batch.image, atol=2e-3)
    np.testing.assert_array_equal(found.truths.valid, batch.truths.valid)
    np.testing.assert_allclose(found.truths.boxes, batch.truths.boxes, atol=1e-3)


@pytest.mark.parametrize("ignore_rim", [False, True])
def test_what_is_ignored(plan, ignore_rim):
    """In 32 mm: a lesion inside, one that does not count, one centered beyond the rim, one far off."""
    bleeds = SimpleNamespace(
        centre_mm=jnp.asarray([[2.0, 0, 0], [0, 6, 0], [16.5, 0, 0], [40, 0, 0], [0, 0, 0]]),
        valid=jnp.asarray([True, True, True, True, False]),
    )
    counts = jnp.asarray([True, False, True, True, False])
    sample = SimpleNamespace(bleeds=bleeds, bleed_mm=jnp.full(5, 3.0), counts=counts)
    truths = _truths(sample, dataclasses.replace(plan, ignore_rim=ignore_rim))
    np.testing.assert_array_equal(truths.valid, [True, True, True, False, False])
    np.testing.assert_array_equal(truths.ignored, [False, True, ignore_rim, False, False])
    np.testing.assert_allclose(truths.boxes[0], [7.25, 14.5, 16.5, 8.75, 17.5, 19.5])


def test_no_microbleeds_when_none_are_asked_for(keys, anatomy, ranges, plan):
    none = dataclasses.replace(ranges, lesions=dataclasses.replace(ranges.lesions, mean_cmbs=jnp.float32(0)))
    assert not np.asarray(simulate_patches(keys, anatomy, none, plan=plan).truths.valid).any()
