"""Weights of positive anchors by lesion, and the draw of negatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmb_jax.config import LossConfig
from cmb_jax.detector.anchor_losses import drawn_negatives, hardest, lesion_weights
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.assignment import assign_lattice
from cmb_jax.detector.total_loss import detection_loss
from tests.detector.test_total_loss import LOSS, SIZES, SPACING, batch, parts


def slow_weights(truth, valid, balance):
    """A loop over anchors, float64."""
    weights = np.zeros(truth.shape)
    for b, s in np.ndindex(*truth.shape):
        if valid[b, s]:
            anchors = sum(valid[b, t] and truth[b, t] == truth[b, s] for t in range(truth.shape[1]))
            weights[b, s] = anchors**-balance
    return weights * valid.sum() / weights.sum()


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_weights_against_a_loop(balance):
    rng = np.random.default_rng(3)
    truth, valid = rng.integers(0, 5, (3, 40)), rng.random((3, 40)) < 0.7
    ours = lesion_weights(jnp.asarray(truth), jnp.asarray(valid), 5, balance, mean_one=True)
    np.testing.assert_allclose(ours, slow_weights(truth, valid, balance), rtol=1e-5)


def test_balance_one_makes_all_lesions_weigh_the_same():
    truth = jnp.asarray([[0] * 30 + [1] * 2 + [2]])
    weights = np.asarray(lesion_weights(truth, jnp.ones((1, 33), bool), 3, 1.0, mean_one=True))[0]
    assert weights[:30].sum() == pytest.approx(11, rel=1e-5)
    assert weights[30:32].sum() == pytest.approx(11, rel=1e-5)
    assert weights[32] == pytest.approx(11, rel=1e-5)


def test_no_anchor_at_all_weighs_nothing():
    for mean_one in (False, True):
        nothing = (jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4), bool), 3, 1.0)
        assert not np.any(lesion_weights(*nothing, mean_one=mean_one))


def test_draw_is_a_subset_of_the_wanted_mean_number():
    negative = jax.random.uniform(jax.random.key(99), (4, 20, 20, 20)) < 0.5
    drawn = np.stack([drawn_negatives(jax.random.key(seed), negative, 200) for seed in range(20)])
    assert not np.any(drawn & ~np.asarray(negative))
    # 80 draws of a number with mean 200 and standard deviation below 14.2
    assert drawn.sum(axis=(2, 3, 4)).mean() == pytest.approx(200, abs=4 * 14.2 / np.sqrt(80))
    # every negative has its turn: 0.05 a draw, 20 draws; all 16 000 together
    assert drawn.any(axis=0).sum() / np.asarray(negative).sum() == pytest.approx(1 - 0.95**20, abs=0.02)


def test_all_are_taken_where_there_are_fewer():
    negative = jnp.zeros((1, 8, 8, 8), bool).at[0, 1, 2, :].set(True)
    np.testing.assert_array_equal(drawn_negatives(jax.random.key(1), negative, 50), negative)


def loss_with(**settings):
    """Objectness term of the small detector on the batch of test_total, and what it was made of."""
    graph, state, *_ = parts()
    image, truths, mimics = batch()
    detector = nnx.merge(graph, state)
    maps = detector(image)
    config = dataclasses.replace(LOSS, **settings)
    _, (terms, _) = detection_loss(detector, maps, truths, mimics, SPACING, config, key=jax.random.key(7))
    return float(terms.objectness), np.asarray(maps.objectness, np.float64), truths


def test_objectness_with_lesions_alike_against_a_loop():
    ours, logits, truths = loss_with(lesion_balance=1.0)
    total, positives, weights_sum, found = 0.0, 0, 0.0, []
    for b in range(len(logits)):
        own = Truths(boxes=jnp.nan_to_num(truths.boxes[b]), valid=truths.valid[b])
        assigned = assign_lattice(
            own, logits.shape[1:4], (1, 2, 2), SIZES, LOSS.positive_iou, LOSS.negative_iou
        )
        label, matched = np.asarray(assigned.label), np.asarray(assigned.matched_index)
        p = 1 / (1 + np.exp(-logits[b]))
        total += ((1 - LOSS.focal_alpha) * p**2 * -np.log(1 - p))[label == 0].sum()
        each = (LOSS.focal_alpha * (1 - p) ** 2 * -np.log(p))[label == 1]
        lesion = matched[label == 1]
        share = 1 / np.array([(lesion == which).sum() for which in lesion])
        found.append((share * each).sum())
        positives += len(each)
        weights_sum += share.sum()
    expected = (total + sum(found) * positives / weights_sum) / positives
    assert ours == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_divided_by_expected_lesions_against_a_loop(balance):
    """A negative weighs the same in every batch, and a lesion whatever the others are."""
    ours, logits, truths = loss_with(expected_lesions=1.5, lesion_balance=balance)
    total = 0.0
    for b in range(len(logits)):
        own = Truths(boxes=jnp.nan_to_num(truths.boxes[b]), valid=truths.valid[b])
        assigned = assign_lattice(
            own, logits.shape[1:4], (1, 2, 2), SIZES, LOSS.positive_iou, LOSS.negative_iou
        )
        label, matched = np.asarray(assigned.label), np.asarray(assigned.matched_index)
        p = 1 / (1 + np.exp(-logits[b]))
        total += ((1 - LOSS.focal_alpha) * p**2 * -np.log(1 - p))[label == 0].sum()
        each = (LOSS.focal_alpha * (1 - p) ** 2 * -np.log(p))[label == 1]
        lesion = matched[label == 1]
        total += sum(e * (lesion == which).sum() ** -balance for e, which in zip(each, lesion, strict=True))
    assert ours == pytest.approx(total / (1.5 * len(logits)), rel=1e-5)


def test_the_hardest_negatives(rng):
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    negative = rng.random(logits.shape) < 0.7
    found = np.asarray(hardest(jnp.asarray(negative), jnp.asarray(logits), 9))
    for b in range(2):
        want = np.sort(logits[b][negative[b]])[-9:]
        np.testing.assert_array_equal(np.sort(logits[b][found[b]]), want)
    np.testing.assert_array_equal(hardest(jnp.asarray(negative), jnp.asarray(logits), 10**6), negative)


def test_negatives_drawn_from_a_pool_are_harder():
    anywhere, *_ = loss_with(sampled_negatives=20, focal_gamma=0.0)
    pool, *_ = loss_with(sampled_negatives=20, negative_pool=2, focal_gamma=0.0)
    everything, *_ = loss_with(sampled_negatives=20, negative_pool=10**4, focal_gamma=0.0)
    assert pool > anywhere == pytest.approx(everything, rel=1e-6)


def test_sampled_negatives_leave_the_positives_alone():
    everything, *_ = loss_with()
    sampled, *_ = loss_with(sampled_negatives=10)
    more_than_there_are, *_ = loss_with(sampled_negatives=10**9)
    assert more_than_there_are == pytest.approx(everything, rel=1e-6)
    positives_only, *_ = loss_with(sampled_negatives=1, negative_iou=0.0)  # no negative at all
    assert positives_only < sampled < everything


def test_sampling_needs_a_key():
    graph, state, *_ = parts()
    image, truths, mimics = batch()
    detector = nnx.merge(graph, state)
    config = dataclasses.replace(LOSS, sampled_negatives=10)
    with pytest.raises(ValueError, match="give a key"):
        detection_loss(detector, detector(image), truths, mimics, SPACING, config)


@pytest.mark.parametrize(
    "wrong",
    [{"lesion_balance": 1.5}, {"sampled_negatives": -1}, {"expected_lesions": -1.0}, {"atss_candidates": 0}],
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match="loss\\."):
        LossConfig(**wrong)
