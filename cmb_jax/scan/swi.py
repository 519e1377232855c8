"""Susceptibility-weighted imaging: high-pass phase, phase mask, combination of echoes, projection.

Pure functions on (X, Y, Z) arrays; the slice plane is (X, Y), slices run along Z. Millimeters and radians;
`spacing_mm` are the voxel edges along (x, y, z). Haacke et al., Magn Reson Med 52:612 (2004).

The in-plane low-pass kernel is the product of two one-dimensional Hann windows in k-space, each zero from
`1 / width_mm` cycles per mm on. The point spread function of such a window falls to exactly half at a
distance of `width_mm / 2`, so `width_mm` is the kernel's full width at half maximum: 8 mm is the customary
64 x 64 window of a 512 x 512 matrix with 0.5 mm voxels.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from scipy.fft import next_fast_len

DEFAULT_WIDTH_MM = 8.0
PHASE_MASK_POWER = 4
_MARGIN = 16  # voxels of zeros that keep one edge from wrapping round to the other


def _hann(length: int, spacing: jax.Array | float, width_mm: jax.Array | float) -> jax.Array:
    """Hann window (length,) over the FFT's frequencies of an axis with `spacing` mm."""
    cycles = jnp.abs(jnp.fft.fftfreq(length)) / spacing  # cycles per mm
    return jnp.where(cycles * width_mm < 1.0, jnp.cos(0.5 * jnp.pi * cycles * width_mm) ** 2, 0.0)


def low_pass(
    volume: jax.Array, spacing_mm: Sequence[float] | jax.Array, width_mm: float | jax.Array = DEFAULT_WIDTH_MM
) -> jax.Array:
    """Smooth every slice in plane; beyond the volume's edges lie zeros.

    Args:
        volume: (X, Y, Z), real or complex; the result is of its type.
        spacing_mm: voxel edges.
        width_mm: of the kernel.
    """
    nx, ny, _ = volume.shape
    # padded by a margin, and further to lengths that factor into small primes
    px, py = next_fast_len(nx + _MARGIN, real=True), next_fast_len(ny + _MARGIN, real=True)
    window_x = _hann(px, spacing_mm[0], width_mm)
    window_y = _hann(py, spacing_mm[1], width_mm)
    slices = jnp.moveaxis(volume, 2, 0)
    if jnp.iscomplexobj(volume):
        spectrum = jnp.fft.fftn(slices, s=(px, py), axes=(1, 2))
        smooth = jnp.fft.ifftn(spectrum * (window_x[:, None] * window_y), axes=(1, 2))
    else:
        spectrum = jnp.fft.rfftn(slices, s=(px, py), axes=(1, 2))
        window = window_x[:, None] * window_y[: py // 2 + 1]
        smooth = jnp.fft.irfftn(spectrum * window, s=(px, py), axes=(1, 2))
    return jnp.moveaxis(smooth[:, :nx, :ny], 0, 2).astype(volume.dtype)


@jax.jit
def homodyne_phase(
    phase_rad: jax.Array,
    magnitude: jax.Array,
    spacing_mm: Sequence[float] | jax.Array,
    width_mm: float | jax.Array = DEFAULT_WIDTH_MM,
) -> jax.Array:
    """High-passed phase by homodyne filtering: the angle of the image over its own in-plane low-pass.

    Wraps in the input do not matter.

    Args:
        phase_rad: (X, Y, Z).
        magnitude: (X, Y, Z), any unit; weighs the low-pass.
        spacing_mm: voxel edges.
        width_mm: of the low-pass; broader keeps larger structures.

    Returns:
        (X, Y, Z) float32 in [-pi, pi], with the sign of the input.
    """
    # times the conjugate and not a difference of angles: the result is wrapped once, whatever the input's
    # wraps
    image = (magnitude * jnp.exp(1j * phase_rad.astype(jnp.float32))).astype(jnp.complex64)
    return jnp.angle(image * jnp.conj(low_pass(image, spacing_mm, width_mm)))


TRUST_WIDTH_MM = 4.0
# Signal of one direction, over that of the reference tissue, at which a phase counts in full.
_TRUSTED_SIGNAL = 0.25


@jax.jit
def phase_trust(filtered: jax.Array, spacing_mm: Sequence[float] | jax.Array) -> jax.Array:
    """How reliable a high-passed phase is, from 0 in noise to 1 in tissue.

    The in-plane mean of the complex image over a few millimeters: noise cancels in it and tissue does not,
    whatever the level of the noise is. A microbleed keeps its phase, since the tissue around it counts.

    Args:
        filtered: (X, Y, Z) complex, magnitude in units of the reference tissue, angle the high-passed phase.
        spacing_mm: voxel edges.

    Returns:
        (X, Y, Z) float32 in [0, 1].
    """
    signal = jnp.abs(low_pass(filtered, spacing_mm, TRUST_WIDTH_MM))
    return jnp.clip(signal / _TRUSTED_SIGNAL, 0.0, 1.0) ** 2


@jax.jit
def high_pass(
    phase_rad: jax.Array,
    spacing_mm: Sequence[float] | jax.Array,
    weights: jax.Array | None = None,
    width_mm: float = DEFAULT_WIDTH_MM,
) -> jax.Array:
    """Unwrapped phase less its weighted in-plane low-pass.

    Args:
        phase_rad: (X, Y, Z), unwrapped.
        spacing_mm: voxel edges.
        weights: (X, Y, Z), 0 where the phase means nothing (a brain mask or the magnitude); None: all ones.
        width_mm: of the low-pass.

    Returns:
        (X, Y, Z) float32; 0 where no weight lies near.
    """
    weights = jnp.ones_like(phase_rad) if weights is None else weights.astype(phase_rad.dtype)
    weights = weights / jnp.maximum(jnp.max(weights), jnp.finfo(weights.dtype).tiny)
    # normalized convolution: the low-pass of phase times weight over that of the weight, so that voxels
    # without weight (air, masked) do not pull the mean
    near = low_pass(weights, spacing_mm, width_mm)
    smooth = low_pass(weights * phase_rad, spacing_mm, width_mm)
    return jnp.where(near > 1e-3, phase_rad - smooth / jnp.maximum(near, 1e-3), 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiImage:
    """A susceptibility-weighted image and the phase that it was made with."""

    swi: jax.Array  # (X, Y, Z), in the magnitude's unit
    filtered_phase: jax.Array  # (X, Y, Z) radians, high-passed, paramagnetic positive


def phase_mask(phase_rad: jax.Array, sign: int | jax.Array = 1) -> jax.Array:
    """Phase mask that falls from 1 at phase 0 to 0 at pi on the paramagnetic side.

    Args:
        phase_rad: high-passed, any shape.
        sign: +1 where paramagnetic tissue has positive phase, -1 where negative.

    Returns:
        The same shape, within [0, 1]; 1 on the diamagnetic side.
    """
    return jnp.clip(1.0 - sign * phase_rad / jnp.pi, min=0.0, max=1.0)


@jax.jit
def susceptibility_weighted(
    magnitude: jax.Array,
    phase_rad: jax.Array,
    spacing_mm: Sequence[float] | jax.Array,
    sign: int | jax.Array = 1,
    power: float | jax.Array = PHASE_MASK_POWER,
    width_mm: float | jax.Array = DEFAULT_WIDTH_MM,
) -> SwiImage:
    """Magnitude times the phase mask to a power, the fourth by custom.

    Args:
        magnitude: (X, Y, Z), any unit.
        phase_rad: (X, Y, Z), wrapped or not, as stored.
        spacing_mm: voxel edges.
        sign: as of `phase_mask`.
        power: how often the mask multiplies; 2 to 5 with vendors.
        width_mm: of the homodyne low-pass.

    Returns:
        The image and the high-passed phase; the latter already turned so that paramagnetic is positive
        (multiply by `sign` to have it as stored).
    """
    filtered = sign * homodyne_phase(phase_rad, magnitude, spacing_mm, width_mm)
    return SwiImage(swi=magnitude * phase_mask(filtered) ** power, filtered_phase=filtered)


@functools.partial(jax.jit, static_argnames=("slab_voxels", "axis"))
def minimum_intensity_projection(swi: jax.Array, slab_voxels: int, axis: int = 2) -> jax.Array:
    """Sliding minimum over a slab of slices; the volume keeps its shape.

    Args:
        swi: (X, Y, Z).
        slab_voxels: slices per slab, about 8 mm; an even slab reaches one slice further up than down.
        axis: the axis to project along.

    Returns:
        (X, Y, Z); near the ends the slab holds the slices that exist.
    """
    below = (slab_voxels - 1) // 2
    padding = [(0, 0)] * swi.ndim
    padding[axis] = (below, slab_voxels - 1 - below)
    window = [1] * swi.ndim
    window[axis] = slab_voxels
    return jax.lax.reduce_window(swi, jnp.inf, jax.lax.min, window, [1] * swi.ndim, padding)


@jax.jit
def combine_echoes(
    magnitudes: jax.Array, phases: jax.Array, te_ms: Sequence[float] | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Combine several echoes into one, weighted by how sensitive each is to susceptibility.

    Phase is linear in echo time with noise of 1 / magnitude: the least-squares slope has weights of
    magnitude^2 TE. The magnitude is the root of the TE-weighted mean square: an echo's sensitivity to R2*
    grows with its TE.

    Args:
        magnitudes: (E, X, Y, Z).
        phases: (E, X, Y, Z) without wraps and without a common offset: high-passed phase.
        te_ms: (E,) echo times in ms.

    Returns:
        magnitude (X, Y, Z) in the unit of the echoes, and phase (X, Y, Z) as at the longest echo.
    """
    te = jnp.asarray(te_ms, magnitudes.dtype).reshape(-1, 1, 1, 1)
    power = (magnitudes / jnp.maximum(jnp.max(magnitudes), jnp.finfo(magnitudes.dtype).tiny)) ** 2
    information = jnp.sum(power * te**2, axis=0)
    slope = jnp.sum(power * te * phases, axis=0) / jnp.where(information > 0, information, 1.0)
    magnitude = jnp.sqrt(jnp.sum(te * magnitudes**2, axis=0) / jnp.sum(te))
    return magnitude, slope * jnp.max(te)
