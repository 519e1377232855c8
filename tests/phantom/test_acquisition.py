import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.acquisition import acquire, cropped_spectrum, without_ringing
from cmb_jax.phantom.field import echo_signal
from tests.phantom.scanners import plain_scanner


def test_phase_is_linear_in_echo_time_field_and_shift():
    field = jnp.linspace(-0.05, 0.05, 11)
    one, decay = jnp.ones(11), jnp.full(11, 20.0)
    phase = np.angle(echo_signal(one, decay, field, jnp.float32(20), jnp.float32(3)))
    np.testing.assert_allclose(phase, 2 * np.pi * 42.577 * 3 * 0.020 * np.asarray(field), atol=1e-5)
    for te, b0 in ((10.0, 3.0), (20.0, 1.5)):
        half = np.angle(echo_signal(one, decay, field, jnp.float32(te), jnp.float32(b0)))
        np.testing.assert_allclose(2 * half, phase, atol=1e-5)
    size = np.abs(echo_signal(one, decay, field, jnp.float32(20), jnp.float32(3)))
    np.testing.assert_allclose(size, np.exp(-0.4), rtol=1e-5)


def test_opposite_field_gives_conjugate_signal(rng):
    field = jnp.asarray(rng.normal(size=50), jnp.float32)
    one, decay = jnp.ones(50), jnp.full(50, 20.0)
    plus = np.asarray(echo_signal(one, decay, field, jnp.float32(20), jnp.float32(3)))
    minus = np.asarray(echo_signal(one, decay, -field, jnp.float32(20), jnp.float32(3)))
    np.testing.assert_allclose(plus, np.conj(minus), atol=1e-6)


@pytest.mark.parametrize("matrix", [(10, 12, 5), (24, 9, 6), (16, 15, 13)])
def test_crop_keeps_exactly_the_low_frequencies(rng, matrix):
    shape = (16, 15, 12)
    image = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    result = np.fft.ifftn(cropped_spectrum(jnp.asarray(image, jnp.complex64), matrix))
    assert result.shape == matrix
    full, kept = np.fft.fftn(image) / image.size, np.fft.fftn(result) / result.size
    energy = 0.0
    for index in np.ndindex(*matrix):
        k = [i if i < (n + 1) // 2 else i - n for i, n in zip(index, matrix, strict=True)]
        held = all(-(n // 2) <= f < (n + 1) // 2 for f, n in zip(k, shape, strict=True))
        expected = full[tuple(f % n for f, n in zip(k, shape, strict=True))] if held else 0.0
        assert abs(kept[index] - expected) < 1e-6
        energy += abs(expected) ** 2
    np.testing.assert_allclose(np.mean(np.abs(result) ** 2), energy, rtol=1e-5)  # Parseval


def test_crop_keeps_a_smooth_image_in_its_place():
    def wave(n):
        x = np.arange(n) / n
        return np.exp(2j * np.pi * (2 * x))[:, None, None] * np.ones((n, 4, 4))

    for n, m in ((24, 15), (15, 24)):
        result = np.fft.ifftn(cropped_spectrum(jnp.asarray(wave(n), jnp.complex64), (m, 4, 4)))
        np.testing.assert_allclose(np.asarray(result), wave(m), atol=1e-5)


@pytest.fixture(scope="module")
def scan():
    """A uniform block; (snr, sign, motion) -> Acquired."""
    shape = (32, 32, 16)
    inside = np.zeros(shape, np.float32)
    inside[6:26, 8:24, 2:14] = 1.0
    decay, field = jnp.full(shape, 20.0), jnp.full(shape, 0.01)
    echo = echo_signal(jnp.asarray(inside), decay, field, jnp.float32(20), jnp.float32(3))
    brain = jnp.asarray(inside[:, :, 1:15] > 0)
    run = jax.jit(
        lambda snr, sign, motion: acquire(
            echo, brain, snr, motion, sign, plain_scanner(), jax.random.key(0),
            matrix=shape, field_of_view_mm=(32.0, 32.0, 32.0), discarded=1,
        )
    )  # fmt: skip
    return lambda snr, sign=1.0, motion=0.0: (run(snr, sign, motion), np.asarray(brain))


def test_noise_matches_the_asked_ratio_and_signs_mirror(scan):
    noisy, brain = scan(20.0)
    assert noisy.magnitude.shape == (32, 32, 14)
    clean, _ = scan(1e6)
    residual = np.asarray(noisy.magnitude) * np.exp(1j * np.asarray(noisy.phase))
    residual = residual - np.asarray(clean.magnitude) * np.exp(1j * np.asarray(clean.phase))
    np.testing.assert_allclose(residual.real.std(), float(noisy.sigma), rtol=0.03)
    np.testing.assert_allclose(
        np.asarray(clean.magnitude)[brain].mean() / float(noisy.sigma), 20.0, rtol=0.02
    )
    mirrored, _ = scan(1e6, -1.0)
    wrapped = np.angle(np.exp(1j * (np.asarray(mirrored.phase) + np.asarray(clean.phase))))
    assert np.abs(wrapped[brain]).max() < 1e-3


def test_motion_makes_ghosts_and_only_motion_does(scan):
    still, brain = scan(1e6)
    assert np.abs(np.asarray(still.ghost)).max() < 1e-5
    moved, _ = scan(1e6, 1.0, 1.5)
    assert np.abs(np.asarray(moved.ghost))[brain].max() > 0.05
    outside = ~brain
    assert np.asarray(moved.magnitude)[outside].max() > 2 * np.asarray(still.magnitude)[outside].max()


def test_ringing_follows_a_sharp_edge():
    """A step cut off at half its frequencies rings by 9 % of its height (Gibbs); a Hann window stops that."""
    step = np.zeros((128, 4, 4), np.complex64)
    step[32:96] = 1.0
    image = jnp.fft.ifftn(cropped_spectrum(jnp.asarray(step), (64, 4, 4)))
    overshoot = float(jnp.abs(image).max()) - 1.0
    assert 0.05 < overshoot < 0.16
    assert float(jnp.abs(without_ringing(image)).max()) - 1.0 < 0.25 * overshoot
