"""Random changes of a patch's two channels: contrast, noise, resolution, bias field, filtering of the phase.

Operations on neighborhoods are linear and separable: one matrix product per axis. Channels are
(Z, Y, X) float32 as `data.prepare` makes them: SWI over brain tissue, phase over pi.
"""

import dataclasses

import numpy as np

from cmb_jax.config import AugmentConfig

_DARKEST = 0.15  # SWI below which phase noise grows no further: it is bounded by pi anyway
_BIAS_KNOTS = 3  # along each axis of a patch
_HIGH_PASS_MM = (1.5, 4.0)  # standard deviation of the low-pass that is taken away
_LEAST_THICKNESS = 1.3

Matrices = tuple[np.ndarray | None, ...]  # (N, N) for each axis z, y, x; None leaves it as it is


def gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """(N, N) Gaussian blur of `sigma` voxels; beyond the ends the end values go on."""
    reach = int(4.0 * sigma + 0.5)
    offset = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offset / max(sigma, 1e-6)) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((length, length), np.float32)
    source = np.clip(np.arange(length)[:, None] + offset, 0, length - 1)
    np.add.at(matrix, (np.arange(length)[:, None], source), kernel.astype(np.float32))
    return matrix


def interpolation_matrix(positions: np.ndarray, length: int) -> np.ndarray:
    """(P, N) linear interpolation at fractional indices (P,); ends held."""
    inside = np.clip(positions, 0, length - 1)
    return np.maximum(0.0, 1.0 - np.abs(inside[:, None] - np.arange(length))).astype(np.float32)


def thickness_matrix(length: int, factor: float, offset: float) -> np.ndarray:
    """(N, N): means over slices `factor` voxels thick, the first starting at -offset, interpolated back.

    Args:
      length: voxels N.
      factor: thickness in voxels, at least 1.
      offset: in [0, factor).
    """
    count = int(np.ceil((length + offset) / factor))
    low = np.arange(count)[:, None] * factor - offset
    voxel = np.arange(length)
    # how much of each voxel (columns) every slice (rows) holds
    share = np.clip(np.minimum(low + factor, voxel + 1) - np.maximum(low, voxel), 0.0, None)
    means = share / share.sum(axis=1, keepdims=True)
    back = interpolation_matrix((voxel + 0.5 + offset) / factor - 0.5, count)
    return (back @ means).astype(np.float32)


def apply(matrices: Matrices, channel: np.ndarray) -> np.ndarray:
    """A channel (Z, Y, X) with each axis multiplied by its matrix."""
    z, y, x = channel.shape
    first, second, third = matrices
    if first is not None:
        channel = (first @ channel.reshape(z, -1)).reshape(-1, y, x)
    if second is not None:
        channel = second @ channel
    if third is not None:
        channel = channel @ third.T
    return channel


def wrapped(phase: np.ndarray) -> np.ndarray:
    """Phase over pi brought into [-1, 1)."""
    return phase - 2.0 * np.floor((phase + 1.0) / 2.0)


def _log_uniform(rng: np.random.Generator, largest: float) -> np.float32:
    """A factor from 1 / largest to largest."""
    return np.float32(np.exp(rng.uniform(-1.0, 1.0) * np.log(largest)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of one patch; drawn for the whole patch, applied to it or to some of its planes."""

    resolution: Matrices | None  # on the complex image
    gamma: np.float32
    gain: np.float32
    log_bias: np.ndarray | None  # (K, K, K) at knots, of the field's logarithm
    phase_scale: np.float32
    high_pass: Matrices | None
    high_pass_strength: np.float32
    noise: np.float32
    phase_noise: bool

    @property
    def mixes_planes(self) -> bool:
        """Whether a plane of the result depends on others."""
        return self.resolution is not None or self.high_pass is not None


def draw_changes(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Changes:
    """Random changes of a patch (z, y, x)."""
    # blur and thicker slices are both matrices along axes, so that their product is applied at once
    blur: list[np.ndarray | None] = [None] * 3
    if rng.random() < config.blur:
        blur = [
            gaussian_matrix(size, rng.uniform(0.0, config.blur_mm) / step)
            for size, step in zip(shape, spacing_mm, strict=True)
        ]
    coarse: list[np.ndarray | None] = [None] * 3
    if rng.random() < config.thickness:
        factor = rng.uniform(min(_LEAST_THICKNESS, config.thickness_factor), config.thickness_factor)
        for axis in (1, 2) if rng.random() < 1 / 3 else (0,):
            coarse[axis] = thickness_matrix(shape[axis], factor, rng.uniform(0.0, factor))
    both = tuple(b if a is None else a if b is None else b @ a for a, b in zip(blur, coarse, strict=True))
    log_bias = None
    if rng.random() < config.bias:
        log_bias = rng.standard_normal((_BIAS_KNOTS,) * 3, np.float32)
        log_bias *= np.float32(rng.uniform(0.0, config.bias_size))
    high_pass = None
    if rng.random() < config.high_pass:
        width = rng.uniform(*_HIGH_PASS_MM)
        in_plane = [
            gaussian_matrix(size, width / step) for size, step in zip(shape[1:], spacing_mm[1:], strict=True)
        ]
        high_pass = (None, *in_plane)
    return Changes(
        resolution=None if all(matrix is None for matrix in both) else both,
        gamma=_log_uniform(rng, config.gamma),
        gain=_log_uniform(rng, config.gain),
        log_bias=log_bias,
        phase_scale=_log_uniform(rng, config.phase_scale),
        high_pass=high_pass,
        high_pass_strength=np.float32(rng.uniform(0.0, 1.0)),
        noise=np.float32(rng.uniform(0.0, config.noise)),
        phase_noise=config.phase_noise,
    )


def change_resolution(
    swi: np.ndarray, phase: np.ndarray | None, changes: Changes
) -> tuple[np.ndarray, np.ndarray | None]:
    """Blur, slice thickness and the phase's filter on a whole patch (Z, Y, X); phase None: there is none."""
    if changes.resolution is not None:
        swi = apply(changes.resolution, swi)
        if phase is not None:
            # as the complex image would be blurred: the mean of two angles on either side of a wrap is
            # neither
            radians = phase * np.float32(np.pi)
            cosine, sine = (apply(changes.resolution, part(radians)) for part in (np.cos, np.sin))
            phase = np.arctan2(sine, cosine) / np.float32(np.pi)
    if changes.high_pass is not None and phase is not None:
        phase = phase - changes.high_pass_strength * apply(changes.high_pass, phase)
    return swi, phase


def change_contrast(swi: np.ndarray, changes: Changes, depth: int, planes: slice) -> None:
    """Gamma, gain and bias field on `planes` of a patch of `depth` planes, in place."""
    np.power(np.maximum(swi, 0.0, out=swi), changes.gamma, out=swi)
    swi *= changes.gain
    if changes.log_bias is not None:
        at = [np.linspace(0, _BIAS_KNOTS - 1, size) for size in (depth, *swi.shape[1:])]
        at[0] = at[0][planes]
        # smooth steps between the knots: no edge that a lesion could be taken for
        smooth = [np.floor(a) + (3 - 2 * (a % 1)) * (a % 1) ** 2 for a in at]
        first, second, third = (interpolation_matrix(a, _BIAS_KNOTS) for a in smooth)
        swi *= np.exp(apply((first, second, third), changes.log_bias))


def change_phase(
    phase: np.ndarray, swi: np.ndarray, changes: Changes, noise: np.ndarray | None
) -> np.ndarray:
    """Scale and noise of a phase; `swi` as it is before noise: the darker, the noisier."""
    phase = phase * changes.phase_scale
    if noise is not None:
        phase += noise * (changes.noise / np.float32(np.pi) / np.maximum(swi, np.float32(_DARKEST)))
    return wrapped(phase)
