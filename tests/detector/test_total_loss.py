import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.config import LossConfig, ModelConfig
from cmb_jax.detector import total_loss
from cmb_jax.detector.anchors import Truths, anchor_sizes
from cmb_jax.detector.assignment import assign_lattice
from cmb_jax.detector.network import Detector
from cmb_jax.detector.total_loss import detection_loss
from tests.detector.lattice import lattice_anchors

SMALL = ModelConfig(
    widths=(4, 4, 4),
    encoder_convs=(0, 1, 1),
    decoder_convs=(0, 0),
    fusion_width=4,
    head_width=4,
    anchor_diameters_mm=(2.5, 5.0),
    embedding_dim=4,
    prototypes_per_class=2,
)
LOSS = LossConfig(max_positives=6, max_hard_negatives=5)
SPACING = (1.0, 0.5, 0.5)
SIZES = anchor_sizes(SMALL.anchor_diameters_mm, SPACING)
BATCH, TRUTHS = 8, 3


@functools.cache
def parts(prototypes=True):
    config = dataclasses.replace(SMALL, use_prototypes=prototypes)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Detector(config, rngs=nnx.Rngs(0))))
    key = jax.random.key(0, impl="rbg")
    state = jax.jit(lambda: nnx.state(Detector(config, rngs=nnx.Rngs(key))))()

    def loss(state, image, truths, mimics, patch_valid=None):
        detector = nnx.merge(graph, state)
        total, (terms, _) = detection_loss(
            detector, detector(image), truths, mimics, SPACING, LOSS, patch_valid
        )
        return total, terms

    return graph, state, loss, jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def batch():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(BATCH, 8, 16, 16, 2)).astype(np.float32)
    center = rng.uniform((2, 4, 4), (6, 12, 12), (BATCH, TRUTHS, 3))
    half = rng.uniform(1, 3, (BATCH, TRUTHS, 1)) * np.array([0.5, 1, 1])
    boxes = np.concatenate([center - half, center + half], axis=-1).astype(np.float32)
    valid = rng.random((BATCH, TRUTHS)) < 0.6
    valid[0] = False
    boxes[~valid] = np.nan
    truths = Truths(boxes=jnp.asarray(boxes), valid=jnp.asarray(valid))
    mimics = (rng.random((BATCH, 8, 8, 8)) < 0.05).astype(np.uint8)
    return jnp.asarray(image), truths, jnp.asarray(mimics)


def slowly(detector, maps, truths, mimics):
    """The terms with loops and float64, from the labels of `assign_lattice` alone."""
    objectness = box = concentration = 0.0
    positives = mined = hard = 0
    logits, codes, features = (
        np.asarray(x, np.float64) for x in (maps.objectness, maps.deltas, maps.features)
    )
    anchors = lattice_anchors(logits.shape[1:4], (1, 2, 2), SIZES)
    prototypes = np.asarray(detector.prototypes[...], np.float64)
    kernel, bias = (
        np.asarray(p[...], np.float64) for p in (detector.embedding.kernel, detector.embedding.bias)
    )
    for b in range(logits.shape[0]):
        own = Truths(boxes=jnp.nan_to_num(truths.boxes[b]), valid=truths.valid[b])
        assigned = assign_lattice(
            own, logits.shape[1:4], (1, 2, 2), SIZES, LOSS.positive_iou, LOSS.negative_iou
        )
        label, matched = np.asarray(assigned.label), np.asarray(assigned.matched_index)
        samples = []
        places = list(itertools.product(*(range(n) for n in label.shape)))
        for at in places:
            p = 1 / (1 + np.exp(-logits[b][at]))
            if label[at] == 1:
                positives += 1
                objectness += LOSS.focal_alpha * (1 - p) ** 2 * -np.log(p)
                a, t = anchors[at], np.asarray(truths.boxes[b, matched[at]], np.float64)
                size, real = a[3:] - a[:3], t[3:] - t[:3]
                code = np.concatenate(
                    [((t[3:] + t[:3]) / 2 - (a[3:] + a[:3]) / 2) / size, np.log(real / size)]
                )
                error = np.abs(codes[b][at] - code)
                box += np.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum()
            elif label[at] == 0:
                objectness += (1 - LOSS.focal_alpha) * p**2 * -np.log(1 - p)
        first = [at for at in places if label[at] == 1]
        fit = min(len(first), LOSS.max_positives)
        first = [first[i * len(first) // fit] for i in range(fit)]
        second = sorted(
            (at for at in places if label[at] == 0), key=lambda at: (mimics[b][at[:3]] == 0, -logits[b][at])
        )
        samples += [(at, 0) for at in first]
        samples += [(at, 1) for at in second[: LOSS.max_hard_negatives]]
        hard += len(second[: LOSS.max_hard_negatives])
        for at, y in samples:
            mined += 1
            f = features[b][at[:3]] @ kernel[at[3]] + bias[at[3]]
            d = np.square(f - prototypes).sum(-1)
            own_share = np.exp(-LOSS.prototype.gamma * d[y]).sum() / np.exp(-LOSS.prototype.gamma * d).sum()
            concentration += -np.log(own_share) + LOSS.prototype.pull * d[y].min()
    return objectness / positives, box / positives, concentration / mined, positives, hard


def test_terms_equal_a_slow_loop():
    graph, state, _, step = parts()
    image, truths, mimics = batch()
    (value, terms), _ = step(state, image, truths, mimics)
    detector = nnx.merge(graph, state)
    maps = jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, image)
    objectness, box, concentration, positives, hard = slowly(detector, maps, truths, np.asarray(mimics))
    assert positives > BATCH
    assert (int(terms.positives), int(terms.hard_negatives)) == (positives, hard)
    np.testing.assert_allclose(terms.objectness, objectness, rtol=1e-4)
    np.testing.assert_allclose(terms.box, box, rtol=1e-4)
    np.testing.assert_allclose(terms.concentration, concentration, rtol=1e-4)
    want = objectness + LOSS.box_weight * box + LOSS.concentration_weight * concentration
    np.testing.assert_allclose(value, want, rtol=1e-4)
    np.testing.assert_allclose(terms.total, want, rtol=1e-4)


def test_gradient_along_random_directions():
    _, state, loss, step = parts()
    data = batch()
    (_, _), gradient = step(state, *data)
    value = jax.jit(lambda s: loss(s, *data)[0])
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
        slope = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))
        up, down = (
            float(
                value(
                    jax.tree.unflatten(
                        tree, [x + sign * 2e-3 * d for x, d in zip(leaves, direction, strict=True)]
                    )
                )
            )
            for sign in (1, -1)
        )
        assert slope == pytest.approx((up - down) / 4e-3, rel=0.05, abs=0.02)


def test_every_parameter_learns():
    _, state, _, step = parts()
    (_, _), gradient = step(state, *batch())
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert bool(jnp.isfinite(leaf).all()), path
        assert float(jnp.abs(leaf).max()) > 0, path


def test_without_prototypes_there_is_no_concentration_term():
    _, state, _, step = parts(prototypes=False)
    (value, terms), _ = step(state, *batch())
    assert float(terms.concentration) == int(terms.hard_negatives) == 0
    np.testing.assert_allclose(value, terms.objectness + LOSS.box_weight * terms.box, rtol=1e-6)


def test_the_loss_named_none_neither_mines_nor_embeds(monkeypatch):
    graph, state, _, _ = parts()
    monkeypatch.setattr(Detector, "embed", lambda *unused: pytest.fail("embedded"))

    def terms(state, image, truths, mimics):
        detector = nnx.merge(graph, state)
        config = dataclasses.replace(LOSS, prototype=None)
        return detection_loss(detector, detector(image), truths, mimics, SPACING, config)

    _, (_, samples) = jax.eval_shape(terms, state, *batch())
    assert samples is None


def test_patches_that_do_not_count():
    _, state, loss, _ = parts()
    run = jax.jit(loss)
    image, truths, mimics = batch()
    _, masked = run(state, image, truths, mimics, jnp.arange(BATCH) < 5)
    part = (image[:5], Truths(boxes=truths.boxes[:5], valid=truths.valid[:5]), mimics[:5])
    _, alone = run(state, *part)
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_batch_without_lesions_is_finite():
    _, state, _, step = parts()
    image, truths, mimics = batch()
    empty = Truths(boxes=truths.boxes, valid=jnp.zeros_like(truths.valid))
    (value, terms), gradient = step(state, image, empty, mimics)
    assert int(terms.positives) == 0
    assert float(terms.box) == 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, gradient)))


def test_more_positives_than_slots_keep_the_mean(monkeypatch):
    _, state, loss, _ = parts()
    (_, every) = jax.jit(loss)(state, *batch())
    monkeypatch.setattr(total_loss, "MAX_BOX_ANCHORS", 4)
    (_, some) = jax.jit(lambda *data: loss(*data))(state, *batch())
    assert int(some.positives) == int(every.positives)
    assert 0.3 < float(some.box / every.box) < 3


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_one_and_eight_devices_agree(shape):
    _, state, loss, step = parts()
    data = batch()
    (_, want), want_gradient = step(state, *data)
    mesh = jax.make_mesh(shape, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    deep, flat, everywhere = (NamedSharding(mesh, spec) for spec in (P("data", "space"), P("data"), P()))
    image, truths, mimics = data
    sharded = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(everywhere, deep, Truths(boxes=flat, valid=flat), deep),
        out_shardings=everywhere,
    )
    (_, got), gradient = sharded(state, image, truths, mimics)
    for a, b in zip(jax.tree.leaves((got, gradient)), jax.tree.leaves((want, want_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
