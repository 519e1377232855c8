"""Laplacian phase unwrapping of (X, Y, Z) volumes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.fft import dctn, idctn

_TWO_PI = 2.0 * jnp.pi


def wrap(phase_rad: jax.Array) -> jax.Array:
    """Phase of any shape brought into [-pi, pi)."""
    return phase_rad - _TWO_PI * jnp.floor(phase_rad / _TWO_PI + 0.5)


@jax.jit
def laplacian_unwrap(phase_rad: jax.Array, spacing_mm: Sequence[float] | jax.Array) -> jax.Array:
    """Unwraps phase by solving Poisson's equation for its Laplacian, which wraps leave untouched.

    The method of Schofield & Zhu, Opt Lett 28:1194 (2003), by cosine transforms (their mirrored volume).
    Their Laplacian cos(p) lap(sin p) - sin(p) lap(cos p) is, on neighbouring voxels, the sum of
    sin(difference); the wrapped difference itself stands here in place of its sine, which would flatten
    steep phase. Phase whose neighbours differ by less than pi is then recovered up to a multiple of 2 pi.

    Args:
        phase_rad: (X, Y, Z) in radians.
        spacing_mm: voxel edge lengths along (x, y, z) in mm; differences weigh by 1 / spacing^2.

    Returns:
        (X, Y, Z) float32 unwrapped phase in radians; its mean level agrees with the input modulo 2 pi.
    """
    phase = phase_rad.astype(jnp.float32)
    laplacian = jnp.zeros_like(phase)
    eigenvalues = jnp.zeros((1, 1, 1), jnp.float32)
    for axis, length in enumerate(phase.shape):
        scale = 1.0 / spacing_mm[axis] ** 2
        flux = wrap(jnp.diff(phase, axis=axis)) * scale
        edges = [(0, 0), (0, 0), (0, 0)]
        edges[axis] = (1, 1)  # no flux through the volume's faces
        laplacian += jnp.diff(jnp.pad(flux, edges), axis=axis)
        shape = [1, 1, 1]
        shape[axis] = length
        waves = jnp.sin(0.5 * jnp.pi * jnp.arange(length) / length) ** 2
        eigenvalues = eigenvalues - (4.0 * scale * waves).reshape(shape)
    spectrum = dctn(laplacian, norm="ortho")
    solvable = eigenvalues < 0.0  # all but the constant
    unwrapped = idctn(
        jnp.where(solvable, spectrum / jnp.where(solvable, eigenvalues, 1.0), 0.0), norm="ortho"
    )
    level = jnp.angle(jnp.mean(jnp.exp(1j * (phase - unwrapped))))
    return unwrapped + level
