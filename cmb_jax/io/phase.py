"""Stored phase to radians: the ways of storing it told apart by their range; its sign is in phase_sign.py."""

from __future__ import annotations

import enum
import math

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.phase_sign import SignDecision, decide_phase_sign, field_direction

__all__ = [
    "PhaseRange",
    "SignDecision",
    "decide_phase_sign",
    "detect_phase_range",
    "field_direction",
    "phase_to_radians",
]

_TOLERANCE = 0.01  # relative; stored extremes are rounded
_TINY_RADIANS = 0.05  # high-passed phase in radians reaches further than this


class PhaseRange(enum.Enum):
    """How phase is stored. The values are the names that users type."""

    RADIANS = "radians"
    """Radians, wrapped to +-pi or not, or high-passed."""
    PLUS_MINUS_4096 = "pm4096"
    """+-4096 stands for +-pi."""
    ZERO_4095 = "0-4095"
    """0..4095 stands for -pi..pi."""
    MILLIRADIANS = "milliradians"
    """Thousandths of a radian (GE, and Philips after its rescaling)."""
    ZERO_2PI = "0-2pi"
    """Radians from 0 to 2 pi."""
    SYMMETRIC = "symmetric"
    """Any other scale; the largest absolute value stands for pi (degrees are a case of it)."""


def detect_phase_range(data: np.ndarray) -> PhaseRange:
    """Tells the range of stored phase from its extremes.

    Args:
        data: stored phase, any shape; slope and intercept applied.

    Returns:
        The range. Wrapped phase fills its range; of high-passed phase only the unit can be told, and there
        integers between +-4096 are taken as such.

    Raises:
        UserError: the values fit none.
    """
    low, high = float(np.min(data)), float(np.max(data))
    peak = max(-low, high)
    whole = bool(np.all(data == np.rint(data)))
    symmetric = abs(high + low) <= _TOLERANCE * peak
    if low >= -1e-3:
        if high <= 2 * math.pi * (1 + _TOLERANCE) and not (whole and high > 6):
            return PhaseRange.ZERO_2PI
        if high <= 4096:
            return PhaseRange.ZERO_4095
    elif peak <= math.pi * (1 + _TOLERANCE):
        if peak >= _TINY_RADIANS:
            return PhaseRange.RADIANS
        if symmetric:
            return PhaseRange.SYMMETRIC
    elif abs(peak - 1000 * math.pi) <= _TOLERANCE * 1000 * math.pi:
        return PhaseRange.MILLIRADIANS
    elif 0.97 * 4096 <= peak <= 4096:
        return PhaseRange.PLUS_MINUS_4096
    elif symmetric:
        return PhaseRange.SYMMETRIC
    elif whole and peak <= 4096:
        return PhaseRange.PLUS_MINUS_4096
    names = ", ".join(kind.value for kind in PhaseRange)
    raise UserError(f"phase from {low:g} to {high:g} fits no known range; state the range ({names})")


def phase_to_radians(data: np.ndarray, phase_range: PhaseRange) -> np.ndarray:
    """Stored phase of any shape as float32 radians in (-pi, pi].

    An offset common to all voxels (as between 0..2 pi and +-pi) is not undone: high-passing removes it.
    """
    data = np.asarray(data, np.float64)
    if phase_range is PhaseRange.PLUS_MINUS_4096:
        data = data * (math.pi / 4096)
    elif phase_range is PhaseRange.ZERO_4095:
        data = data * (2 * math.pi / 4096) - math.pi
    elif phase_range is PhaseRange.MILLIRADIANS:
        data = data / 1000
    elif phase_range is PhaseRange.SYMMETRIC:
        data = data * (math.pi / max(float(np.abs(data).max()), np.finfo(np.float64).tiny))
    wrapped = data - 2 * math.pi * np.ceil((data - math.pi) / (2 * math.pi))
    bound = np.float32(np.nextafter(np.float32(math.pi), np.float32(0)))  # float32(pi) lies above pi
    return np.clip(wrapped.astype(np.float32), -bound, bound)
