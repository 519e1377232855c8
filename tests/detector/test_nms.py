import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from cmb_jax.detector import nms
from cmb_jax.detector.nms import nms_3d


def slow_iou(a, b):
    edges = [max(0.0, min(a[i + 3], b[i + 3]) - max(a[i], b[i])) for i in range(3)]
    inter = edges[0] * edges[1] * edges[2]
    union = sum(np.prod([max(0.0, c[i + 3] - c[i]) for i in range(3)]) for c in (a, b)) - inter
    return inter / union if union > 0 else 0.0


def slow_greedy(count, scores, valid, max_output, drops):
    """The textbook loop: take the best, drop what it drops, again."""
    left = [i for i in range(count) if valid[i]]
    kept = []
    while left and len(kept) < max_output:
        best = max(left, key=lambda i: (scores[i], -i))
        kept.append(best)
        left = [i for i in left if i != best and not drops(best, i)]
    return kept


def slow_nms(boxes, scores, valid, threshold, max_output):
    boxes = np.asarray(boxes, np.float64)
    return slow_greedy(
        len(boxes), scores, valid, max_output, lambda a, b: slow_iou(boxes[a], boxes[b]) > threshold
    )


def kept_indices(result):
    valid = np.asarray(result.valid)
    assert not valid[valid.sum() :].any()  # kept rows come first
    assert not np.asarray(result.boxes)[~valid].any()
    assert not np.asarray(result.scores)[~valid].any()
    return np.asarray(result.indices)[valid].tolist()


half = st.integers(-10, 10).map(lambda v: v / 2)
extent = st.integers(0, 8).map(lambda v: v / 2)
# Few distinct scores: many ties. Corners on half voxels: every IoU is a ratio of small integers, and float32
# and float64 agree on all comparisons with a threshold that is a ratio of two small integers itself.
candidate = st.tuples(half, half, half, extent, extent, extent, st.integers(0, 3), st.integers(0, 4))
thresholds = st.sampled_from([0.0, 0.125, 0.25, 1 / 3, 0.375, 0.5, 0.6, 0.75, 1.0])
COUNT = 24


def unpack(rows):
    table = np.array(rows, np.float32).reshape(-1, 8)
    boxes = np.concatenate([table[:, :3], table[:, :3] + table[:, 3:6]], axis=1)
    return boxes, table[:, 6] / 4, table[:, 7] > 0


@pytest.fixture(params=[512, 5], ids=["one-block", "small-blocks"])
def block(request, monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(nms, "BLOCK", request.param)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("max_output", [COUNT, 4])
def test_equals_the_textbook_loop(block, max_output):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(candidate, min_size=COUNT, max_size=COUNT), thresholds)
    def check(rows, threshold):
        boxes, scores, valid = unpack(rows)
        result = nms_3d(boxes, scores, threshold, max_output, valid)
        expected = slow_nms(boxes, scores, valid, np.float32(threshold), max_output)
        assert kept_indices(result) == expected
        assert np.array_equal(np.asarray(result.boxes)[: len(expected)], boxes[expected])
        assert np.array_equal(np.asarray(result.scores)[: len(expected)], scores[expected])

    check()


def random_candidates(rng, count, spread):
    near = rng.uniform(-spread, spread, (count, 3))
    boxes = np.concatenate([near, near + rng.uniform(1, 8, (count, 3))], axis=1).astype(np.float32)
    return boxes, rng.permutation(count).astype(np.float32) / count


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_many_blocks_equal_monai(rng, threshold):
    from monai.data.box_utils import non_max_suppression

    boxes, scores = random_candidates(rng, 600, 3)
    result = kept_indices(nms_3d(boxes, scores, threshold, 600))
    monai = non_max_suppression(torch.tensor(boxes), torch.tensor(scores), threshold)
    assert result == monai.tolist()
    assert len(result) < 600


def test_chain_keeps_the_far_end():
    # A-B and B-C overlap by 3/7, A-C by 1/9: B falls to A and must not take C with it.
    boxes = jnp.array([[0.0, 0, 0, 10, 1, 1], [4, 0, 0, 14, 1, 1], [8, 0, 0, 18, 1, 1]])
    scores = jnp.array([0.9, 0.8, 0.7])
    assert kept_indices(nms_3d(boxes, scores, 0.3, 3)) == [0, 2]
    assert kept_indices(nms_3d(boxes, scores, 0.1, 3)) == [0]


def test_long_chain(block):
    start = jnp.arange(40.0)[:, None] * jnp.array([4.0, 0, 0])
    boxes = jnp.concatenate([start, start + jnp.array([10.0, 1, 1])], axis=1)  # neighbors overlap by 3/7
    assert kept_indices(nms_3d(boxes, -jnp.arange(40.0), 0.3, 40)) == list(range(0, 40, 2))


def test_suppression_is_strict_at_the_threshold():
    boxes = jnp.array([[0.0, 0, 0, 2, 2, 2], [0, 0, 0, 1, 2, 2]])  # IoU exactly 0.5
    scores = jnp.array([0.9, 0.8])
    assert kept_indices(nms_3d(boxes, scores, 0.5, 2)) == [0, 1]
    assert kept_indices(nms_3d(boxes, scores, np.nextafter(np.float32(0.5), np.float32(0)), 2)) == [0]


def test_ties_go_to_the_lower_index():
    boxes = jnp.tile(jnp.array([[0.0, 0, 0, 2, 2, 2]]), (5, 1))
    assert kept_indices(nms_3d(boxes, jnp.full(5, 0.5), 0.1, 5)) == [0]
    assert kept_indices(nms_3d(boxes, jnp.full(5, 0.5), 0.1, 5, jnp.arange(5) > 1)) == [2]


def test_negative_and_zero_coordinates_are_ordinary():
    boxes = jnp.array([[-9.0, -9, -9, -7, -7, -7], [-2, -2, -2, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert kept_indices(nms_3d(boxes, jnp.array([0.1, 0.2, 0.3]), 0.1, 3)) == [2, 1, 0]


def test_empty_boxes_neither_suppress_nor_fall():
    boxes = jnp.tile(jnp.array([[1.0, 1, 1, 1, 1, 1]]), (3, 1))
    assert kept_indices(nms_3d(boxes, jnp.zeros(3), 0.0, 3)) == [0, 1, 2]


def test_padding_holds_anything():
    boxes = jnp.full((6, 6), jnp.nan).at[2].set(jnp.array([0.0, 0, 0, 1, 1, 1]))
    scores = jnp.full((6,), jnp.inf).at[2].set(0.1)
    assert kept_indices(nms_3d(boxes, scores, 0.1, 3, jnp.arange(6) == 2)) == [2]


def test_all_padded_and_none_at_all():
    nothing = nms_3d(jnp.ones((6, 6)), jnp.ones(6), 0.1, 3, jnp.zeros(6, bool))
    assert kept_indices(nothing) == []
    assert kept_indices(nms_3d(jnp.zeros((0, 6)), jnp.zeros(0), 0.1, 3)) == []


def test_odd_scores():
    boxes = jnp.arange(4.0)[:, None] * 10 + jnp.array([0.0, 0, 0, 1, 1, 1])
    scores = jnp.array([-jnp.inf, jnp.nan, -1.0, jnp.inf])
    assert kept_indices(nms_3d(boxes, scores, 0.1, 4)) == [3, 2, 0]


def test_more_output_rows_than_candidates():
    result = nms_3d(jnp.array([[0.0, 0, 0, 1, 1, 1]]), jnp.ones(1), 0.1, 7)
    assert result.boxes.shape == (7, 6)
    assert kept_indices(result) == [0]


def test_maps_over_a_batch(rng, block):
    boxes, scores = zip(*[random_candidates(rng, 40, 4) for _ in range(5)], strict=True)
    boxes, scores = jnp.array(boxes), jnp.array(scores)
    valid = jnp.array(rng.random((5, 40)) < np.array([0, 0.1, 0.5, 0.9, 1])[:, None])
    together = jax.vmap(lambda b, s, v: nms_3d(b, s, 0.2, 16, v))(boxes, scores, valid)
    for i in range(5):
        single = nms_3d(boxes[i], scores[i], 0.2, 16, valid[i])
        jax.tree.map(lambda t, s, i=i: np.testing.assert_array_equal(t[i], s), together, single)


def test_one_compilation_for_all_thresholds(rng):
    boxes, scores = random_candidates(rng, 30, 4)
    traced = jax.jit(chex.assert_max_traces(lambda b, s, t: nms_3d(b, s, t, 8), n=1))
    for threshold in (0.1, 0.5):
        traced(boxes, scores, threshold)


def test_lowers_for_gpu_and_tpu():
    spec = (jax.ShapeDtypeStruct((2000, 6), jnp.float32), jax.ShapeDtypeStruct((2000,), jnp.float32))
    run = jax.jit(lambda b, s: nms_3d(b, s, 0.1, 64))
    assert export.export(run, platforms=["cuda", "tpu"])(*spec).platforms == ("cuda", "tpu")
