"""A head that moves during the scan: every phase-encoding line of k-space sees it somewhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
