"""The phantom's physics in plain NumPy, in single precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.field_jax import B0_T, DIRECTION, SPACING_MM, TE_MS, acquired_mm
from cmb_jax.config import Triple
from cmb_jax.phantom.field import GAMMA_BAR_MHZ_PER_T, PADDING
from cmb_jax.phantom.geometry import smooth_size

HOMODYNE_MM = 8.0  # width of the homodyne filter, as in `cmb_jax.scan.swi`
MARGIN = 16  # zero voxels that it adds to a slice


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Susceptibility to SWI and filtered phase of the acquired grid."""
    shape, matrix = inputs.triple(options["shape"]), inputs.triple(options["matrix"])
    chi, signal, r2_star = inputs.phantom(shape)

    def run() -> tuple[np.ndarray, np.ndarray]:
        te_s = TE_MS / 1000
        angle = np.float32(2 * math.pi * GAMMA_BAR_MHZ_PER_T * B0_T * te_s) * field(chi)
        echo = signal * np.exp(np.float32(-te_s) * r2_star) * np.exp(np.complex64(1j) * angle)
        return weighted(crop(echo, matrix), acquired_mm(shape, matrix))

    return Prepared(run=run, result=lambda pair: float(np.std(pair[1])))


def field(chi: np.ndarray) -> np.ndarray:
    """Field in ppm of a susceptibility (X, Y, Z) in ppm, as `cmb_jax.phantom.field.convolve_dipole`."""
    x, y, z = chi.shape
    padded = tuple(smooth_size(size * PADDING) for size in chi.shape)
    spectrum = np.fft.rfftn(chi, s=padded, axes=(0, 1, 2))
    spectrum *= dipole(padded)
    return np.fft.irfftn(spectrum, s=padded, axes=(0, 1, 2))[:x, :y, :z]


def dipole(shape: tuple[int, ...]) -> np.ndarray:
    """1/3 - (k.b)^2 / k^2 of voxels that are boxes, on the half spectrum, float32."""
    squared: list[np.ndarray] = []
    odd: list[np.ndarray] = []
    box = np.ones((1, 1, 1), np.float32)
    for axis, (size, step) in enumerate(zip(shape, SPACING_MM, strict=True)):
        k = np.fft.rfftfreq(size, step) if axis == 2 else np.fft.fftfreq(size, step)
        k = k.astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
        box = box * np.sinc(k * np.float32(step))
        squared.append(k**2)
        odd.append(np.where(np.abs(k) < 0.4999 / step, k, 0))
    b = np.array(DIRECTION, np.float32)
    along = sum(squared[a] * b[a] ** 2 for a in range(3))
    for a, c in ((0, 1), (0, 2), (1, 2)):
        along = along + 2 * b[a] * b[c] * odd[a] * odd[c]
    norm = squared[0] + squared[1] + squared[2]
    norm[0, 0, 0] = 1
    kernel = box * (np.float32(1 / 3) - along / norm)
    kernel[0, 0, 0] = 0
    return kernel


def crop(image: np.ndarray, matrix: Triple) -> np.ndarray:
    """The low frequencies of a complex (X, Y, Z) image, as `cropped_spectrum` does."""
    for axis in (2, 0, 1):
        old, new = image.shape[axis], matrix[axis]
        positive = (new + 1) // 2
        spectrum = np.fft.fft(image, axis=axis)
        kept = [*range(positive), *range(old - (new - positive), old)]
        image = np.fft.ifft(spectrum.take(kept, axis=axis), axis=axis) * np.float32(new / old)
    return image


def weighted(image: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """SWI and filtered phase of a complex (X, Y, Z) image, as `cmb_jax.scan.swi.susceptibility_weighted`."""
    sizes = [next_fast_len(n + MARGIN, real=True) for n in image.shape[:2]]
    windows = []
    for size, step in zip(sizes, spacing_mm, strict=False):
        cycles = np.abs(np.fft.fftfreq(size, step)).astype(np.float32) * np.float32(HOMODYNE_MM)
        windows.append(np.where(cycles < 1, np.cos(np.float32(math.pi / 2) * cycles) ** 2, 0))
    slices = np.moveaxis(image, 2, 0)
    spectrum = np.fft.fft2(slices, s=sizes, axes=(1, 2)) * (windows[0][:, None] * windows[1])
    low = np.moveaxis(np.fft.ifft2(spectrum, axes=(1, 2))[:, : image.shape[0], : image.shape[1]], 0, 2)
    phase = np.angle(image * np.conj(low))
    return np.abs(image) * np.clip(1 - phase / np.float32(math.pi), 0, 1) ** 4, phase
