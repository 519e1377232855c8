import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.render import draw_balls, draw_labels, draw_tubes, stamp_half_width

GRID = Grid((40, 44, 36), (0.75, 0.75, 0.75), (-15.0, -16.5, -13.5))


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0, 2.4])
def test_integral_of_a_ball_is_its_volume(radius, rng):
    half = stamp_half_width(3.0, GRID.spacing_mm)
    ratios = []
    for _ in range(12):
        point = jnp.asarray(rng.uniform(-2, 2, size=(1, 3)), jnp.float32)
        volume = draw_balls(
            jnp.zeros(GRID.shape), GRID, point, jnp.full((1, 3), radius), jnp.array([1.5]), half
        )
        ratios.append(float(volume.sum()) * 0.75**3 / (1.5 * 4 / 3 * np.pi * radius**3))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("radius", [0.2, 0.5, 1.0])
def test_integral_of_a_tube_is_its_volume(radius, rng):
    half = stamp_half_width(1.1, GRID.spacing_mm)
    ratios = []
    for _ in range(10):
        x, y = rng.uniform(-2, 2, size=2)
        z = np.arange(-20.0, 20.0, 0.25)
        points = jnp.asarray(np.stack([np.full_like(z, x), np.full_like(z, y), z], 1), jnp.float32)
        volume = draw_tubes(
            jnp.zeros(GRID.shape), GRID, points, jnp.full(len(z), radius), jnp.ones(len(z)), half
        )
        ratios.append(float(volume[:, :, 10:26].sum()) * 0.75**3 / (np.pi * radius**2 * 16 * 0.75))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_labels_match_brute_force(rng):
    grid = Grid((30, 32, 12), (0.5, 0.5, 2.0), (0.0, 0.0, 0.0))
    points = rng.uniform(2, 12, size=(5, 3)) * (1, 1, 1.5)
    radii = rng.uniform(0.2, 3.0, size=(5, 3))
    label = np.array([3, 1, 0, 2, 5])
    half = stamp_half_width(3.0, grid.spacing_mm)
    drawn = draw_labels(
        jnp.zeros(grid.shape, jnp.uint16), grid, *(jnp.asarray(a) for a in (points, radii, label)), half
    )
    axes = np.meshgrid(*(grid.axis_mm(a) for a in range(3)), indexing="ij")
    expected = np.zeros(grid.shape, int)
    for p, r, value in zip(points, radii, label, strict=True):
        inside = sum(((a - c) / s) ** 2 for a, c, s in zip(axes, p, r, strict=True)) <= 1
        nearest = tuple(np.rint(p / grid.spacing_mm).astype(int))
        if all(0 <= i < n for i, n in zip(nearest, grid.shape, strict=True)):
            inside[nearest] = True
        expected = np.maximum(expected, inside * value)
    np.testing.assert_array_equal(np.asarray(drawn), expected)


def test_bodies_outside_the_grid_leave_no_trace():
    half = stamp_half_width(1.0, GRID.spacing_mm)
    points = jnp.array([[-40.0, 0, 0], [0, 0, 60.0], [1e6, 0, 0]])
    drawn = draw_balls(jnp.zeros(GRID.shape), GRID, points, jnp.ones((3, 3)), jnp.ones(3), half)
    assert float(drawn.max()) == 0.0
