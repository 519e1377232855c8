"""Homodyne and high-pass filters against NumPy and closed formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.scan.swi import high_pass, homodyne_phase, low_pass

SPACING = (0.5, 0.8, 2.0)


def hann_reference(volume, spacing, width, pad=200):
    """The same low-pass by a plain, amply padded NumPy FFT of each slice in double precision."""
    result = np.zeros(volume.shape, np.complex128)
    nx, ny, nz = volume.shape
    shape = (nx + pad, ny + pad)
    windows = []
    for length, step in zip(shape, spacing[:2], strict=True):
        frequency = np.abs(np.fft.fftfreq(length, step))
        windows.append(np.where(frequency < 1 / width, 0.5 + 0.5 * np.cos(np.pi * frequency * width), 0))
    for z in range(nz):
        padded = np.zeros(shape, np.complex128)
        padded[:nx, :ny] = volume[:, :, z]
        smooth = np.fft.ifft2(np.fft.fft2(padded) * np.outer(*windows))
        result[:, :, z] = smooth[:nx, :ny]
    return result


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_low_pass_against_numpy(rng, kind):
    volume = rng.normal(size=(37, 30, 3))
    if kind == "complex":
        volume = volume + 1j * rng.normal(size=volume.shape)
    ours = low_pass(jnp.asarray(volume, jnp.complex64 if kind == "complex" else jnp.float32), SPACING, 5.0)
    np.testing.assert_allclose(np.asarray(ours), hann_reference(volume, SPACING, 5.0), atol=3e-3)


def test_width_is_the_full_width_at_half_maximum():
    spike = np.zeros((129, 129, 1), np.float32)
    spike[64, 64, 0] = 1
    smooth = np.asarray(low_pass(jnp.asarray(spike), (0.5, 0.5, 1.0), 8.0))[:, :, 0]
    assert smooth[64 + 8, 64] / smooth[64, 64] == pytest.approx(0.5, abs=0.01)  # 8 voxels = 4 mm
    assert smooth[64, 64 - 8] / smooth[64, 64] == pytest.approx(0.5, abs=0.01)


def test_homodyne_against_numpy(rng):
    magnitude = rng.uniform(0.5, 1.5, size=(40, 36, 4))
    phase = rng.normal(size=magnitude.shape)
    image = magnitude * np.exp(1j * phase)
    expected = np.angle(image * np.conj(hann_reference(image, SPACING, 8.0)))
    ours = np.asarray(
        homodyne_phase(jnp.asarray(phase, jnp.float32), jnp.asarray(magnitude, jnp.float32), SPACING)
    )
    difference = np.abs(np.angle(np.exp(1j * (ours - expected))))
    assert np.median(difference) < 1e-3
    assert np.percentile(difference, 99) < 0.03  # where the low-pass all but vanishes, its angle is anyone's


def test_homodyne_removes_a_ramp_and_ignores_wraps():
    x, y, _ = np.meshgrid(np.arange(80), np.arange(80), np.arange(2), indexing="ij")
    ramp = 0.15 * x - 0.1 * y + 0.7  # 19 radians across the volume
    wrapped = np.angle(np.exp(1j * ramp))
    ones = jnp.ones(ramp.shape, jnp.float32)
    flat = np.asarray(homodyne_phase(jnp.asarray(wrapped, jnp.float32), ones, (0.5, 0.5, 2.0)))
    inner = flat[20:-20, 20:-20]
    assert np.abs(inner).max() < 0.01
    unwrapped = np.asarray(homodyne_phase(jnp.asarray(ramp, jnp.float32), ones, (0.5, 0.5, 2.0)))
    np.testing.assert_allclose(flat, unwrapped, atol=1e-4)


def test_small_structures_pass_with_their_sign():
    phase = np.zeros((96, 96, 1), np.float32)
    phase[47:49, 47:49] = 1.0
    kept = np.asarray(homodyne_phase(jnp.asarray(phase), jnp.ones_like(phase), (0.5, 0.5, 2.0)))
    assert kept[47:49, 47:49].min() > 0.95


def test_high_pass_of_a_wave_follows_the_window():
    # a wave of 1/16 cycles per mm through a window that ends at 1/8: cos^2(pi/4) = 1/2 of it is smooth
    x = np.arange(256) * 0.5
    wave = np.broadcast_to(np.cos(2 * np.pi * x / 16)[:, None, None], (256, 256, 1)).astype(np.float32)
    rest = np.asarray(high_pass(jnp.asarray(wave), (0.5, 0.5, 1.0)))
    np.testing.assert_allclose(rest[64:192, 64:192], 0.5 * wave[64:192, 64:192], atol=0.01)


def test_high_pass_weights_hide_what_means_nothing(rng):
    phase = rng.normal(size=(48, 48, 2)).astype(np.float32)
    mask = np.zeros(phase.shape, np.float32)
    mask[12:36, 12:36] = 1
    noisy = np.where(mask > 0, phase, 1000.0).astype(np.float32)
    a = np.asarray(high_pass(jnp.asarray(phase), SPACING, jnp.asarray(mask)))
    b = np.asarray(high_pass(jnp.asarray(noisy), SPACING, jnp.asarray(mask)))
    np.testing.assert_allclose(a[mask > 0], b[mask > 0], atol=1e-4)
    constant = np.asarray(high_pass(jnp.full(phase.shape, 3.0), SPACING, jnp.asarray(mask)))
    np.testing.assert_allclose(constant[mask > 0], 0, atol=1e-4)  # no edge where the mask ends
