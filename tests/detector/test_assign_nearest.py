"""Adaptive training sample selection and the cells near truths, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.assignment import assign_nearest, inside_truths, near_truths
from tests.detector.test_assignment import slow_iou

GRID, STRIDE, SPACING = (5, 4, 6), (1, 2, 2), (1.0, 0.5, 0.5)
SIZES = np.array([[2, 4, 4], [4, 8, 8]], np.float32)
SHAPE = (*GRID, len(SIZES))


def anchor(z, y, x, a):
    center = (np.array([z, y, x]) + 0.5) * STRIDE
    return np.concatenate([center - SIZES[a] / 2, center + SIZES[a] / 2])


def slow_nearest(boxes, counts, wanted):
    """Label, matched truth, and the least distance of a candidate's IoU to its truth's threshold."""
    best, matched, margin = np.zeros(SHAPE), np.zeros(SHAPE, int), np.inf
    for m in np.flatnonzero(counts):
        box = boxes[m].astype(np.float64)
        away = np.array([
            np.square(((np.array(cell) + 0.5) * STRIDE - (box[:3] + box[3:]) / 2) * SPACING).sum()
            for cell in np.ndindex(GRID)
        ])  # fmt: skip
        nearest = np.argsort(away, kind="stable")[:wanted]
        places = [(*np.unravel_index(cell, GRID), a) for a in range(len(SIZES)) for cell in nearest]
        iou = np.array([slow_iou(anchor(*place), box) for place in places])
        threshold = min(iou.mean() + iou.std(ddof=1), iou.max())
        if 0 < threshold < iou.max():
            margin = min(margin, np.abs(iou - threshold).min())
        for place, value in zip(places, iou, strict=True):
            if value >= threshold and value > best[place]:
                best[place], matched[place] = value, m
    return (best > 0).astype(int), matched, margin


coordinate = st.integers(-6, 26).map(lambda v: v / 2)
truth = st.tuples(coordinate, coordinate, coordinate, *[st.integers(0, 14).map(lambda v: v / 2)] * 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(truth, st.booleans(), st.booleans()), min_size=4, max_size=4),
    st.booleans(),
    st.sampled_from([1, 4, 9]),
)
def test_equals_the_slow_reference(rows, same, wanted):
    corner = np.array([row[0] for row in rows], np.float32)
    boxes = np.concatenate([corner[:, :3], corner[:, :3] + corner[:, 3:]], axis=1)
    if same:
        boxes[1:3] = boxes[0]  # several truths want the same anchors
    valid, ignored = (np.array([row[i] for row in rows]) for i in (1, 2))
    label, matched, margin = slow_nearest(boxes, valid & ~ignored, wanted)
    assume(margin > 1e-5)  # at the threshold rounding decides
    boxes[~valid] = np.nan
    truths = Truths(boxes=jnp.array(boxes), valid=jnp.array(valid), ignored=jnp.array(ignored))
    found = assign_nearest(truths, GRID, STRIDE, SIZES, SPACING, wanted)
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(np.asarray(found.matched_index)[label == 1], matched[label == 1])


@pytest.mark.parametrize("diameter_mm", [1.0, 2.0, 3.5, 6.0, 10.0])
def test_a_lesion_of_any_size_has_one_to_a_few_positives(rng, diameter_mm):
    sizes = np.array([[d, 2 * d, 2 * d] for d in (2.5, 4.0, 6.0, 10.0)], np.float32)
    half = diameter_mm / 2 / np.array(SPACING)
    for _ in range(10):
        center = rng.uniform((8, 16, 16), (16, 32, 32))
        box = jnp.asarray(np.concatenate([center - half, center + half]), jnp.float32)[None]
        found = assign_nearest(
            Truths(boxes=box, valid=jnp.ones(1, bool)), (24, 24, 24), STRIDE, sizes, SPACING
        )
        assert 1 <= int((found.label == 1).sum()) <= 8


def test_maps_over_a_batch(rng):
    near = rng.uniform(0, 8, (3, 4, 3))
    boxes = np.concatenate([near, near + rng.uniform(1, 5, (3, 4, 3))], axis=-1).astype(np.float32)
    batch = Truths(boxes=jnp.array(boxes), valid=jnp.array(rng.random((3, 4)) < 0.7))

    def run(truths):
        return assign_nearest(truths, GRID, STRIDE, SIZES, SPACING)

    together = jax.vmap(run)(batch)
    for b in range(3):
        single = run(jax.tree.map(lambda leaf, b=b: leaf[b], batch))
        jax.tree.map(lambda t, s, b=b: np.testing.assert_array_equal(t[b], s), together, single)


def test_cells_near_and_inside_against_a_loop(rng):
    near = rng.uniform(-2, 8, (4, 3))
    boxes = np.concatenate([near, near + rng.uniform(1, 5, (4, 3))], axis=-1)
    radius = np.array([1.0, -1.0, 0.0, 9.0])
    count = 3  # the last is not looked at
    around = near_truths(jnp.asarray(boxes), jnp.asarray(radius), GRID, STRIDE, SPACING, jnp.int32(count))
    inside = inside_truths(jnp.asarray(boxes), jnp.asarray(radius >= 0), GRID, STRIDE, jnp.int32(count))
    for cell in np.ndindex(GRID):
        center = (np.array(cell) + 0.5) * STRIDE
        far = [
            np.linalg.norm(np.maximum(np.maximum(b[:3] - center, center - b[3:]), 0) * SPACING) for b in boxes
        ]
        assert around[cell] == any(radius[m] >= 0 and far[m] <= radius[m] for m in range(count))
        scaled = [np.square((center - (b[:3] + b[3:]) / 2) / ((b[3:] - b[:3]) / 2)).sum() for b in boxes]
        assert inside[cell] == any(radius[m] >= 0 and scaled[m] <= 1 for m in range(count))
    assert 0 < int(around.sum()) < around.size
