import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.detector.anchors import Truths, anchor_sizes
from cmb_jax.detector.assignment import assign_lattice

GRID, STRIDE = (5, 4, 6), (1, 2, 2)
SIZES = np.array([[2, 4, 4], [4, 8, 8], [3, 2, 2]], np.float32)
POSITIVE, NEGATIVE = 0.375, 0.125  # exact in binary, as all overlaps here are ratios of small integers


def slow_iou(a, b):
    edges = [max(0.0, min(a[i + 3], b[i + 3]) - max(a[i], b[i])) for i in range(3)]
    inter = edges[0] * edges[1] * edges[2]
    volumes = [np.prod([max(0.0, c[i + 3] - c[i]) for i in range(3)]) for c in (a, b)]
    union = volumes[0] + volumes[1] - inter
    return inter / union if union > 0 else 0.0


def slow_assign(boxes, valid, grid, stride, sizes, positive, negative):
    """The rule of the docstring, one anchor and one truth at a time in float64."""
    shape = (*grid, len(sizes))
    iou = np.zeros((len(boxes), *shape))
    for m in np.flatnonzero(valid):
        for z, y, x, a in np.ndindex(shape):
            center = (np.array([z, y, x]) + 0.5) * stride
            anchor = np.concatenate([center - sizes[a] / 2, center + sizes[a] / 2])
            iou[m, z, y, x, a] = slow_iou(anchor, boxes[m].astype(np.float64))
    best, matched = iou.max(axis=0), iou.argmax(axis=0)
    label = np.where(best >= positive, 1, np.where(best < negative, 0, -1))
    taken = []
    for m in np.flatnonzero(valid):
        free = iou[m].reshape(-1).copy()
        free[taken] = 0
        if free.max() > 0:
            taken.append(int(free.argmax()))
            label.reshape(-1)[taken[-1]] = 1
            matched.reshape(-1)[taken[-1]] = m
    return label, matched


coordinate = st.integers(-8, 28).map(lambda v: v / 2)
truth = st.tuples(coordinate, coordinate, coordinate, *[st.integers(0, 14).map(lambda v: v / 2)] * 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(truth, st.booleans()), min_size=4, max_size=4), st.booleans())
def test_equals_the_slow_reference(rows, same):
    corner = np.array([row[0] for row in rows], np.float32)
    boxes = np.concatenate([corner[:, :3], corner[:, :3] + corner[:, 3:]], axis=1)
    if same:
        boxes[1:3] = boxes[0]  # several truths claim one anchor
    valid = np.array([row[1] for row in rows])
    result = assign_lattice(
        Truths(boxes=jnp.array(boxes), valid=jnp.array(valid)), GRID, STRIDE, SIZES, POSITIVE, NEGATIVE
    )
    label, matched = slow_assign(boxes, valid, GRID, STRIDE, SIZES, POSITIVE, NEGATIVE)
    np.testing.assert_array_equal(result.label, label)
    np.testing.assert_array_equal(np.asarray(result.matched_index)[label == 1], matched[label == 1])


def make_truths(boxes, count):
    padded = np.full((count, 6), np.nan, np.float32)  # padding must not leak
    padded[: len(boxes)] = np.reshape(boxes, (-1, 6))
    return Truths(boxes=jnp.array(padded), valid=jnp.arange(count) < len(boxes))


def test_all_padded_is_all_negative():
    result = assign_lattice(make_truths([], 3), GRID, STRIDE, SIZES, POSITIVE, NEGATIVE)
    assert not np.asarray(result.label).any()
    assert not np.asarray(result.matched_index).any()


def test_thresholds_at_equality():
    # Anchors (2, 4, 4) at cells z = 2, 3, 4, y = x = 1 each cover half of this truth; the first is forced.
    truths = make_truths([[1.5, 1, 1, 5.5, 5, 5]], 2)
    column = (slice(2, 5), 1, 1, 0)
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))

    def labels(positive, negative):
        return assign_lattice(truths, (6, 4, 4), STRIDE, SIZES[:1], positive, negative).label[column].tolist()

    assert labels(0.5, 0.1) == [1, 1, 1]  # at the threshold: positive
    assert labels(above, 0.5) == [1, -1, -1]  # not below the lower threshold: ignored
    assert labels(above, above) == [1, 0, 0]


def test_tiny_truth_gets_a_positive():
    result = assign_lattice(make_truths([[2.2, 3.1, 3.3, 2.4, 3.2, 3.6]], 4), GRID, STRIDE, SIZES, 0.35, 0.15)
    assert (np.asarray(result.label) == 1).sum() == 1


def test_identical_truths_each_keep_a_positive():
    box = [1.0, 2, 2, 3, 6, 6]
    result = assign_lattice(make_truths([box] * 6, 8), GRID, STRIDE, SIZES, 0.99, 0.15)
    matched = np.asarray(result.matched_index)[np.asarray(result.label) == 1]
    assert set(matched) == set(range(6))


def test_truths_behind_the_count_are_padding():
    box = [1.0, 2, 2, 3, 6, 6]
    for count in (2, 3, 8):
        counted = assign_lattice(
            make_truths([box, [0, 0, 0, 2, 3, 3]], 8), GRID, STRIDE, SIZES, 0.35, 0.15, jnp.int32(count)
        )
        whole = assign_lattice(make_truths([box, [0, 0, 0, 2, 3, 3]], 8), GRID, STRIDE, SIZES, 0.35, 0.15)
        jax.tree.map(np.testing.assert_array_equal, counted, whole)


def test_maps_over_a_batch(rng):
    near = rng.uniform(0, 8, (3, 4, 3))
    boxes = np.concatenate([near, near + rng.uniform(1, 5, (3, 4, 3))], axis=-1).astype(np.float32)
    batch = Truths(boxes=jnp.array(boxes), valid=jnp.array(rng.random((3, 4)) < 0.7))

    def run(truths):
        return assign_lattice(truths, GRID, STRIDE, SIZES, 0.35, 0.15)

    together = jax.vmap(run)(batch)
    for b in range(3):
        single = run(jax.tree.map(lambda leaf, b=b: leaf[b], batch))
        jax.tree.map(lambda t, s, b=b: np.testing.assert_array_equal(t[b], s), together, single)


def test_rejects_wrong_shapes():
    with pytest.raises(AssertionError):
        assign_lattice(
            Truths(boxes=jnp.zeros((2, 4)), valid=jnp.ones(2, bool)), GRID, STRIDE, SIZES, 0.3, 0.1
        )


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    near = rng.uniform(0, 100, (24, 3)) * [0.5, 1, 1]
    boxes = np.concatenate([near, near + rng.uniform(2, 10, (24, 3))], axis=1)
    truths = Truths(boxes=jnp.array(boxes, jnp.float32), valid=jnp.ones(24, bool))
    sizes = anchor_sizes((2.5, 4, 6, 10), (1, 0.5, 0.5))
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(assign_lattice(truths, (64, 64, 64), (1, 2, 2), sizes, 0.35, 0.15))
        print(time.perf_counter() - start)
