"""The detector slab by slab gives the numbers of the detector on the whole volume."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.detector import network
from cmb_jax.detector.network import Detector
from tests.tiny import TINY_MODEL

VARIANTS = {
    "default": {},
    "concatenated": {"fusion": "concat"},
    "without fusion": {"use_fusion": False},
    "second level": {"use_fusion": False, "second_level": True},
    "boxes apart": {"box_width": 5, "semantic_head": True},
    "deep stem": {"stem_kernel": (3, 3, 3)},
    "convolutions on the finest level": {"encoder_convs": (2, 1, 1), "decoder_convs": (1, 1)},
}


@pytest.mark.parametrize("depth", [4, 8, 12, 20])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_slab_equals_the_whole(rng, monkeypatch, variant, depth):
    monkeypatch.setattr(network, "MOST_PLANES", 4)
    detector = Detector(dataclasses.replace(TINY_MODEL, **VARIANTS[variant]), rngs=nnx.Rngs(3))
    image = jnp.asarray(rng.normal(size=(2, depth, 16, 8, 2)), jnp.float32)
    whole = detector(image)
    context = network.context_of(detector, image)
    assert network.slab_planes(depth) == 4
    for first in range(0, depth, 4):
        start, box_input, objectness = network.slab_maps(detector, image, context, jnp.int32(first))
        own = slice(first - int(start), first - int(start) + 4)
        there = slice(first, first + 4)
        np.testing.assert_allclose(box_input[:, own], whole.box_input[:, there], rtol=1e-5, atol=1e-5)
        cells = jnp.arange(box_input[0, ..., 0].size * 4, dtype=jnp.int32)
        codes = detector.box_codes(box_input, jnp.stack([cells] * 2)).reshape(*objectness.shape, 6)
        np.testing.assert_allclose(codes[:, own], whole.deltas[:, there], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(objectness[:, own], whole.objectness[:, there], rtol=1e-5, atol=1e-5)


def test_slabs_cover_the_depth_once():
    for depth in range(2, 200, 2):
        planes = network.slab_planes(depth)
        firsts = np.asarray(network.map_slabs(lambda first: first, depth))
        covered = (firsts[:, None] + np.arange(planes)).reshape(-1)
        np.testing.assert_array_equal(covered, np.arange(depth))


def test_a_deep_volume_takes_less_than_half_the_memory_of_the_whole():
    detector = Detector(TINY_MODEL, rngs=nnx.Rngs(3))

    def most_likely(image):
        context = network.context_of(detector, image)
        return network.map_slabs(
            lambda f: network.slab_maps(detector, image, context, f)[2].max(), image.shape[1]
        )

    def temporary(run, depth):
        image = jax.ShapeDtypeStruct((1, depth, 64, 64, 2), jnp.float32)
        return jax.jit(run).lower(image).compile().memory_analysis().temp_size_in_bytes

    whole = temporary(lambda image: detector(image).objectness.max(), 192)
    assert temporary(most_likely, 192) < 0.5 * whole
