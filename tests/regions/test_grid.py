"""The region grid: resampling checked against SciPy and in world coordinates."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.regions.grid import (
    GRID_MM,
    GRID_SHAPE,
    field_of_view,
    foreground_center,
    grid_affine,
    normalize,
    to_grid,
)


def oblique(spacing):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -7, 5], degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = [-80.0, 13.0, 40.0]
    return affine


def grid_points_mm(affine):
    """(X, Y, Z, 3) RAS mm of every voxel of a grid with this affine."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in GRID_SHAPE[::-1]), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def test_coarse_volume_is_interpolated_linearly(rng):
    affine = oblique((2.5, 3.0, 4.0))
    data = rng.random((60, 50, 30)).astype(np.float32)
    center = np.array([29.3, 25.1, 14.2])
    got = to_grid(data, affine, center)
    points = grid_points_mm(grid_affine(affine, center))
    index = np.moveaxis((points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T, -1, 0)
    want = ndimage.map_coordinates(data, index, order=1, mode="nearest").transpose(2, 1, 0)
    inside = np.all([(i >= 0) & (i <= n - 1) for i, n in zip(index, data.shape, strict=True)], axis=0)
    inside = inside.transpose(2, 1, 0)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(got[inside], want[inside], atol=1e-5)


def test_fine_volume_keeps_positions_and_means():
    affine = oblique((0.5, 0.5, 2.0))
    shape = (320, 384, 72)
    center = (np.array(shape) - 1) / 2
    peak = np.array([200.0, 150.0, 30.0])
    index = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    squared = sum(((i - p) * s) ** 2 for i, p, s in zip(index, peak, (0.5, 0.5, 2.0), strict=True))
    data = np.exp(-squared / (2 * 6.0**2)).astype(np.float32)
    grid = to_grid(data, affine, center)
    found = np.array(ndimage.center_of_mass(grid))[::-1]
    to_mm = grid_affine(affine, center)
    got_mm = to_mm[:3, :3] @ found + to_mm[:3, 3]
    np.testing.assert_allclose(got_mm, affine[:3, :3] @ peak + affine[:3, 3], atol=0.05)
    assert grid.sum() * GRID_MM**3 == pytest.approx(data.sum() * 0.5, rel=0.01)


def test_outside_the_field_of_view_is_zero():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    shape = (40, 60, 80)
    center = (np.array(shape) - 1) / 2
    view = field_of_view(shape, affine, center)
    grid = to_grid(np.ones(shape, np.float32), affine, center)
    np.testing.assert_array_equal(grid > 0, view)
    np.testing.assert_allclose(grid[view], 1.0, rtol=1e-6)
    assert [np.flatnonzero(view.any(axis=o)).size for o in ((1, 2), (0, 2), (0, 1))] == [40, 30, 20]


def test_foreground_center_is_the_middle_of_the_head(rng):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    data = np.abs(rng.normal(scale=0.02, size=(180, 200, 90))).astype(np.float32)
    data[20:141, 30:181, 10:81] += 1.0
    np.testing.assert_allclose(foreground_center(data, affine), [80, 105, 45], atol=1.5)
    np.testing.assert_allclose(foreground_center(np.zeros((11, 21, 31)), affine), [5, 10, 15])


def test_a_neck_does_not_pull_the_center_down():
    affine = np.eye(4)
    data = np.zeros((160, 200, 300), np.float32)
    data[10:150, 10:190, 120:290] = 1.0  # head
    data[50:110, 60:140, 0:120] = 1.0  # neck
    center = foreground_center(data, affine)
    assert abs(center[2] - (290 - GRID_SHAPE[0] * GRID_MM / 2)) < 3


def test_normalize_does_not_depend_on_the_unit(rng):
    image = rng.random(GRID_SHAPE).astype(np.float32)
    image[:40] = 0
    once, scaled = normalize(jnp.asarray(image)), normalize(jnp.asarray(image * 812.0))
    np.testing.assert_allclose(once, scaled, atol=1e-5)
    sample = image[::4, ::4, ::4]
    assert float(once.max()) == pytest.approx(
        min(1.5, image.max() / np.percentile(sample[sample > 0], 99)), rel=1e-4
    )
    np.testing.assert_array_equal(normalize(jnp.zeros(GRID_SHAPE)), 0.0)
