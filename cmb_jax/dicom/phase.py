"""Phase as vendors store it in DICOM: its unit by the headers, and slices whose sign alternates."""

from __future__ import annotations

import math

import numpy as np

from cmb_jax.dicom.stacks import Stack
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians

_GE_PEAKS = (0.9, 1.01)  # share of 1000 pi that GE's integers reach: wrapped phase fills its range
_LEAST_PEAK = 7.0  # integers reach further: the converter has applied a mapping to radians
_ALTERNATES = -0.3  # coherence of neighboring slices from which their sign is opposite
_MOST_PAIRS = 0.8


def stated_phase_range(stack: Stack, peak: float) -> PhaseRange | None:
    """The unit of stored phase, from what bits, slope and intercept could hold at most.

    Siemens: 12 bits with slope 2 and intercept -4096, or without rescaling. Philips: rescaled to thousandths
    of a radian. GE: integers in thousandths of a radian, in 16 bits. A high-passed phase does not fill its
    range, so that headers tell more than the data.

    Args:
        stack: phase stack.
        peak: largest absolute value of the data, slope and intercept applied.

    Returns:
        None where the headers leave it open: then the data must tell.
    """
    if peak < _LEAST_PEAK:
        return None
    low, high = sorted(
        value * stack.first.slope + stack.first.intercept for value in stack.instance.stored_range
    )
    if _near(low, -4096) and _near(high, 4096):
        return PhaseRange.PLUS_MINUS_4096
    if low == 0 and high == 4095:
        return PhaseRange.ZERO_4095
    if _near(low, -1000 * math.pi) and _near(high, 1000 * math.pi):
        return PhaseRange.MILLIRADIANS
    filled = peak / (1000 * math.pi)
    if stack.instance.manufacturer.upper().startswith("GE") and _GE_PEAKS[0] <= filled <= _GE_PEAKS[1]:
        return PhaseRange.MILLIRADIANS
    return None


def _near(value: float, target: float) -> bool:
    return abs(value - target) <= 0.005 * abs(target)


def alternates(magnitude: np.ndarray, phase: np.ndarray, slice_axis: int) -> bool:
    """Whether the complex signal changes its sign from slice to slice, as some reconstructions leave it.

    A shift left out after the Fourier transform along slices multiplies every second slice by -1.
    Neighboring slices of a head are alike, so that their product with the conjugate is then mostly negative.

    Args:
        magnitude: (X, Y, Z), weight of each voxel; an SWI will do.
        phase: (X, Y, Z) radians.
        slice_axis: axis along which the slices lie.
    """
    slices = np.moveaxis(magnitude * np.exp(1j * phase), slice_axis, 0)
    products = slices[:-1] * slices[1:].conj()
    strength = np.abs(products).sum(axis=(1, 2))
    coherence = products.real.sum(axis=(1, 2)) / np.maximum(strength, np.finfo(np.float32).tiny)
    return bool(np.median(coherence) < _ALTERNATES and np.mean(coherence < 0) >= _MOST_PAIRS)


def without_alternation(phase: np.ndarray, slice_axis: int) -> np.ndarray:
    """Phase (X, Y, Z) in radians with half a turn added to every second slice, wrapped to +-pi."""
    shape = [1, 1, 1]
    shape[slice_axis] = phase.shape[slice_axis]
    turns = np.resize([0.0, math.pi], phase.shape[slice_axis]).reshape(shape)
    return phase_to_radians(phase + turns, PhaseRange.RADIANS)
