"""Laplacian unwrapping against analytic phase and a dense least-squares solution."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_jax.swi import laplacian_unwrap, wrap


@settings(max_examples=30, deadline=None)  # a new length compiles anew
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_wrap(values):
    phase = np.array(values, np.float32)
    wrapped = np.asarray(wrap(jnp.asarray(phase)))
    assert np.abs(wrapped).max() <= np.pi + 1e-4
    np.testing.assert_allclose(
        np.exp(1j * wrapped.astype(np.float64)), np.exp(1j * phase.astype(np.float64)), atol=1e-4
    )


@settings(max_examples=15, deadline=None)
@given(slope=st.tuples(*[st.floats(-3.0, 3.0)] * 3), level=st.floats(-3, 3))
def test_ramps_of_up_to_nearly_pi_a_voxel_come_back_exactly(slope, level):
    grid = np.meshgrid(np.arange(12), np.arange(10), np.arange(8), indexing="ij")
    truth = level + sum(s * g for s, g in zip(slope, grid, strict=True))
    unwrapped = np.asarray(
        laplacian_unwrap(jnp.asarray(np.angle(np.exp(1j * truth)), jnp.float32), (0.5, 0.7, 2.0))
    )
    offset = (unwrapped - truth) / (2 * np.pi)
    assert np.ptp(offset) < 1e-4
    assert np.abs(offset.mean() - np.rint(offset.mean())) < 1e-4  # a whole number of turns


def test_a_dome_of_many_turns():
    x, y, z = np.meshgrid(np.arange(48), np.arange(40), np.arange(16), indexing="ij")
    truth = 25 * np.exp(-(((x - 20) / 14) ** 2 + ((y - 22) / 12) ** 2 + ((z - 8) / 8) ** 2))
    unwrapped = np.asarray(
        laplacian_unwrap(jnp.asarray(np.angle(np.exp(1j * truth)), jnp.float32), (1.0, 1.0, 1.0))
    )
    error = unwrapped - truth
    assert np.abs(error - error.mean()).max() < 1e-3


def test_noise_gives_the_weighted_least_squares_solution(rng):
    shape, spacing = (5, 4, 3), (0.5, 0.8, 2.0)
    phase = rng.uniform(-np.pi, np.pi, size=shape)
    rows, values = [], []
    index = np.arange(phase.size).reshape(shape)
    for axis in range(3):
        for a, b in zip(np.delete(index, -1, axis).ravel(), np.delete(index, 0, axis).ravel(), strict=True):
            row = np.zeros(phase.size)
            row[a], row[b] = -1 / spacing[axis], 1 / spacing[axis]
            rows.append(row)
            values.append(np.angle(np.exp(1j * (phase.flat[b] - phase.flat[a]))) / spacing[axis])
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0].reshape(shape)
    ours = np.asarray(laplacian_unwrap(jnp.asarray(phase, jnp.float32), spacing))
    np.testing.assert_allclose(ours - ours.mean(), solution - solution.mean(), atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 5, 1), (1, 6, 4)])
def test_a_single_slice_is_unwrapped_in_plane(shape):
    grid = np.indices(shape)
    truth = 1.3 * grid[0] + 0.9 * grid[1] - 0.4 * grid[2]
    ours = np.asarray(
        laplacian_unwrap(jnp.asarray(np.angle(np.exp(1j * truth)), jnp.float32), (1.0, 1.0, 1.0))
    )
    assert np.ptp(ours - truth) < 1e-4
