import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cmb_jax.detector.prototype_losses import Concentration


def slowly(embeddings, labels, valid, prototypes, gamma, pull):
    out = []
    for f, y, counts in zip(embeddings, labels, valid, strict=True):
        d = [[sum((a - b) ** 2 for a, b in zip(f, m, strict=True)) for m in group] for group in prototypes]
        own = sum(math.exp(-gamma * x) for x in d[y])
        everyone = sum(math.exp(-gamma * x) for group in d for x in group)
        out.append(-math.log(own / everyone) + pull * min(d[y]) if counts else 0.0)
    return out


def test_one_sample_by_hand():
    # on a line: prototypes at 0 and 2, sample at 0.5, so squared distances 0.25 and 2.25
    got = Concentration(gamma=0.5, pull=0.1)(
        jnp.asarray([[0.5], [0.5]]),
        jnp.asarray([0, 1]),
        jnp.ones(2, bool),
        jnp.asarray([[[0.0]], [[2.0]]]),
    )
    want = [math.log(1 + math.exp(-1)) + 0.025, math.log(1 + math.exp(1)) + 0.225]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_equals_the_slow_sum(rng, gamma):
    embeddings, prototypes = rng.normal(size=(9, 3)), rng.normal(size=(2, 4, 3))
    labels, valid = rng.integers(0, 2, 9), rng.random(9) < 0.7
    loss = Concentration(gamma=gamma, pull=0.05)
    got = loss(*map(jnp.asarray, (embeddings, labels, valid, prototypes)))
    np.testing.assert_allclose(got, slowly(embeddings, labels, valid, prototypes, gamma, 0.05), rtol=1e-4)


def test_gradients_numerically(rng):
    embeddings, prototypes = rng.normal(size=(4, 3)), rng.normal(size=(2, 2, 3))
    labels, valid = jnp.asarray([0, 1, 1, 0]), jnp.asarray([True, True, True, False])

    def loss(f, m):
        return Concentration(gamma=0.7, pull=0.3)(f, labels, valid, m).sum()

    check_grads(loss, (jnp.float32(embeddings), jnp.float32(prototypes)), 1, atol=2e-2, rtol=2e-2)


def test_far_samples_and_padding_stay_finite():
    embeddings = jnp.asarray([[1e3, 0.0], [jnp.nan, jnp.inf]])
    prototypes = jnp.asarray([[[0.0, 0.0]], [[1.0, 0.0]]])

    def loss(f, m):
        labels, valid = jnp.asarray([0, 7]), jnp.asarray([True, False])
        return Concentration(gamma=1.0, pull=0.0)(f, labels, valid, m).sum()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(embeddings, prototypes)
    # squared distances 1e6 and 1e6 - 2e3 + 1: the loss is their difference
    assert float(value) == pytest.approx(1999, rel=1e-3)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    np.testing.assert_array_equal(gradients[0][1], 0)
