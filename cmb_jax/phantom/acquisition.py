"""From a field map to a scan: signal at the echo, k-space, coil, noise."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T


def echo_signal(
    signal: jax.Array, r2_star: jax.Array, field_ppm: jax.Array, te_ms: jax.Array, b0_t: jax.Array
) -> jax.Array:
    """S = M0 exp(-TE R2*) exp(i 2 pi gamma B0 TE dB), complex64; paramagnetic positive. R2* in 1/s."""
    te_s = te_ms / 1000.0
    phase = 2.0 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_s * field_ppm
    size = signal * jnp.exp(-te_s * r2_star)
    return jax.lax.complex(size * jnp.cos(phase), size * jnp.sin(phase))


def _resize_axis(image: jax.Array, axis: int, size: int) -> jax.Array:
    n = image.shape[axis]
    if size == n:
        return image
    spectrum = jnp.fft.fft(image, axis=axis)
    kept = min(n, size)
    positive = (kept + 1) // 2  # frequencies 0 .. ; the rest of those kept are the negative ones
    low = jax.lax.slice_in_dim(spectrum, 0, positive, axis=axis)
    high = jax.lax.slice_in_dim(spectrum, n - (kept - positive), n, axis=axis)
    shape = list(image.shape)
    shape[axis] = size - kept
    middle = jnp.zeros(shape, spectrum.dtype)
    return jnp.fft.ifft(jnp.concatenate([low, middle, high], axis=axis), axis=axis) * (size / n)


def crop_k_space(image: jax.Array, matrix: tuple[int, int, int]) -> jax.Array:
    """Complex image (X, Y, Z) -> `matrix` over the same field of view; voxel 0 keeps its place.

    The high frequencies are cut off where the matrix is coarser (intravoxel dephasing and Gibbs ringing
    follow) and filled with zeros where it is finer. Values keep their scale.
    """
    for axis in (2, 0, 1):  # slices first: that shrinks the most
        image = _resize_axis(image, axis, matrix[axis])
    return image


def receive_profile(key: jax.Array, shape: tuple[int, ...], phase_sign: int) -> jax.Array:
    """Smooth coil sensitivity with its phase, complex64 (X, Y, Z); mean magnitude about 1."""
    k_size, k_phase = jax.random.split(key)
    axes = [jnp.linspace(-1.0, 1.0, n, dtype=jnp.float32) for n in shape]
    x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2]
    terms = (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    size = jax.random.normal(k_size, (9,)) * jnp.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    size = size + jnp.array([0, 0, 0, 0.15, 0.15, 0.0, 0, 0, 0])  # array coils: brighter near the skull
    phase = jax.random.normal(k_phase, (10,)) * jnp.array([0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3, 2.0])
    log_size = sum(s * t for s, t in zip(size, terms, strict=True))
    angle = sum((p * t for p, t in zip(phase[:9], terms, strict=True)), phase[9])
    gain = jnp.exp(log_size)
    return jax.lax.complex(gain * jnp.cos(angle), phase_sign * gain * jnp.sin(angle))


@functools.partial(jax.jit, static_argnames=("matrix", "discarded", "phase_sign"))
def acquire(
    signal: jax.Array,
    r2_star: jax.Array,
    field_ppm: jax.Array,
    brain: jax.Array,
    te_ms: jax.Array,
    b0_t: jax.Array,
    snr: jax.Array,
    key: jax.Array,
    *,
    matrix: tuple[int, int, int],
    discarded: int,
    phase_sign: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Magnitude, wrapped phase in radians (X, Y, Z), and the noise's standard deviation a channel.

    `brain` (X, Y, Z of the result) marks where the mean signal over the noise is `snr`. `discarded` slices
    are dropped at either end.
    """
    k_profile, k_noise = jax.random.split(key)
    image = crop_k_space(echo_signal(signal, r2_star, field_ppm, te_ms, b0_t), matrix)
    image = image[:, :, discarded : matrix[2] - discarded]
    image = image if phase_sign > 0 else jnp.conj(image)
    image = image * receive_profile(k_profile, image.shape, phase_sign)
    mean = jnp.sum(jnp.abs(image) * brain) / jnp.maximum(jnp.sum(brain), 1)
    sigma = mean / snr
    noise = jax.random.normal(k_noise, (2, *image.shape)) * sigma
    image = image + jax.lax.complex(noise[0], noise[1])
    return jnp.abs(image), jnp.angle(image), sigma
