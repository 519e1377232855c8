"""From a field map to a scan: signal at the echo, k-space, motion, coil, noise.

A head that moves is somewhere else at every phase-encoding line of k-space.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T
from cmb_jax.phantom.scanner import Receive, Scanner, draw_receive, k_space_window

JUMPS = 3  # sudden displacements per scan
_CYCLES = (8.0, 60.0)  # of breathing or pulsation, a scan


def draw_motion(key: jax.Array, lines: int, rms_mm: jax.Array) -> jax.Array:
    """Displacement (lines, 3) in mm at each phase-encoding line: jumps, drift and an oscillation.

    Lines are acquired from one edge of k-space to the other; the head is at zero when its middle is measured.
    """
    k_time, k_size, k_drift, k_cycles, k_wave, k_phase = jax.random.split(key, 6)
    time = jnp.arange(lines) / lines
    when = jax.random.uniform(k_time, (JUMPS,))
    steps = (time[:, None] > when) @ jax.random.normal(k_size, (JUMPS, 3))
    drift = time[:, None] * jax.random.normal(k_drift, (3,))
    cycles = jax.random.uniform(k_cycles, (), minval=_CYCLES[0], maxval=_CYCLES[1])
    angle = 2 * jnp.pi * (cycles * time + jax.random.uniform(k_phase))
    wave = jnp.sin(angle)[:, None] * jax.random.normal(k_wave, (3,)) * 0.6
    path = steps + drift + wave
    path = path - path[lines // 2]
    size = jnp.sqrt(jnp.mean(jnp.sum(path**2, axis=1)))
    return path * rms_mm / jnp.maximum(size, 1e-6)


def move_lines(spectrum: jax.Array, path_mm: jax.Array, field_of_view_mm: tuple[float, ...]) -> jax.Array:
    """A spectrum (X, Y, Z), in the FFT's order, of a head displaced by path_mm (X, 3) line by line along x.

    A displacement by d multiplies k-space by exp(-2 pi i k.d) (Fourier's shift theorem). Lines run in time
    from the most negative frequency to the most positive one.
    """
    path = jnp.fft.ifftshift(path_mm, axes=0)  # row i: displacement when frequency i was measured
    x, y, z = (
        jnp.fft.fftfreq(n, 1.0 / n) / extent
        for n, extent in zip(spectrum.shape, field_of_view_mm, strict=True)
    )

    def wave(turns: jax.Array) -> jax.Array:
        return jnp.exp(-2j * jnp.pi * turns).astype(spectrum.dtype)

    in_plane = wave((x * path[:, 0])[:, None] + y * path[:, 1:2])
    return spectrum * in_plane[:, :, None] * wave(z * path[:, 2:])[:, None, :]


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Acquired:
    """A scan (X, Y, Z) without its discarded slices."""

    magnitude: jax.Array
    phase: jax.Array  # radians, wrapped, as stored
    sigma: jax.Array  # () standard deviation of the noise per channel, mean over the brain
    noise: jax.Array  # (X, Y, Z) its standard deviation in each voxel
    ghost: jax.Array  # how much darker motion makes a voxel, over the brain's mean signal
    ringing: jax.Array  # how much darker the sharp end of k-space makes it, likewise


def combine_coils(
    image: jax.Array, noise: jax.Array, receive: Receive, sigma: jax.Array, scanner: Scanner
) -> tuple[jax.Array, jax.Array]:
    """Magnitude and phase in radians of a scan by all coils, see `phantom.scanner`.

    image: complex (X, Y, Z) of an ideal coil. noise: complex, standard deviation 1 per channel.
    sigma: (X, Y, Z) standard deviation of the noise in the combined image.
    """
    image = receive.gain * image
    disturbed = sigma * noise
    matched = jnp.abs(image + disturbed)
    # chi-square of the other coils (Wilson and Hilferty 1931); its normal is noise from far away
    free = jnp.maximum(2.0 * (scanner.coils - 1.0), 1e-3)
    far = jnp.roll(noise.real, tuple(n // 2 for n in noise.shape), (0, 1, 2))
    others = free * jnp.maximum(1.0 - 2.0 / (9.0 * free) + jnp.sqrt(2.0 / (9.0 * free)) * far, 0.0) ** 3
    others = jnp.where((scanner.sum_of_squares > 0) & (scanner.coils > 1), others, 0.0)
    magnitude = jnp.sqrt(matched**2 + sigma**2 * others)
    strength = jnp.abs(receive.phase)  # of the image's signal in what the phase is taken from
    return magnitude, jnp.angle(receive.phase * (strength * image + disturbed))


def acquire(
    echo: jax.Array,
    brain: jax.Array,
    snr: jax.Array,
    motion_mm: jax.Array,
    phase_sign: jax.Array,
    scanner: Scanner,
    key: jax.Array,
    *,
    matrix: tuple[int, int, int],
    field_of_view_mm: tuple[float, float, float],
    discarded: int,
    away_mm: jax.Array | float = 0.0,
) -> Acquired:
    """Signal at the echo, complex (x, y, z) on the simulation grid, to a scan by all coils.

    `brain` (X, Y, Z of the result) marks where the mean signal over the mean noise is `snr`. `discarded`
    slices are dropped at either end. motion_mm (): root mean square displacement. phase_sign (): +1 or -1.
    away_mm (3,): middle of the image from that of the head, which the coils surround.
    """
    k_receive, k_noise, k_motion = jax.random.split(key, 3)
    spectrum = cropped_spectrum(echo, matrix)
    window = k_space_window(scanner, matrix)
    spectrum = spectrum * window
    path = draw_motion(k_motion, matrix[0], motion_mm)
    kept = slice(discarded, matrix[2] - discarded)
    still = jnp.fft.ifftn(spectrum)
    image = jnp.fft.ifftn(move_lines(spectrum, path, field_of_view_mm))[:, :, kept]
    ringing = (jnp.abs(without_ringing(still)) - jnp.abs(still))[:, :, kept]
    ghost = jnp.abs(still[:, :, kept]) - jnp.abs(image)

    receive = draw_receive(k_receive, scanner, Grid.over(field_of_view_mm, matrix), away_mm)
    receive = jax.tree.map(lambda part: part[:, :, kept], receive)
    level = jnp.maximum(_mean(jnp.abs(image), brain), 1e-6)
    sigma = _mean(receive.gain * jnp.abs(image), brain) / snr
    local = receive.noise * (sigma / _mean(receive.noise, brain))
    noise = windowed_noise(k_noise, window)[:, :, kept]
    magnitude, phase = combine_coils(image, noise, receive, local, scanner)
    wrapped = jnp.where(phase_sign < 0, -phase, phase)
    return Acquired(magnitude, wrapped, sigma, local, ghost / level, ringing / level)


def windowed_noise(key: jax.Array, window: jax.Array) -> jax.Array:
    """Complex noise (X, Y, Z) of a k-space measured under `window`; standard deviation 1 per channel."""
    drawn = jax.random.normal(key, (2, *window.shape))
    size = window * (window.size / jnp.sqrt(jnp.sum(window**2)))
    return jnp.fft.ifftn(jax.lax.complex(drawn[0], drawn[1]) * size)


def _mean(image: jax.Array, brain: jax.Array) -> jax.Array:
    return jnp.sum(image * brain) / jnp.maximum(jnp.sum(brain), 1)
