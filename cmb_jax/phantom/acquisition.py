"""From a field map to a scan: signal at the echo, k-space, coil, noise."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from cmb_jax.phantom.motion import draw_motion, move_lines
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T


def echo_signal(
    signal: jax.Array, r2_star: jax.Array, field_ppm: jax.Array, te_ms: jax.Array, b0_t: jax.Array
) -> jax.Array:
    """S = M0 exp(-TE R2*) exp(i 2 pi gamma B0 TE dB), complex64; paramagnetic positive. R2* in 1/s."""
    te_s = te_ms / 1000.0
    phase = 2.0 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_s * field_ppm
    size = signal * jnp.exp(-te_s * r2_star)
    return jax.lax.complex(size * jnp.cos(phase), size * jnp.sin(phase))


def _crop_axis(spectrum: jax.Array, axis: int, size: int) -> jax.Array:
    """Low frequencies of an axis in the FFT's order: cut off or filled with zeros to `size`."""
    n = spectrum.shape[axis]
    if size == n:
        return spectrum
    kept = min(n, size)
    positive = (kept + 1) // 2  # frequencies 0 .. ; the rest of those kept are the negative ones
    low = jax.lax.slice_in_dim(spectrum, 0, positive, axis=axis)
    high = jax.lax.slice_in_dim(spectrum, n - (kept - positive), n, axis=axis)
    shape = list(spectrum.shape)
    shape[axis] = size - kept
    return jnp.concatenate([low, jnp.zeros(shape, spectrum.dtype), high], axis=axis)


def cropped_spectrum(image: jax.Array, matrix: tuple[int, int, int]) -> jax.Array:
    """Complex image (X, Y, Z) -> its k-space on `matrix` samples, in the FFT's order.

    Scaled so that the inverse FFT gives the image its values back.
    """
    scale = 1.0
    for axis in (2, 0, 1):  # slices first: that shrinks the most
        scale *= matrix[axis] / image.shape[axis]
        image = _crop_axis(jnp.fft.fft(image, axis=axis), axis, matrix[axis])
    return image * scale


def crop_k_space(image: jax.Array, matrix: tuple[int, int, int]) -> jax.Array:
    """Complex image (X, Y, Z) -> `matrix` over the same field of view; voxel 0 keeps its place.

    The high frequencies are cut off where the matrix is coarser (dephasing between the image's voxels and
    Gibbs ringing follow; within them `phantom.dephasing` sees to it) and filled with zeros where it is finer.
    Values keep their scale.
    """
    return jnp.fft.ifftn(cropped_spectrum(image, matrix))


def without_ringing(image: jax.Array) -> jax.Array:
    """A complex image (X, Y, Z) under a Hann window over k-space: three taps along each axis, periodic."""
    for axis in range(3):
        image = 0.5 * image + 0.25 * (jnp.roll(image, 1, axis) + jnp.roll(image, -1, axis))
    return image


def receive_profile(key: jax.Array, shape: tuple[int, ...], phase_sign: int | jax.Array) -> jax.Array:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Acquired:
    """A scan (X, Y, Z) without its discarded slices."""

    magnitude: jax.Array
    phase: jax.Array  # radians, wrapped, as stored
    sigma: jax.Array  # () standard deviation of the noise, a channel
    ghost: jax.Array  # how much darker motion makes a voxel, over the brain's mean signal
    ringing: jax.Array  # how much darker the sharp end of k-space makes it, likewise


def acquire(
    echo: jax.Array,
    brain: jax.Array,
    snr: jax.Array,
    motion_mm: jax.Array,
    phase_sign: jax.Array,
    key: jax.Array,
    *,
    matrix: tuple[int, int, int],
    field_of_view_mm: tuple[float, float, float],
    discarded: int,
) -> Acquired:
    """Signal at the echo, complex (x, y, z) on the simulation grid, to a scan: k-space, motion, coil, noise.

    `brain` (X, Y, Z of the result) marks where the mean signal over the noise is `snr`. `discarded` slices
    are dropped at either end. motion_mm (): root mean square displacement. phase_sign (): +1 or -1.
    """
    k_profile, k_noise, k_motion = jax.random.split(key, 3)
    spectrum = cropped_spectrum(echo, matrix)
    path = draw_motion(k_motion, matrix[0], motion_mm)
    kept = slice(discarded, matrix[2] - discarded)
    still = jnp.fft.ifftn(spectrum)
    image = jnp.fft.ifftn(move_lines(spectrum, path, field_of_view_mm))[:, :, kept]
    ringing = (jnp.abs(without_ringing(still)) - jnp.abs(still))[:, :, kept]
    ghost = jnp.abs(still[:, :, kept]) - jnp.abs(image)

    image = jax.lax.complex(image.real, phase_sign * image.imag)
    image = image * receive_profile(k_profile, image.shape, phase_sign)
    mean = jnp.sum(jnp.abs(image) * brain) / jnp.maximum(jnp.sum(brain), 1)
    level = jnp.maximum(mean, 1e-6)
    sigma = mean / snr
    noise = jax.random.normal(k_noise, (2, *image.shape)) * sigma
    image = image + jax.lax.complex(noise[0], noise[1])
    return Acquired(jnp.abs(image), jnp.angle(image), sigma, ghost / level, ringing / level)
