"""Changes of a patch against SciPy, against slow sums, and by what they must leave alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmb_jax.config import WIDE_AUGMENTATION, AugmentConfig, DataConfig
from cmb_jax.data.augment import apply, draw_changes, gaussian_matrix, thickness_matrix, wrapped
from cmb_jax.data.patches import augment

SHAPE = (16, 32, 32)
BOXES = np.zeros((0, 6), np.float32)
MIMICS = np.zeros((16, 16, 16), np.uint8)
STILL = AugmentConfig(gamma=1.0, gain=1.0, noise=0.0, phase_scale=1.0)


def augmented(image, settings, seed=0, planes=None):
    config = DataConfig(patch_shape=SHAPE, phase_dropout=0.0, augment=settings)
    return augment(image, BOXES, MIMICS, config, np.random.default_rng(seed), planes)[0]


@given(st.floats(0.2, 3.0), st.integers(12, 40))
@settings(max_examples=25, deadline=None)
def test_blur_agrees_with_scipy(sigma, length):
    signal = np.random.default_rng(0).standard_normal((length, 3))
    expected = ndimage.gaussian_filter1d(signal, sigma, axis=0, mode="nearest")
    np.testing.assert_allclose(gaussian_matrix(length, sigma) @ signal, expected, atol=1e-5)


def test_each_axis_is_blurred_by_its_own_width(rng):
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    sigmas = (0.5, 1.0, 1.7)
    matrices = tuple(gaussian_matrix(size, sigma) for size, sigma in zip(SHAPE, sigmas, strict=True))
    expected = ndimage.gaussian_filter(volume, sigmas, mode="nearest")
    np.testing.assert_allclose(apply(matrices, volume), expected, atol=1e-5)


def test_thick_slices_are_block_means_interpolated_back(rng):
    signal = rng.standard_normal(24)
    means = signal.reshape(8, 3).mean(axis=1)
    expected = np.interp(np.arange(24), np.arange(8) * 3 + 1, means)
    np.testing.assert_allclose(thickness_matrix(24, 3.0, 0.0) @ signal, expected, atol=1e-5)


@given(st.floats(1.0, 4.0), st.floats(0.0, 0.99), st.integers(5, 40))
@settings(max_examples=50, deadline=None)
def test_thickness_keeps_what_is_even_and_moves_nothing(factor, share, length):
    matrix = thickness_matrix(length, factor, share * factor)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-5)
    assert (matrix >= 0).all()
    ramp = matrix @ np.arange(length)  # a slice's edge cuts a voxel: its center is off by up to 1/8 of one
    ends = int(np.ceil(2 * factor))
    np.testing.assert_allclose(ramp[ends:-ends], np.arange(length)[ends:-ends], atol=0.126)


def test_wrapping_is_that_of_the_complex_plane(rng):
    phase = rng.uniform(-4, 4, 100)
    np.testing.assert_allclose(
        np.exp(1j * np.pi * wrapped(phase)), np.exp(1j * np.pi * phase), rtol=0, atol=1e-9
    )
    assert np.abs(wrapped(phase)).max() <= 1.0


def test_a_wrap_stays_one_when_blurred():
    """Phase of 0.9 pi and -0.9 pi side by side means about pi, never about 0."""
    image = np.full((*SHAPE, 2), 0.9, np.float32)
    image[:, ::2, :, 1] = -0.9
    settings_ = dataclasses.replace(STILL, blur=1.0, blur_mm=1.0)
    for seed in range(5):
        assert np.abs(augmented(image, settings_, seed)[..., 1]).min() > 0.85


def test_without_changes_the_patch_is_only_mirrored(rng):
    image = rng.uniform(0, 0.9, (*SHAPE, 2)).astype(np.float32)
    result = augmented(image, STILL)
    np.testing.assert_allclose(np.sort(result.ravel()), np.sort(image.ravel()), atol=1e-6)


def test_bias_is_smooth_and_leaves_the_phase(rng):
    image = np.ones((*SHAPE, 2), np.float32) * 0.5
    result = augmented(image, dataclasses.replace(STILL, bias=1.0, bias_size=0.5), seed=3)
    np.testing.assert_allclose(result[..., 1], 0.5, atol=1e-6)
    swi = result[..., 0]
    assert swi.std() > 0.01
    for axis in range(3):  # no edge: a step takes several voxels
        assert np.abs(np.diff(np.log(swi), axis=axis)).max() < 0.3 * np.ptp(np.log(swi))


def test_phase_noise_is_larger_where_the_swi_is_dark():
    image = np.zeros((*SHAPE, 2), np.float32)
    image[:, :, :16, 0], image[:, :, 16:, 0] = 1.0, 0.25
    config = dataclasses.replace(STILL, noise=0.06, phase_noise=True)
    bright, dark, swi_noise = [], [], []
    for seed in range(10):
        result = augmented(image, config, seed)
        is_bright = result[..., 0] > 0.6
        bright.append(result[is_bright][:, 1].std())
        dark.append(result[~is_bright][:, 1].std())
        swi_noise.append((result[is_bright][:, 0] - 1).std())
    np.testing.assert_allclose(np.divide(dark, bright), 4.0, rtol=0.1)  # 1 / signal
    np.testing.assert_allclose(np.multiply(bright, np.pi), swi_noise, rtol=0.1)  # radians: noise / signal


def test_high_pass_takes_away_what_is_smooth():
    image = np.full((*SHAPE, 2), 0.4, np.float32)
    config = dataclasses.replace(STILL, high_pass=1.0)
    left = [augmented(image, config, seed)[..., 1] for seed in range(20)]
    assert all(part.std() < 1e-6 for part in left)
    means = np.array([part.mean() for part in left]) / 0.4
    assert means.min() < 0.3 < 0.7 < means.max() <= 1.0  # strengths from 0 to 1


def test_planes_are_those_of_the_whole(rng):
    """A process that holds part of the depth must see the same patch, whatever was drawn."""
    image = rng.uniform(0, 0.9, (*SHAPE, 2)).astype(np.float32)
    config = DataConfig(augment=WIDE_AUGMENTATION)
    mixing = 0
    for seed in range(30):
        whole = augmented(image, WIDE_AUGMENTATION, seed)
        part = augmented(image, WIDE_AUGMENTATION, seed, range(4, 8))
        np.testing.assert_array_equal(part, whole[4:8])
        assert np.isfinite(whole).all()
        mixing += draw_changes(
            SHAPE, config.spacing_mm, config.augment, np.random.default_rng(seed)
        ).mixes_planes
    assert 5 < mixing < 30


@pytest.mark.parametrize("wrong", [{"gamma": 0.8}, {"noise": -1.0}, {"blur": 1.5}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"data\.augment"):
        AugmentConfig(**wrong)
