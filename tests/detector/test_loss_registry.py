"""Every prototype loss against loops in NumPy, its gradient against differences, and its manners."""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.config import MinerName
from cmb_jax.detector.mining import MINERS
from cmb_jax.detector.prototype_losses import PROTOTYPE_LOSSES

SETTINGS = {
    "concentration": {"gamma": 0.7, "pull": 0.3},
    "dce": {"gamma": 0.7},
    "gcpl": {"gamma": 0.7, "pull": 0.3},
    "center": {},
    "supcon": {"temperature": 0.5},
    "proxy_anchor": {"scale": 4.0, "margin": 0.2},
    "triplet_hard": {"margin": 0.6},
}
SAMPLES, CLASSES, PER_CLASS, LENGTH = 16, 2, 3, 4
NAMES = tuple(PROTOTYPE_LOSSES)
every_loss = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@functools.cache
def step(name):
    """(embeddings, labels, valid, prototypes) -> losses, gradients of their sum."""
    loss = PROTOTYPE_LOSSES[name](**SETTINGS[name])

    def both(f, labels, valid, m):
        losses, back = jax.vjp(lambda f, m: loss(f, labels, valid, m, jax.random.key(0)), f, m)
        return losses, back(jnp.ones_like(losses))

    return jax.jit(both)


@functools.cache
def drawn():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES, SAMPLES)
    valid = rng.random(SAMPLES) < 0.75
    embeddings = rng.normal(size=(SAMPLES, LENGTH))
    prototypes = rng.normal(size=(CLASSES, PER_CLASS, LENGTH))
    assert 0 < valid.sum() < SAMPLES
    assert {0, 1} == set(labels[valid])
    return embeddings, labels, valid, prototypes


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def one_by_one(function):
    """Of a loss that looks at one sample: 0 where it is not valid."""

    def slowly(embeddings, labels, valid, prototypes):
        return [
            function(f, int(y), prototypes) if v else 0.0
            for f, y, v in zip(embeddings, labels, valid, strict=True)
        ]

    return slowly


def dce(f, y, prototypes):
    shares = [[math.exp(-0.7 * squared(f, m)) for m in group] for group in prototypes]
    return -math.log(sum(shares[y]) / sum(map(sum, shares)))


def pull(f, y, prototypes):
    return min(squared(f, m) for m in prototypes[y])


def hard(f, y, prototypes):
    shares = [math.exp(-0.7 * pull(f, c, prototypes)) for c in range(len(prototypes))]
    return -math.log(shares[y] / sum(shares))


def supcon(embeddings, labels, valid, prototypes):
    out = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i and valid[j] and valid[i]]
        positives = [j for j in others if labels[j] == labels[i]]
        total = sum(math.exp(cosine(embeddings[i], embeddings[a]) / 0.5) for a in others)
        terms = [-math.log(math.exp(cosine(embeddings[i], embeddings[p]) / 0.5) / total) for p in positives]
        out.append(sum(terms) / len(terms) if terms else 0.0)
    return out


def triplet(embeddings, labels, valid, prototypes):
    out = []
    for i in range(len(labels)):
        apart = {
            j: math.sqrt(squared(embeddings[i], embeddings[j]))
            for j in range(len(labels))
            if j != i and valid[j] and valid[i]
        }
        own = [d for j, d in apart.items() if labels[j] == labels[i]]
        other = [d for j, d in apart.items() if labels[j] != labels[i]]
        out.append(max(0.0, 0.6 + max(own) - min(other)) if own and other else 0.0)
    return out


def proxy_anchor(embeddings, labels, valid, prototypes):
    near, far = [], []
    for c, group in enumerate(prototypes):
        closeness = [
            (y == c, max(cosine(f, m) for m in group))
            for f, y, v in zip(embeddings, labels, valid, strict=True)
            if v
        ]
        if any(own for own, _ in closeness):
            near.append(math.log(1 + sum(math.exp(-4 * (s - 0.2)) for own, s in closeness if own)))
        far.append(math.log(1 + sum(math.exp(4 * (s + 0.2)) for own, s in closeness if not own)))
    value = (sum(near) / len(near) if near else 0.0) + sum(far) / len(far)
    return [value if v else 0.0 for v in valid]


SLOWLY = {
    "concentration": one_by_one(lambda f, y, m: dce(f, y, m) + 0.3 * pull(f, y, m)),
    "dce": one_by_one(dce),
    "gcpl": one_by_one(lambda f, y, m: hard(f, y, m) + 0.3 * pull(f, y, m)),
    "center": one_by_one(lambda f, y, m: pull(f, y, m) / 2),
    "supcon": supcon,
    "proxy_anchor": proxy_anchor,
    "triplet_hard": triplet,
}


def test_every_name_has_its_function_and_its_loop_here():
    assert set(MINERS) == set(typing.get_args(MinerName))
    assert set(SLOWLY) == set(SETTINGS) == set(PROTOTYPE_LOSSES)


@pytest.mark.parametrize("name", [name for name, settings in SETTINGS.items() if {*settings} - {"margin"}])
def test_what_is_divided_by_or_multiplied_with_must_be_above_0(name):
    setting = next(iter(SETTINGS[name]))
    with pytest.raises(ValueError, match=f"{setting} must be above 0"):
        PROTOTYPE_LOSSES[name](**{setting: 0.0})


@every_loss
def test_equals_loops(name):
    losses, _ = step(name)(*drawn())
    np.testing.assert_allclose(losses, SLOWLY[name](*drawn()), rtol=1e-9, atol=1e-12)
    assert np.asarray(losses).max() > 0.1


@every_loss
def test_gradient_equals_differences(name):
    embeddings, labels, valid, prototypes = drawn()
    _, (of_embeddings, of_prototypes) = step(name)(*drawn())
    rng = np.random.default_rng(5)
    for _ in range(3):
        f, m = rng.normal(size=embeddings.shape), rng.normal(size=prototypes.shape)
        up, down = (
            sum(SLOWLY[name](embeddings + h * f, labels, valid, prototypes + h * m)) for h in (1e-6, -1e-6)
        )
        slope = float((of_embeddings * f).sum() + (of_prototypes * m).sum())
        assert slope == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-6)


@every_loss
def test_what_is_not_valid_counts_nowhere(name):
    embeddings, labels, valid, prototypes = drawn()
    want = step(name)(*drawn())
    odd = np.where(valid[:, None], embeddings, np.nan)
    got = step(name)(odd, np.where(valid, labels, 9), valid, prototypes)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    losses, (of_embeddings, _) = got
    np.testing.assert_array_equal(losses[~valid], 0)
    np.testing.assert_array_equal(of_embeddings[~valid], 0)


@every_loss
def test_the_order_of_the_samples_does_not_matter(name):
    embeddings, labels, valid, prototypes = drawn()
    order = np.random.default_rng(6).permutation(SAMPLES)
    losses, (of_embeddings, of_prototypes) = step(name)(*drawn())
    others, (of_others, of_same) = step(name)(embeddings[order], labels[order], valid[order], prototypes)
    np.testing.assert_allclose(others, losses[order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_others, of_embeddings[order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_same, of_prototypes, rtol=1e-9, atol=1e-12)


@every_loss
@pytest.mark.parametrize("present", ["one class", "one sample", "none", "the same twice"])
def test_poor_batches_are_finite(name, present):
    embeddings, labels, valid, prototypes = drawn()
    if present == "one class":
        labels, valid = np.zeros_like(labels), np.ones_like(valid)
    elif present == "the same twice":
        embeddings, valid = np.zeros_like(embeddings), np.ones_like(valid)
    else:
        valid = np.zeros_like(valid)
        valid[:1] = present == "one sample"
    got = step(name)(embeddings, labels, valid, prototypes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    if present in ("one class", "one sample", "none"):
        np.testing.assert_allclose(got[0], SLOWLY[name](embeddings, labels, valid, prototypes), atol=1e-9)


@every_loss
def test_one_and_eight_devices_agree(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    data = [
        jax.device_put(part, where)
        for part, where in zip(drawn(), (over, over, over, everywhere), strict=True)
    ]
    for a, b in zip(jax.tree.leaves(step(name)(*data)), jax.tree.leaves(step(name)(*drawn())), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_with_one_prototype_a_class_the_hard_form_is_the_concentration_loss():
    embeddings, labels, valid, prototypes = drawn()
    one = (embeddings, labels, valid, prototypes[:, :1])
    for a, b in zip(
        jax.tree.leaves(step("gcpl")(*one)), jax.tree.leaves(step("concentration")(*one)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
