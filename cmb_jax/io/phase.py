"""Stored phase to radians with paramagnetic positive: ranges told apart, sign found or given."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.phase_sign import SignDecision, decide_phase_sign
from cmb_jax.io.volume import Volume

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
    elif phase_range is PhaseRange.SYMMETRIC:
        data = data * (math.pi / max(float(np.abs(data).max()), np.finfo(np.float64).tiny))
    wrapped = data - 2 * math.pi * np.ceil((data - math.pi) / (2 * math.pi))
    bound = np.float32(np.nextafter(np.float32(math.pi), np.float32(0)))  # float32(pi) lies above pi
    return np.clip(wrapped.astype(np.float32), -bound, bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPhase:
    """Phase as the rest of the program wants it, and how it was read."""

    phase_rad: (
        np.ndarray
    )  # (X, Y, Z) float32 radians in (-pi, pi], paramagnetic positive, not yet high-passed
    range: PhaseRange
    decision: SignDecision

    @property
    def notes(self) -> tuple[str, ...]:
        """One line each for the user and the records."""
        return (f"phase read as {self.range.value}", self.decision.reason)


def fixed_sign(phase_sign: str) -> SignDecision | None:
    """The decision that the user took: "+1" or "-1"; None for "auto".

    Raises:
        UserError: anything else.
    """
    if phase_sign == "auto":
        return None
    if phase_sign not in ("+1", "-1"):
        raise UserError(f"phase sign {phase_sign!r} is unknown; use auto, +1 or -1")
    return SignDecision(sign=int(phase_sign), confident=True, reason=f"phase sign {phase_sign} as given")


def field_direction(affine: np.ndarray) -> tuple[float, float, float]:
    """Unit vector of the main field (RAS z: supine, head first) in the array axes of an affine (4, 4)."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = columns[2] / np.linalg.norm(columns[2])
    return float(x), float(y), float(z)


def prepare_phase(
    phase: Volume, reference: Volume, phase_range: PhaseRange | None = None, phase_sign: str = "auto"
) -> PreparedPhase:
    """Reads stored phase: range and sign found from the data unless given.

    Args:
        phase: phase as stored.
        reference: magnitude or SWI on the same grid.
        phase_range: the range; None: told from the extremes.
        phase_sign: "auto", "+1" or "-1": the sign of paramagnetic phase as stored.

    Raises:
        UserError: the grids differ, the values fit no range, or the sign is none of these.
    """
    decision = fixed_sign(phase_sign)
    check_same_grid(reference, phase)
    try:
        found = detect_phase_range(phase.data) if phase_range is None else phase_range
    except UserError as error:
        raise UserError(f"{phase.source or 'phase'}: {error}") from None
    radians = phase_to_radians(phase.data, found)
    if decision is None:
        direction = field_direction(reference.affine)
        decision = decide_phase_sign(radians, reference.data, reference.spacing_mm, direction)
    return PreparedPhase(phase_rad=decision.sign * radians, range=found, decision=decision)
