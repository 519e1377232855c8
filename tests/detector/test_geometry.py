import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmb_jax.detector.anchors import box_centers, box_sizes, boxes_from_centers, pairwise_iou, volume


def boxes_on_half_voxels(count):
    """(count, 6) boxes with half-integer corners around 0, empty and inverted ones among them."""
    return hnp.arrays(
        np.float32, (count, 6), elements=st.integers(-12, 12).map(lambda v: v / 2), fill=st.nothing()
    )


def slow_iou(a, b):
    """IoU of two boxes by counting eighth-voxels (half-voxel cells)."""
    low = np.floor(2 * np.minimum(a, b)[:3].clip(-6)).min()
    axes = []
    for axis in range(3):
        cell = np.arange(low, 14) / 2 + 0.25
        axes.append([(cell > box[axis]) & (cell < box[axis + 3]) for box in (a, b)])
    in_a = axes[0][0][:, None, None] & axes[1][0][:, None] & axes[2][0]
    in_b = axes[0][1][:, None, None] & axes[1][1][:, None] & axes[2][1]
    union = (in_a | in_b).sum()
    return (in_a & in_b).sum() / union if union else 0.0


@settings(max_examples=60, deadline=None)
@given(boxes_on_half_voxels(3), boxes_on_half_voxels(4))
def test_iou_equals_counted_cells(a, b):
    expected = np.array([[slow_iou(p, q) for q in b] for p in a])
    np.testing.assert_allclose(pairwise_iou(a, b), expected, rtol=1e-6)


def test_iou_of_empty_boxes_is_zero_not_nan():
    empty = jnp.array([[1.0, 1, 1, 1, 1, 1], [3, 3, 3, 2, 2, 2], [1, 1, 1, 5, 5, 1]])
    assert np.array_equal(pairwise_iou(empty, empty), np.zeros((3, 3)))
    assert np.array_equal(volume(empty), np.zeros(3))


def test_known_overlap():
    a = jnp.array([[0.0, 0, 0, 2, 2, 2]])
    b = jnp.array([[-1.0, 0, 0, 1, 2, 2]])
    np.testing.assert_allclose(pairwise_iou(a, b), [[4 / 12]], rtol=1e-7)


@settings(max_examples=30, deadline=None)
@given(boxes_on_half_voxels(5))
def test_centers_and_sizes_round_trip(boxes):
    near, far = np.minimum(boxes[:, :3], boxes[:, 3:]), np.maximum(boxes[:, :3], boxes[:, 3:])
    proper = np.concatenate([near, far], axis=1)
    assert np.array_equal(boxes_from_centers(box_centers(proper), box_sizes(proper)), proper)
