"""Growing keeps the function: compared with the smaller network itself."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from cmb_jax.detector.network import Detector, Template, params_of
from tests.tiny import TINY_MODEL
from tools.grow_detector import deepen, widen

WIDE_MODEL = dataclasses.replace(
    TINY_MODEL, widths=(8, 12, 16), fusion_width=8, head_width=8, embedding_dim=8
)
TOWERS_MODEL = dataclasses.replace(TINY_MODEL, box_width=TINY_MODEL.head_width, semantic_head=True)
DEEP_MODEL = dataclasses.replace(TINY_MODEL, encoder_convs=(2, 1, 1), decoder_convs=(1, 1))


def template(model):
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def narrow():
    return params_of(Detector(TINY_MODEL, rngs=nnx.Rngs(3)))


@pytest.fixture(scope="module")
def wide(narrow):
    return widen(narrow, template(WIDE_MODEL).shapes(), jax.random.key(1))


def test_the_wider_network_is_the_same_function(narrow, wide):
    image = jax.random.normal(jax.random.key(2), (1, 8, 16, 16, 2))
    expected = jax.jit(lambda p, x: template(TINY_MODEL).bind(p)(x))(narrow, image)
    found = jax.jit(lambda p, x: template(WIDE_MODEL).bind(p)(x))(wide, image)
    np.testing.assert_allclose(found.objectness, expected.objectness, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.deltas, expected.deltas, rtol=1e-5, atol=1e-5)


def test_embeddings_keep_their_distances(narrow, wide):
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    anchors = np.arange(6) % 4

    def distances(model, params, features):
        embedded = template(model).bind(params).embedding(features, anchors)
        return np.linalg.norm(
            embedded[:, None] - params["prototypes"].reshape(1, -1, model.embedding_dim), axis=-1
        )

    narrow_distances = distances(TINY_MODEL, narrow, features)
    wide_distances = distances(WIDE_MODEL, wide, np.concatenate([features, features], axis=1))
    np.testing.assert_allclose(wide_distances, narrow_distances, rtol=1e-5)


def test_the_copies_of_a_channel_get_different_gradients(wide):
    image = jax.random.normal(jax.random.key(2), (1, 8, 16, 16, 2))
    gradient = jax.jit(jax.grad(lambda p: (template(WIDE_MODEL).bind(p)(image).objectness ** 2).sum()))(wide)
    kernel = np.asarray(gradient["unet"]["stem"]["conv"]["kernel"])
    first, second = kernel[..., :4], kernel[..., 4:]
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(cosine) < 0.999


@pytest.mark.parametrize(
    "change",
    [{"widths": (8, 12, 24)}, {"head_width": 6}, {"anchor_diameters_mm": (2.0, 3.0)}, {"use_fusion": False}],
)
def test_other_networks_are_refused(narrow, change):
    with pytest.raises(ValueError, match=r"twice the channels|other layers"):
        widen(narrow, template(dataclasses.replace(WIDE_MODEL, **change)).shapes(), jax.random.key(0))


def test_the_deeper_network_is_the_same_function_and_its_new_blocks_learn(narrow):
    deep = deepen(narrow, template(DEEP_MODEL).shapes())
    image = jax.random.normal(jax.random.key(2), (1, 8, 16, 16, 2))
    expected = jax.jit(lambda p, x: template(TINY_MODEL).bind(p)(x))(narrow, image)
    found = jax.jit(lambda p, x: template(DEEP_MODEL).bind(p)(x))(deep, image)
    np.testing.assert_allclose(found.objectness, expected.objectness, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.deltas, expected.deltas, rtol=1e-6, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: (template(DEEP_MODEL).bind(p)(image).objectness ** 2).sum()))(deep)
    for block in (*gradient["unet"]["encoder"][0].values(), *gradient["unet"]["decoder"][0].values()):
        taps = np.abs(np.asarray(block["conv"]["kernel"])).sum(axis=(3, 4))
        assert taps.shape == (3, 3, 3)
        assert (taps > 0).all()


def test_a_block_for_the_boxes_and_a_semantic_head_change_nothing(narrow):
    towers = deepen(narrow, template(TOWERS_MODEL).shapes())
    image = jax.random.normal(jax.random.key(2), (1, 8, 16, 16, 2))
    expected = jax.jit(lambda p, x: template(TINY_MODEL).bind(p)(x))(narrow, image)
    found = jax.jit(lambda p, x: template(TOWERS_MODEL).bind(p)(x))(towers, image)
    np.testing.assert_allclose(found.objectness, expected.objectness, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.deltas, expected.deltas, rtol=1e-6, atol=1e-6)
    assert not np.any(found.semantic)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"box_width": TINY_MODEL.head_width + 1}, "cannot become"),
        ({"widths": (4, 6, 12)}, "cannot become"),
        ({"encoder_convs": (0, 2, 1)}, "only blocks of the finest level"),
        ({"use_fusion": False}, "lacks layers"),
    ],
)
def test_networks_that_are_not_deeper_are_refused(narrow, change, why):
    with pytest.raises(ValueError, match=why):
        deepen(narrow, template(dataclasses.replace(TINY_MODEL, **change)).shapes())
