"""The phantom's physics as the package computes it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.cases import Prepared
from cmb_jax.config import Triple
from cmb_jax.phantom.acquisition import cropped_spectrum
from cmb_jax.phantom.field import PADDING, convolve_dipole, echo_signal
from cmb_jax.phantom.geometry import smooth_size
from cmb_jax.scan.swi import susceptibility_weighted

SPACING_MM = (0.75, 0.75, 0.75)
DIRECTION = (0.0, 0.139, 0.990)
TE_MS, B0_T = 20.0, 3.0


def acquired_mm(shape: Triple, matrix: Triple) -> tuple[float, float, float]:
    """Voxel edges of the acquired grid in mm."""
    x, y, z = (n * h / m for n, h, m in zip(shape, SPACING_MM, matrix, strict=True))
    return (x, y, z)


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Susceptibility to SWI and filtered phase of the acquired grid, in one jitted program."""
    shape, matrix = inputs.triple(options["shape"]), inputs.triple(options["matrix"])
    x, y, z = (smooth_size(size * PADDING) for size in shape)
    maps = [jnp.asarray(part) for part in inputs.phantom(shape)]
    direction = jnp.asarray(DIRECTION, jnp.float32)

    @jax.jit
    def scan(chi: jax.Array, signal: jax.Array, r2_star: jax.Array) -> tuple[jax.Array, jax.Array]:
        field = convolve_dipole(chi, direction, spacing_mm=SPACING_MM, padded=(x, y, z))
        echo = echo_signal(signal, r2_star, field, jnp.float32(TE_MS), jnp.float32(B0_T))
        low = jnp.fft.ifftn(cropped_spectrum(echo, matrix))
        image = susceptibility_weighted(jnp.abs(low), jnp.angle(low), acquired_mm(shape, matrix))
        return image.swi, image.filtered_phase

    return Prepared(
        run=lambda: jax.block_until_ready(scan(*maps)), result=lambda pair: float(np.std(pair[1]))
    )
