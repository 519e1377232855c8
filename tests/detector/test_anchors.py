import jax.numpy as jnp
import numpy as np

from cmb_jax.detector.anchors import (
    anchor_sizes,
    axis_centers,
    box_centers,
    box_sizes,
    boxes_from_centers,
)
from cmb_jax.detector.total_loss import anchors_at
from tests.detector.lattice import lattice_anchors


def test_sizes_in_voxels_of_the_working_grid():
    assert np.array_equal(anchor_sizes((2.5, 4.0), (1.0, 0.5, 0.5)), [[2.5, 5, 5], [4, 8, 8]])


def test_centers_lie_in_the_middle_of_the_cells_voxels():
    for cells, stride in ((2, 1), (3, 2), (4, 2)):
        expected = [np.mean([stride * i, stride * i + stride]) for i in range(cells)]
        assert np.array_equal(axis_centers(cells, stride), expected)


def test_boxes_have_their_size_around_their_center(rng):
    centers, sizes = rng.uniform(-5, 5, (7, 1, 3)), anchor_sizes((2.5, 4.0, 10.0), (1.0, 0.5, 0.5))
    boxes = boxes_from_centers(jnp.asarray(centers, jnp.float32), jnp.asarray(sizes))
    assert boxes.shape == (7, 3, 6)
    np.testing.assert_allclose(box_sizes(boxes), np.broadcast_to(sizes, (7, 3, 3)), rtol=1e-5)
    np.testing.assert_allclose(box_centers(boxes), np.broadcast_to(centers, (7, 3, 3)), rtol=1e-5, atol=1e-5)


def test_anchors_by_number_are_those_of_the_lattice():
    grid, sizes = (2, 3, 4), anchor_sizes((2.5, 4.0, 10.0), (1.0, 0.5, 0.5))
    every = lattice_anchors(grid, (1, 2, 2), sizes)
    assert every.shape == (2, 3, 4, 3, 6)
    found = anchors_at(jnp.arange(2 * 3 * 4 * 3), grid, sizes)
    np.testing.assert_array_equal(found, every.reshape(-1, 6))
