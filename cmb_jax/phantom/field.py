"""The magnetic field that a susceptibility distribution makes in a uniform main field."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def smooth_size(minimum: float) -> int:
    """The smallest even number not below `minimum` whose prime factors are 2, 3 and 5: fast to transform."""
    n = max(2, math.ceil(minimum - 1e-6))
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def _dipole_kernel(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], b0_direction: jax.Array
) -> jax.Array:
    """D(k) = 1/3 - (k.b)^2 / k^2 on the half spectrum of `rfftn`, D(0) = 0, times the voxel's own transform.

    A voxel is a box of uniform susceptibility, not a point: its transform, a product of sinc(k h), halves the
    ringing that sharp borders otherwise send out along oblique directions.
    On a Nyquist plane of an even axis k and -k fall on one sample: the terms that are odd in that axis
    average to nothing there, or a real field would get an imaginary part.
    """
    squared = []
    odd = []
    box: jax.Array | float = 1.0
    for axis, (n, h) in enumerate(zip(shape, spacing_mm, strict=True)):
        k = np.fft.rfftfreq(n, h) if axis == 2 else np.fft.fftfreq(n, h)
        even_part = k.copy()
        if n % 2 == 0:
            even_part[n // 2] = 0.0
        line = [1, 1, 1]
        line[axis] = len(k)
        squared.append(jnp.asarray((k**2).reshape(line), jnp.float32))
        odd.append(jnp.asarray(even_part.reshape(line), jnp.float32))
        box = box * jnp.asarray(np.sinc(k * h).reshape(line), jnp.float32)
    b = b0_direction
    norm = squared[0] + squared[1] + squared[2]
    along = sum(squared[a] * b[a] ** 2 for a in range(3))
    for a, c in ((0, 1), (0, 2), (1, 2)):
        along = along + 2 * b[a] * b[c] * odd[a] * odd[c]
    kernel = box * (1.0 / 3.0 - along / jnp.where(norm == 0, 1.0, norm))
    return kernel.at[0, 0, 0].set(0.0)


@functools.partial(jax.jit, static_argnames=("spacing_mm", "padded"))
def convolve_dipole(
    chi_ppm: jax.Array,
    b0_direction: jax.Array,
    *,
    spacing_mm: tuple[float, float, float],
    padded: tuple[int, int, int],
) -> jax.Array:
    """Field in ppm of `chi_ppm` (X, Y, Z), extended by zeros to `padded` voxels; b0_direction (3,) unit."""
    spectrum = jnp.fft.rfftn(chi_ppm, s=padded)
    field = jnp.fft.irfftn(spectrum * _dipole_kernel(padded, spacing_mm, b0_direction), s=padded)
    x, y, z = chi_ppm.shape
    return field[:x, :y, :z]
