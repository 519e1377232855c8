"""The loss with all that configs/small.py turns on, against loops in float64."""

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

from cmb_jax.config import LossConfig
from cmb_jax.detector.anchor_losses import cell_classes
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.assignment import assign_nearest
from cmb_jax.detector.network import Detector
from cmb_jax.detector.total_loss import detection_loss
from tests.detector.lattice import lattice_anchors
from tests.detector.test_total_loss import SIZES, SMALL, SPACING, batch

MODEL = dataclasses.replace(SMALL, box_width=5, semantic_head=True)
LOSS = LossConfig(
    assignment="atss",
    ignore_mm=1.0,
    lesion_balance=0.5,
    expected_lesions=2.0,
    focal_alpha=0.75,
    prototype_balance=True,
    mine_peaks=True,
    max_positives=2,
    max_hard_negatives=5,
)


@functools.cache
def parts():
    graph, _ = nnx.split(nnx.eval_shape(lambda: Detector(MODEL, rngs=nnx.Rngs(0))))
    key = jax.random.key(0, impl="rbg")
    state = jax.jit(lambda: nnx.state(Detector(MODEL, rngs=nnx.Rngs(key))))()

    def loss(state, image, truths, mimics, config=LOSS):
        detector = nnx.merge(graph, state)
        return detection_loss(detector, detector(image), truths, mimics, SPACING, config)

    return graph, state, loss


@functools.cache
def data():
    """The batch of test_total, with a third of the truths ignored and mimics of all kinds."""
    image, truths, mimics = batch()
    rng = np.random.default_rng(5)
    ignored = jnp.asarray(rng.random(truths.valid.shape) < 0.35) & truths.valid
    kinds = rng.integers(1, 17, mimics.shape).astype(np.uint8)
    return image, dataclasses.replace(truths, ignored=ignored), mimics * kinds


def slow_labels(truths, b, shape):
    """Label and truth of each anchor, from the positives of `assign_nearest` alone."""
    own = jax.tree.map(lambda leaf: leaf[b], truths)
    found = assign_nearest(own, shape, (1, 2, 2), SIZES, SPACING)
    label = np.array(found.label)
    for cell in np.ndindex(*shape):
        center = (np.array(cell) + 0.5) * (1, 2, 2)
        for box, valid in zip(np.asarray(own.boxes, np.float64), own.valid, strict=True):
            away = np.maximum(np.maximum(box[:3] - center, center - box[3:]), 0) * SPACING
            if valid and np.linalg.norm(away) <= LOSS.ignore_mm:
                label[cell] = np.where(label[cell] == 1, 1, -1)
    return label, np.asarray(found.matched_index)


def slowly(detector, maps, truths, mimics):
    logits, codes, features = (
        np.asarray(x, np.float64) for x in (maps.objectness, maps.deltas, maps.features)
    )
    shape = logits.shape[1:4]
    anchors = lattice_anchors(shape, (1, 2, 2), SIZES)
    prototypes = np.asarray(detector.prototypes[...], np.float64)
    kernel, bias = (
        np.asarray(p[...], np.float64) for p in (detector.embedding.kernel, detector.embedding.bias)
    )

    def concentration_of(b, at, y):
        f = features[b][at[:3]] @ kernel[at[3]] + bias[at[3]]
        d = np.square(f - prototypes).sum(-1)
        share = np.exp(-LOSS.prototype.gamma * d[y]).sum() / np.exp(-LOSS.prototype.gamma * d).sum()
        return -np.log(share) + LOSS.prototype.pull * d[y].min()

    objectness, box, positives, lesions, negatives = 0.0, 0.0, 0, [], []
    for b in range(len(logits)):
        label, matched = slow_labels(truths, b, shape)
        p = 1 / (1 + np.exp(-logits[b]))
        objectness += ((1 - LOSS.focal_alpha) * p**2 * -np.log(1 - p))[label == 0].sum()
        every = [tuple(at) for at in np.argwhere(label == 1)]
        positives += len(every)
        for at in every:
            n = sum(matched[other] == matched[at] for other in every)
            objectness += n**-LOSS.lesion_balance * LOSS.focal_alpha * (1 - p[at]) ** 2 * -np.log(p[at])
            a, t = anchors[at], np.asarray(truths.boxes[b, matched[at]], np.float64)
            size, real = a[3:] - a[:3], t[3:] - t[:3]
            code = np.concatenate([((t[3:] + t[:3]) / 2 - (a[3:] + a[:3]) / 2) / size, np.log(real / size)])
            error = np.abs(codes[b][at] - code)
            box += np.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum()
        fit = min(len(every), LOSS.max_positives)
        chosen = [every[i * len(every) // fit] for i in range(fit)]
        for lesion in {matched[at] for at in chosen}:
            own = [concentration_of(b, at, 0) for at in chosen if matched[at] == lesion]
            lesions.append(np.mean(own))
        masked = np.where(label == 0, logits[b], -np.inf)
        tops = [
            at
            for at in itertools.product(*(range(n) for n in label.shape))
            if label[at] == 0
            and masked[at] == masked[tuple(slice(max(i - 1, 0), i + 2) for i in at[:3])].max()
        ]
        tops.sort(key=lambda at: (mimics[b][at[:3]] == 0, -logits[b][at]))
        negatives += [concentration_of(b, at, 1) for at in tops[: LOSS.max_hard_negatives]]
    semantic, classes = (
        np.asarray(maps.semantic, np.float64),
        np.asarray(cell_classes(truths, mimics, (1, 2, 2))),
    )
    losses = np.log(np.exp(semantic).sum(-1)) - np.take_along_axis(
        semantic, np.maximum(classes, 0)[..., None].astype(int), -1
    ).squeeze(-1)
    return {
        "objectness": objectness / (LOSS.expected_lesions * len(logits)),
        "box": box / positives,
        "concentration": (np.mean(lesions) + np.mean(negatives)) / 2,
        "semantic": np.mean([losses[classes == k].mean() for k in np.unique(classes[classes >= 0])]),
        "positives": positives,
        "hard_negatives": len(negatives),
    }


@functools.cache
def quick():
    _, state, loss = parts()
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state, *data())


def test_terms_equal_a_slow_loop():
    graph, state, _ = parts()
    image, truths, mimics = data()
    (value, (terms, _)), _ = quick()
    maps = jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, image)
    want = slowly(nnx.merge(graph, state), maps, truths, np.asarray(mimics))
    assert want["positives"] > 10
    for name, expected in want.items():
        np.testing.assert_allclose(getattr(terms, name), expected, rtol=1e-4, err_msg=name)
    total = (
        want["objectness"]
        + LOSS.box_weight * want["box"]
        + LOSS.concentration_weight * want["concentration"]
        + LOSS.semantic_weight * want["semantic"]
    )
    np.testing.assert_allclose(value, total, rtol=1e-4)


def test_every_parameter_learns():
    _, gradient = quick()
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert bool(jnp.isfinite(leaf).all()), path
        assert float(jnp.abs(leaf).max()) > 0, path


@pytest.mark.parametrize("settings", [{}, {"assignment": "iou"}, {"assignment": "iou", "ignore_mm": 0.0}])
def test_what_lies_in_an_ignored_box_changes_nothing(settings):
    """High and low logits of the anchors inside an ignored box are neither right nor wrong."""
    graph, state, _ = parts()
    image, _, mimics = data()
    box = jnp.asarray([2.0, 4.0, 4.0, 6.0, 12.0, 12.0])
    alone = Truths(
        boxes=jnp.broadcast_to(box, (len(image), 1, 6)),
        valid=jnp.ones((len(image), 1), bool),
        ignored=jnp.ones((len(image), 1), bool),
    )
    config = dataclasses.replace(LOSS, mine_peaks=False, max_hard_negatives=10**4, **settings)
    inside = (slice(None), slice(2, 6), slice(2, 6), slice(2, 6))
    detector = nnx.merge(graph, state)
    maps = detector(image)

    def total(truths, logit):
        changed = dataclasses.replace(maps, objectness=maps.objectness.at[inside].set(logit), semantic=None)
        value, (terms, _) = detection_loss(detector, changed, truths, mimics, SPACING, config)
        return float(value), int(terms.positives)

    low, high = total(alone, -5.0), total(alone, 5.0)
    assert low[1] == high[1] == 0
    assert low[0] == pytest.approx(high[0], rel=1e-5)
    nothing = dataclasses.replace(alone, valid=jnp.zeros_like(alone.valid), ignored=None)
    assert total(nothing, 5.0)[0] > 1.5 * total(nothing, -5.0)[0]
    counting = dataclasses.replace(alone, ignored=None)
    assert total(counting, -5.0)[1] > 0


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_one_and_eight_devices_agree(shape):
    _, state, loss = parts()
    (_, (want, _)), want_gradient = quick()
    mesh = jax.make_mesh(shape, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    deep, flat, everywhere = (NamedSharding(mesh, spec) for spec in (P("data", "space"), P("data"), P()))
    sharded = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(everywhere, deep, Truths(boxes=flat, valid=flat, ignored=flat), deep),
        out_shardings=everywhere,
    )
    (_, (got, _)), gradient = sharded(state, *data())
    for a, b in zip(jax.tree.leaves((got, gradient)), jax.tree.leaves((want, want_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
