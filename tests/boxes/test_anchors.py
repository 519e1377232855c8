import numpy as np

from cmb_jax.boxes.anchors import anchor_sizes, box_centers, box_sizes, lattice_anchors, lattice_centers


def test_sizes_in_voxels_of_the_working_grid():
    assert np.array_equal(anchor_sizes((2.5, 4.0), (1.0, 0.5, 0.5)), [[2.5, 5, 5], [4, 8, 8]])


def test_centres_lie_in_the_middle_of_the_cells_voxels():
    grid, stride = (2, 3, 4), (1, 2, 2)
    centers = np.asarray(lattice_centers(grid, stride))
    for z, y, x in np.ndindex(grid):
        # A cell covers voxels stride*i .. stride*i + stride - 1, each of which spans [v, v+1).
        expected = [np.mean([s * i, s * i + s]) for i, s in zip((z, y, x), stride, strict=True)]
        assert np.array_equal(centers[z, y, x], expected)


def test_anchors_have_their_size_around_every_centre():
    grid, stride, sizes = (2, 3, 4), (1, 2, 2), anchor_sizes((2.5, 4.0, 10.0), (1.0, 0.5, 0.5))
    anchors = lattice_anchors(grid, stride, sizes)
    assert anchors.shape == (2, 3, 4, 3, 6)
    np.testing.assert_array_equal(box_sizes(anchors), np.broadcast_to(sizes, (2, 3, 4, 3, 3)))
    centers = np.asarray(lattice_centers(grid, stride))[..., None, :]
    np.testing.assert_array_equal(box_centers(anchors), np.broadcast_to(centers, (2, 3, 4, 3, 3)))
