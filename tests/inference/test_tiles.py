"""Tiling: cores partition the volume, and the network's result does not depend on the tile size."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.config import Config, InferenceConfig
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.proposals import BUCKET_CELLS, ProposalFinder, plan_tiles
from tests.tiny import TINY_MODEL


@given(
    size=st.tuples(*[st.integers(1, 400)] * 3),
    tile=st.tuples(*[st.integers(10, 50)] * 3),
    halo=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_cores_partition_the_volume_and_keep_their_halo(size, tile, halo):
    stride = (4, 8, 8)
    reach = tuple(halo * s for s in stride)
    tile = tuple(t * s for t, s in zip(tile, stride, strict=True))
    plan = plan_tiles(size, tile, reach, stride)
    counts = np.zeros([n // s for n, s in zip(plan.padded_shape, stride, strict=True)], int)
    for window in plan.windows:
        region = []
        for axis in range(3):
            start, end = window.start[axis], window.start[axis] + plan.window_shape[axis]
            low, high = window.core_low[axis], window.core_high[axis]
            assert start % stride[axis] == 0
            assert low % stride[axis] == 0
            assert 0 <= start <= low < high <= end <= plan.padded_shape[axis]
            assert low - start >= reach[axis] or start == 0
            assert end - high >= reach[axis] or end == plan.padded_shape[axis]
            region.append(slice(low // stride[axis], high // stride[axis]))
        counts[tuple(region)] += 1
    assert (counts == 1).all()


def test_a_tile_without_a_core_is_refused():
    with pytest.raises(ValueError, match="leaves no core"):
        plan_tiles((400, 400, 400), (40, 40, 40), (24, 24, 24), (8, 8, 8))


@pytest.fixture(scope="module")
def params():
    return params_of(Detector(TINY_MODEL, rngs=nnx.Rngs(1)))


def finder(params, tile):
    config = Config(model=TINY_MODEL, inference=InferenceConfig(tile_shape=tile, candidate_threshold=0.0))
    return ProposalFinder(config, params)


def test_logits_and_detections_do_not_depend_on_the_tile_size(params, rng):
    image = rng.normal(size=(70, 150, 100, 2)).astype(np.float16)
    whole, small = finder(params, (160, 320, 320)), finder(params, (60, 120, 88))
    assert len(whole.plan(image.shape[:3]).windows) == 1
    assert len(small.plan(image.shape[:3]).windows) > 4
    np.testing.assert_allclose(small.objectness(image), whole.objectness(image), atol=1e-4)

    one, many = whole.find(image), small.find(image)
    assert int(one.valid.sum()) > 10
    np.testing.assert_allclose(many.scores[:50], one.scores[:50], atol=1e-4)
    # ties may change places, so boxes are compared as a set
    distance = np.abs(np.asarray(one.boxes)[:50, None] - np.asarray(many.boxes)[None]).max(-1).min(1)
    assert np.median(distance) < 1e-2


def test_candidates_below_the_listing_threshold_are_not_valid(params, rng):
    image = rng.normal(size=(16, 32, 32, 2)).astype(np.float16)
    config = Config(model=TINY_MODEL, inference=InferenceConfig(candidate_threshold=1.0))
    assert not np.asarray(ProposalFinder(config, params).find(image).valid).any()


def test_progress_counts_every_window(params, rng):
    image = rng.normal(size=(70, 150, 100, 2)).astype(np.float16)
    seen = []
    small = finder(params, (60, 120, 88))
    small.find(image, lambda done, of: seen.append((done, of)))
    total = len(small.plan(image.shape[:3]).windows)
    assert seen == [(n + 1, total) for n in range(total)]


def test_found_boxes_do_not_move_with_the_volume_origin(params, rng):
    """A pattern moved by one coarse cell is found moved by as much."""
    pattern = rng.normal(size=(24, 48, 48, 2)).astype(np.float16)
    a, b = np.zeros((2, 64, 128, 128, 2), np.float16)
    a[16:40, 32:80, 32:80] = pattern
    b[24:48, 48:96, 48:96] = pattern
    first, second = (finder(params, (160, 320, 320)).objectness(x) for x in (a, b))
    np.testing.assert_allclose(first[16:40, 16:40, 16:40], second[24:48, 24:48, 24:48], atol=1e-4)


@given(
    size=st.tuples(*[st.integers(1, 400)] * 3),
    smaller=st.tuples(*[st.integers(20, 50)] * 3),
)
@settings(max_examples=100, deadline=None)
def test_padding_depends_on_the_volume_and_not_on_the_tiles(size, smaller):
    stride, reach = (4, 8, 8), (8, 16, 16)
    tile = tuple(n * s for n, s in zip(smaller, stride, strict=True))
    plan = plan_tiles(size, tile, reach, stride)
    assert plan.padded_shape == plan_tiles(size, (400, 400, 400), reach, stride).padded_shape
    for padded, window, length, most, step in zip(
        plan.padded_shape, plan.window_shape, size, tile, stride, strict=True
    ):
        assert padded % (BUCKET_CELLS * step) == 0
        assert 0 <= padded - length < BUCKET_CELLS * step
        assert window == (padded if length <= most else min(padded, most))


def test_heads_fall_into_few_buckets(rng):
    """Adults' heads, cropped to the brain with a margin, on the working grid of 1 x 0.5 x 0.5 mm."""
    brains_mm = rng.normal((140, 172, 138), (7, 8, 7), size=(500, 3)) + 16
    shapes = np.rint(brains_mm / (1.0, 0.5, 0.5)).astype(int)
    plans = [plan_tiles(tuple(shape), (176, 448, 384), (40, 80, 80), (8, 16, 16)) for shape in shapes]
    assert len({tuple(shape) for shape in shapes}) > 400
    assert len({plan.window_shape for plan in plans}) <= 12
    added = [np.prod(plan.padded_shape) / shape.prod() for plan, shape in zip(plans, shapes, strict=True)]
    assert np.mean(added) < 1.3


def test_nothing_is_looked_for_in_the_padding(params):
    config = Config(
        model=TINY_MODEL,
        inference=InferenceConfig(
            candidate_threshold=0.0, max_candidates=10_000, max_detections=10_000, nms_iou=1.0
        ),
    )
    image = np.zeros((10, 20, 22, 2), np.float16)
    found = ProposalFinder(config, params).find(image)
    cells = 10 * 10 * 11
    assert int(found.valid.sum()) == cells * len(TINY_MODEL.anchor_diameters_mm)


def test_lists_are_as_long_as_the_threshold_asks_for(params, rng):
    image = rng.normal(size=(16, 32, 32, 2)).astype(np.float16)

    def found(threshold, **lengths):
        inference = InferenceConfig(candidate_threshold=0.0, nms_iou=1.0, **lengths)
        boxes, complete = ProposalFinder(Config(model=TINY_MODEL, inference=inference), params).find_all(
            image, threshold
        )
        return np.asarray(boxes.scores)[np.asarray(boxes.valid)], complete

    every, complete = found(0.0, max_candidates=65536, max_detections=65536)
    assert complete
    threshold = float(every[499])
    scores, complete = found(threshold, max_candidates=64, max_detections=64)
    assert complete
    assert len(scores) >= 500
    np.testing.assert_allclose(scores[:500], every[:500], atol=1e-6)
    for lengths in ({"max_candidates": 8, "max_detections": 64}, {"max_candidates": 64, "max_detections": 8}):
        scores, complete = found(threshold, **lengths)
        assert not complete
        np.testing.assert_allclose(scores, every[:128], atol=1e-6)
