import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.acquisition import draw_motion, move_lines

EXTENT = (48.0, 40.0, 36.0)
SHAPE = (24, 20, 12)


def test_one_constant_displacement_shifts_the_image(rng):
    image = rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)
    path = jnp.tile(jnp.array([[4.0, -2.0, 3.0]]), (SHAPE[0], 1))  # 2, -1 and 1 voxels
    moved = jnp.fft.ifftn(move_lines(jnp.fft.fftn(jnp.asarray(image)), path, EXTENT))
    np.testing.assert_allclose(np.asarray(moved), np.roll(image, (2, -1, 1), (0, 1, 2)), atol=1e-4)


def test_lines_see_the_head_where_it_was(rng):
    """Against a scan put together from shifted heads, line by line of k-space."""
    image = rng.normal(size=SHAPE)
    steps = rng.integers(-2, 3, size=(SHAPE[0], 3))
    order = np.fft.ifftshift(np.arange(SHAPE[0]))  # row of the spectrum -> moment of its measurement
    slow = np.zeros(SHAPE, complex)
    for row, moment in enumerate(order):
        slow[row] = np.fft.fftn(np.roll(image, steps[moment], (0, 1, 2)))[row]
    path = jnp.asarray(steps * np.divide(EXTENT, SHAPE), jnp.float32)
    fast = move_lines(jnp.fft.fftn(jnp.asarray(image, jnp.complex64)), path, EXTENT)
    np.testing.assert_allclose(np.asarray(fast), slow, atol=2e-3)


def test_drawn_motion_has_the_asked_size_and_is_zero_in_the_middle():
    path = np.asarray(draw_motion(jax.random.key(0), 200, jnp.float32(0.5)))
    np.testing.assert_allclose(np.sqrt((path**2).sum(axis=1).mean()), 0.5, rtol=1e-4)
    np.testing.assert_allclose(path[100], 0.0, atol=1e-6)
    assert np.abs(np.asarray(draw_motion(jax.random.key(0), 200, jnp.float32(0.0)))).max() == 0.0
