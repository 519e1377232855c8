import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from cmb_jax.detector.anchor_losses import focal_loss, smooth_l1

YES = jnp.asarray([True])


def test_focal_loss_by_hand():
    # logit 0: p = 1/2, so (1 - p)^2 * -log p = ln 2 / 4
    assert float(focal_loss(jnp.zeros(1), YES, YES, 0.25, 2.0)[0]) == pytest.approx(0.25 * math.log(2) / 4)
    assert float(focal_loss(jnp.zeros(1), ~YES, YES, 0.25, 2.0)[0]) == pytest.approx(0.75 * math.log(2) / 4)
    # p = 3/4 for the right answer: (1/4)^2 * ln(4/3)
    logit = jnp.asarray([math.log(3)])
    want = 0.25 * math.log(4 / 3) / 16
    assert float(focal_loss(logit, YES, YES, 0.25, 2.0)[0]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_loss_equals_torch_in_float64(rng, gamma):
    logits, targets = rng.normal(0, 4, 500), rng.random(500) < 0.3
    x, t = torch.tensor(logits, requires_grad=True), torch.tensor(targets, dtype=torch.float64)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    right = torch.sigmoid(x) * t + (1 - torch.sigmoid(x)) * (1 - t)
    theirs = (0.3 * t + 0.7 * (1 - t)) * (1 - right) ** gamma * entropy
    theirs.sum().backward()
    valid = jnp.ones(500, bool)
    ours, back = jax.vjp(
        lambda z: focal_loss(z, jnp.asarray(targets), valid, 0.3, gamma), jnp.float32(logits)
    )
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(back(jnp.ones(500))[0], x.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_focal_loss_stays_finite_and_silent_where_not_valid():
    logits = jnp.asarray([-1e4, 1e4, -1e4, 1e4, 3.0])
    targets = jnp.asarray([True, False, False, True, True])
    valid = jnp.asarray([True, True, True, True, False])
    value, gradient = jax.value_and_grad(lambda z: focal_loss(z, targets, valid, 0.5, 2.0).sum())(logits)
    assert float(value) == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [-0.5, 0.5, 0, 0, 0], atol=1e-6)


def test_focal_gradient_numerically(rng):
    logits = jnp.asarray(rng.normal(size=6), jnp.float32)
    targets = jnp.arange(6) < 2
    check_grads(
        lambda z: focal_loss(z, targets, jnp.ones(6, bool), 0.5, 2.0).sum(),
        (logits,),
        1,
        atol=1e-2,
        rtol=1e-2,
    )


def test_smooth_l1_by_hand_and_against_torch(rng):
    # beta 0.5: quadratic 0.3^2 / (2 * 0.5) inside, 2 - 0.25 outside
    got = smooth_l1(jnp.asarray([0.3, -2.0, 0.0]), jnp.zeros(3), 0.5)
    np.testing.assert_allclose(got, [0.09, 1.75, 0.0], rtol=1e-6)
    a, b = rng.normal(0, 0.3, size=(2, 200)).astype(np.float32)
    want = torch.nn.functional.smooth_l1_loss(torch.tensor(a), torch.tensor(b), reduction="none", beta=1 / 9)
    np.testing.assert_allclose(smooth_l1(jnp.asarray(a), jnp.asarray(b)), want, rtol=1e-5, atol=1e-6)
    check_grads(
        lambda a: smooth_l1(a, jnp.asarray(b[:5])).sum(), (jnp.asarray(a[:5]),), 1, atol=1e-2, rtol=1e-2
    )
