"""Stored phase to radians: any linear scaling, believed only where the values support it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmb_jax.errors import NotAnalysableError, UserError

_TOLERANCE = 0.01  # relative to the width; stored extremes are rounded
_BINS = 32
# A wrapped phase has no ends: the two bins beside the seam hold about as many values as each other, and not
# much fewer than other bins. Where most values lie about the seam (0 to 2 pi, with phases about 0), both are
# full, but may differ.
_LEAST_AT_SEAM = 0.3  # of the median bin
_ALIKE = 0.5  # the emptier over the fuller
_FULL = 2.0  # times the median bin
_SAMPLES = 2**20
_NARROWEST = 0.9  # share of a stated range that filled values may span at the least


@dataclasses.dataclass(frozen=True)
class PhaseRange:
    """How phase is scaled in a file: `low` to `high` is one turn."""

    name: str  # as typed, or the two numbers
    low: float
    high: float

    RADIANS: ClassVar[PhaseRange]
    """Radians, wrapped to +-pi or not, or high-passed."""
    PLUS_MINUS_4096: ClassVar[PhaseRange]
    ZERO_4095: ClassVar[PhaseRange]
    MILLIRADIANS: ClassVar[PhaseRange]
    """Thousandths of a radian (GE, and Philips after its rescaling)."""
    ZERO_2PI: ClassVar[PhaseRange]

    @classmethod
    def between(cls, low: float, high: float) -> PhaseRange:
        """The range of those ends.

        Raises:
            UserError: the ends are not finite, or not in order.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"--phase-range {low:g} {high:g}: give two finite numbers, the lower first")
        return cls(f"{low:g} {high:g}", float(low), float(high))

    @property
    def turn(self) -> tuple[float, float]:
        """The stored values that one turn lies between."""
        return self.low, self.high

    @property
    def width(self) -> float:
        """One turn, in stored units."""
        return self.high - self.low


PhaseRange.RADIANS = PhaseRange("radians", -math.pi, math.pi)
PhaseRange.PLUS_MINUS_4096 = PhaseRange("pm4096", -4096.0, 4096.0)
PhaseRange.ZERO_4095 = PhaseRange("0-4095", 0.0, 4096.0)
PhaseRange.MILLIRADIANS = PhaseRange("milliradians", -1000 * math.pi, 1000 * math.pi)
PhaseRange.ZERO_2PI = PhaseRange("0-2pi", 0.0, 2 * math.pi)

NAMED = (
    PhaseRange.RADIANS,
    PhaseRange.PLUS_MINUS_4096,
    PhaseRange.ZERO_4095,
    PhaseRange.MILLIRADIANS,
    PhaseRange.ZERO_2PI,
)


def asked_range(words: Sequence[str]) -> PhaseRange | None:
    """The range that `--phase-range` names: "auto" (None), a name, or two numbers.

    Raises:
        UserError: it is none of these.
    """
    if tuple(words) in ((), ("auto",)):
        return None
    named = {kind.name: kind for kind in NAMED}
    if len(words) == 1 and words[0] in named:
        return named[words[0]]
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        raise UserError(
            f"--phase-range {' '.join(words)}: give auto, {', '.join(named)}, or the lowest and highest value"
        ) from None
    return PhaseRange.between(low, high)


def fills(data: np.ndarray) -> bool:
    """Whether values fill the range of their extremes as a wrapped phase with noise does.

    Zeros, which masks leave, do not count. Intensities and unwrapped or masked high-passed phase thin out
    toward their extremes.

    Args:
        data: any shape, finite.
    """
    # The unit of a phase is not in the file: 0 to 4095 may be one turn, or may be an intensity. But an angle
    # has no ends, so the two bins beside the seam hold about as many values as any others, and that neither
    # chance nor another kind of image gives. Only then are the extremes believed to be one turn.
    values = _sample(data)
    values = values[values != 0]
    if len(values) < 10 * _BINS:
        return False
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return False
    # the extremes themselves do not count: what is clipped piles up there
    inner = values[(values > low) & (values < high)]
    step = (high - low) / _BINS
    if bool(np.all(inner == np.rint(inner))) and step < 1:
        return False  # fewer integer levels than bins: some bins are empty by rounding alone
    counts = np.histogram(inner, _BINS, (low, high))[0].astype(float)
    middle = max(float(np.median(counts)), 1.0)
    ends = counts[[0, -1]]
    alike = ends.min() >= _ALIKE * ends.max() or ends.min() >= _FULL * middle
    return bool(ends.min() >= _LEAST_AT_SEAM * middle and alike)


def detect_phase_range(data: np.ndarray) -> PhaseRange:
    """Determine the range of stored phase from how its values fill it.

    A range is believed only if the values fill it from end to end, as they do in any raw or high-passed phase
    because of noise and wraps. Where the air around the head was masked they may not; then only the user can
    know the unit.

    Args:
        data: stored phase, any shape; slope and intercept applied.

    Returns:
        A named range if the extremes are its own, otherwise the one between the extremes.

    Raises:
        NotAnalysableError: the values do not fill the range between their extremes.
    """
    low, high = float(np.min(data)), float(np.max(data))
    if not fills(data):
        names = ", ".join(kind.name for kind in NAMED)
        raise NotAnalysableError(
            f"the phase, from {low:g} to {high:g}, does not fill its range, so that its unit cannot be told; "
            f"state the range with --phase-range ({names}, or the lowest and the highest value)"
        )
    for kind in NAMED:
        if max(abs(low - kind.low), abs(high - kind.high)) <= _TOLERANCE * kind.width:
            return kind
    return PhaseRange.between(low, high)


def range_of(data: np.ndarray, stated: PhaseRange | None = None) -> PhaseRange:
    """The range that is stated, unless the values contradict it; otherwise as `detect_phase_range`.

    Raises:
        NotAnalysableError: values lie outside the stated range or fill a much narrower one; none is stated,
            and none can be told.
    """
    if stated is None:
        return detect_phase_range(data)
    low, high = float(np.min(data)), float(np.max(data))
    slack = _TOLERANCE * stated.width
    outside = low < stated.low - slack or high > stated.high + slack
    if outside and stated != PhaseRange.RADIANS:  # radians may be unwrapped
        raise NotAnalysableError(
            f"the phase, from {low:g} to {high:g}, does not lie in the stated range {stated.name}"
        )
    if high - low < _NARROWEST * stated.width and fills(data):
        raise NotAnalysableError(
            f"the phase fills the range from {low:g} to {high:g}, not the stated one ({stated.name}); "
            f"give --phase-range {low:g} {high:g}, or leave it to be told from the values"
        )
    return stated


def phase_to_radians(data: np.ndarray, phase_range: PhaseRange) -> np.ndarray:
    """Stored phase of any shape as float32 radians in (-pi, pi].

    An offset common to all voxels (as between 0..2 pi and +-pi) is not undone: high-passing removes it.
    """
    data = np.asarray(data, np.float64)
    if phase_range not in (PhaseRange.RADIANS, PhaseRange.ZERO_2PI):
        data = (data - (phase_range.low + phase_range.high) / 2) * (2 * math.pi / phase_range.width)
    # ceil and not floor: pi stays pi, and what lies within one turn already is not touched by rounding
    wrapped = data - 2 * math.pi * np.ceil((data - math.pi) / (2 * math.pi))
    bound = np.float32(np.nextafter(np.float32(math.pi), np.float32(0)))  # float32(pi) lies above pi
    return np.clip(wrapped.astype(np.float32), -bound, bound)


def _sample(data: np.ndarray) -> np.ndarray:
    """At most about a million of the values, evenly taken, with both extremes."""
    flat = np.asarray(data).ravel()
    step = max(1, flat.size // _SAMPLES)
    return np.concatenate([flat[::step], [flat.min(), flat.max()]])
