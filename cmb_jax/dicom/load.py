"""Loads the chosen stacks of a scan as volumes for the detector; phase becomes radians."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from cmb_jax.dicom.choose import Choice
from cmb_jax.dicom.convert import FrameMapping, convert, frame_mapping, stack_name
from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import NotAnalysableError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.volume import Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.make_swi import OpenSignError, make_swi
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians, range_of

_GE_PEAKS = (0.9, 1.01)  # peak of GE's integers over 1000 pi: wrapped phase fills its range
_LEAST_PEAK = 7.0  # stored integers exceed it; smaller values are already radians
_ALTERNATES = -0.3  # median coherence of neighboring slices; more negative means opposite signs
_MOST_PAIRS = 0.8  # minimum fraction of neighboring slices with opposite signs


@dataclasses.dataclass(frozen=True, kw_only=True)
class DicomImages:
    """The volumes of one scan on one grid, and the stack that results refer to."""

    swi: Volume
    phase: Volume | None  # radians, sign as stored unless the SWI was made here
    magnitude: Volume | None
    paramagnetic_positive: bool  # whether the sign of the phase is known to be this one
    reference: Stack
    mapping: FrameMapping  # from swi's grid to the reference's frames
    inputs: tuple[tuple[str, str, str], ...]  # (role, neutral name, sha256) of the converted stacks
    steps: tuple[str, ...]
    warnings: tuple[str, ...]


def load(
    choice: Choice,
    *,
    phase_range: PhaseRange | None = None,
    phase_sign: PhaseSign = "auto",
    progress: Callable[[str], None] = lambda text: None,
) -> DicomImages:
    """Convert the chosen stacks; make the susceptibility-weighted image if there is none.

    Args:
        choice: stacks of one scan.
        phase_range: unit of the stored phase; None: detected from headers and data.
        phase_sign: "auto", "+1" or "-1"; used here only if the SWI must be made.
        progress: called with a line about each step.

    Raises:
        UserError: a stack cannot be converted, its phase has no known range, or the stacks do not fit.
    """
    loader = _Loader(phase_range, progress)
    warnings: tuple[str, ...] = choice.notes
    magnitude: Volume | None = None
    phase: Volume | None = None
    if choice.swi is not None:
        swi = loader.read("swi", choice.swi)
        if choice.magnitude:
            magnitude = loader.read("magnitude", choice.magnitude[0])
        if choice.phase:
            stored = loader.read("phase", choice.phase[0])
            check_same_grid(swi, stored)
            phase = loader.to_radians(stored, swi, choice.phase[0])
    else:
        # making the SWI determines the sign of the phase; if that fails, phase is dropped: it would mislead
        magnitudes, phases = loader.read_echoes(choice)
        magnitude = magnitudes[0]
        progress("making the susceptibility-weighted image")
        te_ms = tuple(stack.first.echo_ms or 0.0 for stack in (choice.magnitude or choice.real))
        try:
            swi, phase = _made_swi(magnitudes, phases, te_ms, phase_sign)
            loader.steps.append(f"susceptibility-weighted image made from {len(te_ms)} echo(es)")
        except OpenSignError as error:
            swi = magnitudes[-1]
            warnings += (str(error), "a T2*-weighted magnitude stands for SWI, without phase")
    return DicomImages(
        swi=swi,
        phase=phase,
        magnitude=magnitude,
        paramagnetic_positive=choice.swi is None,
        reference=choice.reference,
        mapping=frame_mapping(swi, choice.reference),
        inputs=tuple(loader.inputs),
        steps=tuple(loader.steps),
        warnings=warnings,
    )


class _Loader:
    """Converts stacks, and records what was read (`inputs`) and what was done (`steps`)."""

    def __init__(self, phase_range: PhaseRange | None, progress: Callable[[str], None]):
        self.phase_range = phase_range
        self.progress = progress
        self.inputs: list[tuple[str, str, str]] = []
        self.steps = ["DICOM converted by dcm2niix, voxels placed by the positions in the headers"]

    def read(self, role: str, stack: Stack) -> Volume:
        self.progress(f"converting {role}, series {stack.key}")
        volume = convert(stack)
        self.inputs.append((role, stack_name(stack), volume.sha256 or ""))
        return volume

    def read_echoes(self, choice: Choice) -> tuple[list[Volume], list[Volume]]:
        """Magnitude and phase (radians) of each echo."""
        magnitudes, phases = [], []
        for stack, other in zip(choice.real, choice.imaginary, strict=True):
            real, imaginary = self.read("real", stack), self.read("imaginary", other)
            signal = real.data + 1j * imaginary.data
            magnitudes.append(dataclasses.replace(real, data=np.abs(signal)))
            phase = dataclasses.replace(real, data=np.angle(signal))
            phases.append(self._without_alternation(phase, magnitudes[-1], stack))
            self.steps.append(
                f"magnitude and phase taken from real and imaginary parts, series {stack.key}, {other.key}"
            )
        for stack, other in zip(choice.magnitude, choice.phase, strict=True):
            magnitudes.append(self.read("magnitude", stack))
            phases.append(self.to_radians(self.read("phase", other), magnitudes[-1], other))
        return magnitudes, phases

    def to_radians(self, stored: Volume, weight: Volume, stack: Stack) -> Volume:
        """Stored phase as radians; `weight`: its magnitude or SWI."""
        # precedence: the user's option, the headers, the values
        by_header = stated_phase_range(stack, float(np.abs(stored.data).max()))
        try:
            found = range_of(stored.data, self.phase_range or by_header)
        except NotAnalysableError as error:
            raise NotAnalysableError(f"series {stack.key}: {error}") from None
        source = "as asked" if self.phase_range else "by the headers" if by_header else "by its values"
        self.steps.append(f"phase of series {stack.key} stored as {found.name}, {source}")
        phase = dataclasses.replace(stored, data=phase_to_radians(stored.data, found))
        return self._without_alternation(phase, weight, stack)

    def _without_alternation(self, phase: Volume, weight: Volume, stack: Stack) -> Volume:
        axis = frame_mapping(phase, stack).slice_axis
        if not alternates(weight.data, phase.data, axis):
            return phase
        self.steps.append(
            f"half a turn added to every second slice of series {stack.key}, whose sign alternated"
        )
        return dataclasses.replace(phase, data=without_alternation(phase.data, axis))


def _made_swi(
    magnitudes: list[Volume], phases: list[Volume], te_ms: tuple[float, ...], phase_sign: PhaseSign
) -> tuple[Volume, Volume]:
    """SWI and high-passed phase (paramagnetic positive) on the grid of the magnitude."""
    made = make_swi(
        magnitudes,
        phases,
        te_ms=te_ms if len(te_ms) > 1 else (),
        phase_sign=phase_sign,
        phase_range=PhaseRange.RADIANS,
    )
    swi = dataclasses.replace(magnitudes[0], data=made.swi)
    return swi, dataclasses.replace(magnitudes[0], data=made.phase, warnings=phases[0].warnings)


def stated_phase_range(stack: Stack, peak: float) -> PhaseRange | None:
    """The unit of stored phase, from the range that bits, slope and intercept allow.

    Siemens: 12 bits with slope 2 and intercept -4096, or without rescaling. Philips: rescaled to thousandths
    of a radian. GE: integers in thousandths of a radian, in 16 bits. High-passed phase does not fill its
    range, so headers are more reliable than values.

    Args:
        stack: phase stack.
        peak: largest absolute value of the data, slope and intercept applied.

    Returns:
        None where the headers do not determine it.
    """
    if peak < _LEAST_PEAK:
        return None
    # sorted, because a slope may be negative
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
    """Whether the complex signal changes sign from slice to slice, as some reconstructions leave it.

    Omitting the shift (fftshift) after the Fourier transform along slices multiplies every second slice by
    -1. Neighboring slices of a head are alike, so the product of one with the conjugate of the next is then
    mostly negative.

    Args:
        magnitude: (X, Y, Z), weight of each voxel; an SWI will do.
        phase: (X, Y, Z) radians.
        slice_axis: the axis through the slices.
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
    half_turns = np.resize([0.0, math.pi], phase.shape[slice_axis]).reshape(shape)
    return phase_to_radians(phase + half_turns, PhaseRange.RADIANS)
