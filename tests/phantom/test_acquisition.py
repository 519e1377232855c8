import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.acquisition import acquire, crop_k_space, echo_signal, receive_profile


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
    result = np.asarray(crop_k_space(jnp.asarray(image, jnp.complex64), matrix))
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
        result = crop_k_space(jnp.asarray(wave(n), jnp.complex64), (m, 4, 4))
        np.testing.assert_allclose(np.asarray(result), wave(m), atol=1e-5)


def test_noise_matches_the_asked_ratio_and_signs_mirror():
    shape = (32, 32, 16)
    signal, decay, field = jnp.ones(shape), jnp.full(shape, 20.0), jnp.full(shape, 0.01)
    brain = jnp.ones((32, 32, 14), bool)

    def scan(snr, sign):
        return acquire(
            signal, decay, field, brain, jnp.float32(20), jnp.float32(3), jnp.float32(snr), jax.random.key(0),
            matrix=shape, discarded=1, phase_sign=sign,
        )  # fmt: skip

    magnitude, phase, sigma = scan(20.0, 1)
    assert magnitude.shape == (32, 32, 14)
    clean, clean_phase, _ = scan(1e6, 1)
    residual = np.asarray(magnitude) * np.exp(1j * np.asarray(phase))
    residual = residual - np.asarray(clean) * np.exp(1j * np.asarray(clean_phase))
    np.testing.assert_allclose(residual.real.std(), float(sigma), rtol=0.03)
    np.testing.assert_allclose(np.asarray(clean).mean() / float(sigma), 20.0, rtol=0.02)
    _, mirrored, _ = scan(1e6, -1)
    wrapped = np.angle(np.exp(1j * (np.asarray(mirrored) + np.asarray(clean_phase))))
    assert np.abs(wrapped).max() < 1e-3


def test_receive_profile_is_smooth():
    profile = np.asarray(receive_profile(jax.random.key(1), (40, 40, 20), 1))
    step = np.abs(np.diff(profile, axis=0)) / np.abs(profile[1:])
    assert step.max() < 0.3
