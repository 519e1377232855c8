"""Phase mask, weighting, projection and echo combination against NumPy."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.scan.swi import (
    combine_echoes,
    homodyne_phase,
    minimum_intensity_projection,
    phase_mask,
    susceptibility_weighted,
)


def test_phase_mask_values():
    phase = jnp.array([-np.pi, -1.0, 0.0, np.pi / 2, np.pi])
    np.testing.assert_allclose(phase_mask(phase), [1, 1, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(phase_mask(phase, sign=-1), [0, 1 - 1 / np.pi, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_weighting_is_magnitude_times_mask_to_the_fourth(rng, sign):
    magnitude = jnp.asarray(rng.uniform(0.5, 1.5, size=(32, 30, 4)), jnp.float32)
    phase = jnp.asarray(rng.uniform(-3, 3, size=magnitude.shape), jnp.float32)
    image = susceptibility_weighted(magnitude, phase, (0.5, 0.5, 2.0), sign=sign)
    filtered = sign * np.asarray(homodyne_phase(phase, magnitude, (0.5, 0.5, 2.0)))
    np.testing.assert_allclose(image.filtered_phase, filtered, atol=1e-6)
    mask = np.where(filtered > 0, (np.pi - filtered) / np.pi, 1.0)
    np.testing.assert_allclose(image.swi, np.asarray(magnitude) * mask**4, atol=1e-5)


def test_paramagnetic_spot_darkens_and_diamagnetic_does_not():
    spot = np.zeros((64, 64, 3), np.float32)
    spot[31:33, 31:33, 1] = 1.2
    ones = jnp.ones(spot.shape, jnp.float32)
    dark = susceptibility_weighted(ones, jnp.asarray(spot), (0.5, 0.5, 2.0)).swi
    bright = susceptibility_weighted(ones, jnp.asarray(-spot), (0.5, 0.5, 2.0)).swi
    assert dark[31, 31, 1] < 0.2
    assert bright[31, 31, 1] == pytest.approx(1.0)
    flipped = susceptibility_weighted(ones, jnp.asarray(-spot), (0.5, 0.5, 2.0), sign=-1).swi
    np.testing.assert_allclose(flipped, dark, atol=1e-5)


def test_a_higher_power_is_darker_and_a_wider_filter_keeps_more(rng):
    phase = np.zeros((64, 64, 3), np.float32)
    phase[24:40, 24:40, 1] = 1.2
    ones = jnp.ones(phase.shape, jnp.float32)
    images = [
        np.asarray(susceptibility_weighted(ones, jnp.asarray(phase), (0.5, 0.5, 2.0), power=power).swi)
        for power in (2.0, 3.5, 5.0)
    ]
    for weak, strong in itertools.pairwise(images):
        assert (strong <= weak + 1e-6).all()
        assert strong[26, 26, 1] < weak[26, 26, 1] - 0.01
    np.testing.assert_allclose(images[2] ** 2, images[0] ** 5, atol=1e-5)
    middle = [
        float(susceptibility_weighted(ones, jnp.asarray(phase), (0.5, 0.5, 2.0), width_mm=w).swi[32, 32, 1])
        for w in (5.0, 8.0, 16.0)
    ]
    assert middle[0] > middle[1] > middle[2]


def test_one_compilation_for_all_spacings_and_signs(rng):
    magnitude = jnp.asarray(rng.uniform(0.5, 1.5, size=(20, 20, 2)), jnp.float32)
    traced = jax.jit(chex.assert_max_traces(susceptibility_weighted.__wrapped__, n=1))
    for spacing, sign in (((0.5, 0.5, 2.0), 1), ((0.8, 0.8, 2.0), -1)):
        traced(magnitude, magnitude, jnp.array(spacing), sign)


@pytest.mark.parametrize("slab", [1, 3, 4, 9])
@pytest.mark.parametrize("axis", [0, 2])
def test_projection_against_a_loop(rng, slab, axis):
    volume = rng.normal(size=(6, 5, 7)).astype(np.float32)
    ours = np.moveaxis(np.asarray(minimum_intensity_projection(jnp.asarray(volume), slab, axis)), axis, 0)
    slices = np.moveaxis(volume, axis, 0)
    below = (slab - 1) // 2
    for z in range(len(slices)):
        expected = slices[max(0, z - below) : z + slab - below].min(axis=0)
        np.testing.assert_array_equal(ours[z], expected)


def test_echo_combination_finds_the_slope_and_weighs_by_information(rng):
    te = np.array([4.0, 8.0, 12.0])
    magnitudes = rng.uniform(0.2, 1.0, size=(3, 6, 5, 4))
    field = rng.normal(size=(6, 5, 4)) * 0.05
    magnitude, phase = combine_echoes(
        jnp.asarray(magnitudes, jnp.float32), jnp.asarray(te[:, None, None, None] * field, jnp.float32), te
    )
    np.testing.assert_allclose(phase, 12 * field, atol=1e-5)
    np.testing.assert_allclose(magnitude, np.sqrt(np.average(magnitudes**2, axis=0, weights=te)), rtol=1e-5)

    noisy = rng.normal(size=magnitudes.shape)
    _, phase = combine_echoes(jnp.asarray(magnitudes, jnp.float32), jnp.asarray(noisy, jnp.float32), te)
    for voxel in np.ndindex(6, 5, 4):  # textbook weighted least squares through the origin
        root = magnitudes[(slice(None), *voxel)]
        slope = np.linalg.lstsq((root * te)[:, None], root * noisy[(slice(None), *voxel)], rcond=None)[0][0]
        np.testing.assert_allclose(phase[voxel], 12 * slope, atol=1e-4)


def test_voxels_without_signal_stay_finite():
    zeros = jnp.zeros((2, 4, 4, 2))
    magnitude, phase = combine_echoes(zeros, zeros, (5.0, 10.0))
    assert np.isfinite(magnitude).all()
    assert np.isfinite(phase).all()
    image = susceptibility_weighted(magnitude, phase, (1.0, 1.0, 1.0))
    assert np.isfinite(image.swi).all()
