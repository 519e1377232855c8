"""The map of points between two brains."""

import gzip

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from cmb_jax.anatomy.pack import Lattice, lattice_image, read_lattice

ORIGIN = (-20.0, -24.0, -16.0)
SHAPE = (11, 13, 9)


def _lattice(displacement, spacing_mm=4.0):
    return Lattice(displacement=displacement.astype(np.float32), spacing_mm=spacing_mm, origin_mm=ORIGIN)


@pytest.fixture
def smooth(rng):
    """A random map whose steepest slope is well below folding."""
    x, y, z = (np.linspace(0, np.pi, n) for n in SHAPE)
    waves = np.sin(x)[:, None, None] * np.cos(2 * y)[None, :, None] * np.sin(z + 1)[None, None, :]
    return _lattice(waves[..., None] * [3.0, -2.0, 2.5] + rng.normal(scale=0.1, size=(*SHAPE, 3)))


def test_points_agree_with_a_peer_interpolator(smooth, rng):
    points = rng.uniform(ORIGIN, np.add(ORIGIN, [40, 48, 32]), size=(200, 3))
    lines = [o + 4.0 * np.arange(n) for o, n in zip(ORIGIN, SHAPE, strict=True)]
    expected = points + RegularGridInterpolator(lines, smooth.displacement)(points)
    np.testing.assert_allclose(smooth.map_points(points), expected, atol=1e-4)


def test_beyond_the_lattice_the_face_goes_on(smooth):
    far = smooth.map_points(np.array([500.0, -24.0, -16.0]))
    np.testing.assert_allclose(far - [500.0, -24.0, -16.0], smooth.displacement[-1, 0, 0], atol=1e-5)


def test_grid_agrees_with_its_points(smooth):
    affine = np.diag([1.5, -2.0, 1.0, 1.0])
    affine[:3, 3] = [-15, 20, -10]
    shape = (12, 14, 20)
    grid = np.stack(smooth.map_grid(shape, affine), axis=-1)
    points = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(grid, smooth.map_points(points), atol=1e-4)


def test_inverse_leads_back(smooth):
    inverse = smooth.inverted(SHAPE, 4.0, ORIGIN)
    points = np.stack(np.indices(SHAPE), axis=-1) * 4.0 + ORIGIN
    np.testing.assert_allclose(smooth.map_points(inverse.map_points(points)), points, atol=2e-3)
    between = points[2:-2, 2:-2, 2:-2] + 1.7
    back = inverse.map_points(smooth.map_points(between))
    assert np.abs(back - between).mean() < 0.1  # both are trilinear, so they agree only nearly


def test_inverse_of_a_fold_is_refused():
    displacement = np.zeros((*SHAPE, 3))
    displacement[5, ..., 0] = 5.0  # past the next plane, 4 mm away
    with pytest.raises(ValueError, match="cannot be inverted"):
        _lattice(displacement).inverted(SHAPE, 4.0, ORIGIN)


def test_jacobian_of_a_linear_map():
    matrix = np.array([[1.1, 0.05, 0.0], [-0.1, 0.9, 0.02], [0.0, 0.1, 1.2]])
    points = np.stack(np.indices(SHAPE), axis=-1) * 4.0 + ORIGIN
    determinants = _lattice(points @ (matrix - np.eye(3)).T).jacobian_determinants()
    np.testing.assert_allclose(determinants, np.linalg.det(matrix), rtol=1e-5)


def test_jacobian_shows_a_fold():
    displacement = np.zeros((*SHAPE, 3))
    displacement[5, 6, 4, 0] = 5.0  # past its neighbor 4 mm away
    assert _lattice(displacement).jacobian_determinants().min() < 0.0


def test_storing_keeps_the_map(smooth):
    content = gzip.compress(lattice_image(smooth).to_bytes(), mtime=0)
    image = lattice_image(smooth).from_bytes(gzip.decompress(content))
    stored = read_lattice(image)
    assert (stored.spacing_mm, stored.origin_mm) == (4.0, ORIGIN)
    np.testing.assert_allclose(stored.displacement, smooth.displacement, atol=0.0026)
    assert image.header.get_intent()[0] == "displacement vector"
