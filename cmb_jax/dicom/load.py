"""The chosen stacks of a scan as volumes, ready for the detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from cmb_jax.dicom.choose import Choice
from cmb_jax.dicom.convert import convert, stack_name
from cmb_jax.dicom.grid import FrameMapping, frame_mapping
from cmb_jax.dicom.phase import alternates, stated_phase_range, without_alternation
from cmb_jax.dicom.stacks import Stack
from cmb_jax.errors import NotAnalysableError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.volume import Volume
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.make_swi import OpenSignError, make_swi
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians, range_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DicomImages:
    """Volumes of one scan on one grid, and the stack that results refer to."""

    swi: Volume
    phase: Volume | None  # radians, sign as stored unless the SWI was made here
    magnitude: Volume | None
    paramagnetic_positive: bool  # the sign of the phase has been settled
    reference: Stack
    mapping: FrameMapping  # from swi's grid to the reference's frames
    inputs: tuple[tuple[str, str, str], ...]  # (role, neutral name, sha256) of what was converted
    steps: tuple[str, ...]
    warnings: tuple[str, ...]


def load(
    choice: Choice,
    *,
    phase_range: PhaseRange | None = None,
    phase_sign: PhaseSign = "auto",
    progress: Callable[[str], None] | None = None,
) -> DicomImages:
    """Converts the chosen stacks; makes the susceptibility-weighted image if there is none.

    Args:
        choice: stacks of one scan.
        phase_range: how the phase is stored; None: told from headers and data.
        phase_sign: "auto", "+1" or "-1"; used here only if the SWI has to be made.
        progress: told what is being done.

    Raises:
        UserError: a stack cannot be converted, its phase has no known range, or the stacks do not fit.
    """
    say = progress or (lambda _: None)
    inputs: list[tuple[str, str, str]] = []

    def read(role: str, stack: Stack) -> Volume:
        say(f"converting {role}, series {stack.key}")
        volume = convert(stack)
        inputs.append((role, stack_name(stack), volume.sha256 or ""))
        return volume

    notes: tuple[str, ...] = ()
    steps = ["DICOM converted by dcm2niix, voxels placed by the positions in the headers"]
    if choice.swi is not None:
        swi = read("swi", choice.swi)
        magnitude = read("magnitude", choice.magnitude[0]) if choice.magnitude else None
        phase = None
        if choice.phase:
            check_same_grid(swi, stored := read("phase", choice.phase[0]))
            phase = _phase(stored, swi, choice.phase[0], phase_range, steps)
        settled = False
    else:
        magnitudes, phases = _complex_echoes(choice, read, phase_range, steps)
        say("making the susceptibility-weighted image")
        echoes = tuple(stack.first.echo_ms or 0.0 for stack in (choice.magnitude or choice.real))
        try:
            swi, phase = _made(magnitudes, phases, echoes, phase_sign)
            steps.append(f"susceptibility-weighted image made from {len(echoes)} echo(es)")
        except OpenSignError as error:
            swi, phase = magnitudes[-1], None
            notes = (str(error), "a T2*-weighted magnitude stands for SWI, without phase")
        magnitude, settled = magnitudes[0], True
    return DicomImages(
        swi=swi,
        phase=phase,
        magnitude=magnitude,
        paramagnetic_positive=settled,
        reference=choice.reference,
        mapping=frame_mapping(swi, choice.reference),
        inputs=tuple(inputs),
        steps=tuple(steps),
        warnings=(*choice.notes, *notes),
    )


def _complex_echoes(
    choice: Choice, read: Callable[[str, Stack], Volume], asked: PhaseRange | None, steps: list[str]
) -> tuple[list[Volume], list[Volume]]:
    """Magnitude and phase (radians) of each echo; tells `steps` what was done."""
    magnitudes, phases = [], []
    for stack, other in zip(choice.real, choice.imaginary, strict=True):
        real, imaginary = read("real", stack), read("imaginary", other)
        signal = real.data + 1j * imaginary.data
        magnitudes.append(dataclasses.replace(real, data=np.abs(signal)))
        phase = dataclasses.replace(real, data=np.angle(signal))
        phases.append(_unalternated(phase, magnitudes[-1], stack, steps))
        steps.append(
            f"magnitude and phase taken from real and imaginary parts, series {stack.key}, {other.key}"
        )
    for stack, other in zip(choice.magnitude, choice.phase, strict=True):
        magnitudes.append(read("magnitude", stack))
        phases.append(_phase(read("phase", other), magnitudes[-1], other, asked, steps))
    return magnitudes, phases


def _phase(
    stored: Volume, weight: Volume, stack: Stack, asked: PhaseRange | None, steps: list[str]
) -> Volume:
    """Stored phase as radians; tells `steps` how it was read."""
    by_header = stated_phase_range(stack, float(np.abs(stored.data).max()))
    try:
        found = range_of(stored.data, asked or by_header)
    except NotAnalysableError as error:
        raise NotAnalysableError(f"series {stack.key}: {error}") from None
    told = "as asked" if asked else "by the headers" if by_header else "by its values"
    steps.append(f"phase of series {stack.key} stored as {found.name}, {told}")
    phase = dataclasses.replace(stored, data=phase_to_radians(stored.data, found))
    return _unalternated(phase, weight, stack, steps)


def _unalternated(phase: Volume, weight: Volume, stack: Stack, steps: list[str]) -> Volume:
    axis = frame_mapping(phase, stack).slice_axis
    if not alternates(weight.data, phase.data, axis):
        return phase
    steps.append(f"half a turn added to every second slice of series {stack.key}, whose sign alternated")
    return dataclasses.replace(phase, data=without_alternation(phase.data, axis))


def _made(
    magnitudes: list[Volume], phases: list[Volume], te_ms: tuple[float, ...], phase_sign: PhaseSign
) -> tuple[Volume, Volume]:
    """SWI and its high-passed phase (paramagnetic positive) on the grid of the magnitude."""
    made = make_swi(
        magnitudes,
        phases,
        te_ms=te_ms if len(te_ms) > 1 else (),
        phase_sign=phase_sign,
        phase_range=PhaseRange.RADIANS,
    )
    like = magnitudes[0]
    swi = dataclasses.replace(like, data=made.swi)
    return swi, dataclasses.replace(like, data=made.phase, warnings=phases[0].warnings)
