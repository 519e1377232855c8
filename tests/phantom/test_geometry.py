import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.phantom.geometry import (
    Grid,
    grid_points,
    interpolate_lattice,
    lattice_for,
    linear_at,
    rotation_matrix,
    simulation_grid,
    smooth_noise,
)


def test_rotation_matrix_matches_scipy():
    for vector in ([0.1, -0.2, 0.3], [1.2, 0.0, 0.0]):
        expected = Rotation.from_rotvec(vector).as_matrix()
        np.testing.assert_allclose(np.asarray(rotation_matrix(jnp.asarray(vector))), expected, atol=1e-6)


def test_linear_interpolation_matches_scipy(rng):
    values = rng.normal(size=(7, 9, 8, 2)).astype(np.float32)
    index = rng.uniform(-2.0, 10.0, size=(300, 3))
    found = np.asarray(linear_at(jnp.asarray(values), jnp.asarray(index, jnp.float32)))
    inside = np.clip(index, 0, np.array(values.shape[:3]) - 1)
    for channel in range(2):
        expected = ndimage.map_coordinates(values[..., channel], inside.T, order=1)
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-4)


def test_grids_share_their_first_voxel():
    extent = (192.0, 240.0, 162.0)
    fine, coarse = simulation_grid(extent, 0.6, 1.25), Grid.over(extent, (192, 240, 54))
    assert fine.origin_mm == coarse.origin_mm
    assert max(fine.spacing_mm[:2]) <= 0.6 < fine.spacing_mm[2] <= 0.75
    np.testing.assert_allclose(np.multiply(fine.shape, fine.spacing_mm), extent)
    points = np.asarray(grid_points(coarse))
    np.testing.assert_allclose(points[3, 5, 7], np.add(coarse.origin_mm, (3, 5, 21)), atol=1e-5)


def test_a_lattice_reproduces_what_is_linear(rng):
    lattice = lattice_for((60.0, 50.0, 40.0))
    slope = rng.normal(size=3)
    values = np.asarray(grid_points(lattice)) @ slope
    points = rng.uniform(-20, 20, size=(50, 3))
    found = interpolate_lattice(jnp.asarray(values[..., None], jnp.float32), lattice, jnp.asarray(points))
    np.testing.assert_allclose(np.asarray(found)[:, 0], points @ slope, rtol=1e-3, atol=1e-3)


def test_smooth_noise_is_smooth_and_of_unit_variance():
    noise = np.asarray(smooth_noise(jax.random.key(0), (40, 42, 44, 2), sigma=2.0))
    np.testing.assert_allclose(noise.var(axis=(0, 1, 2)), 1.0, rtol=0.25)
    assert np.diff(noise, axis=0).var() < 0.3
