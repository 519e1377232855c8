"""Prepares the images of one scan for the network, in the same way for prediction and for training."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cmb_jax.anatomy.regions import Region, RegionMap, region_of
from cmb_jax.data.prepare import PreparedVolume, prepare
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.volume import ScanImages, Volume, content_bounds
from cmb_jax.regions.predict import brain_mask_on, predict_regions, region_code_on
from cmb_jax.scan import PhaseSign
from cmb_jax.scan.judge import (
    judge_brain,
    judge_fluid,
    judge_grid,
    judge_intensity,
    judge_magnitude,
    judge_name,
    judge_phase,
)
from cmb_jax.scan.phase_range import PhaseRange, phase_to_radians, range_of
from cmb_jax.scan.phase_sign import decide_phase_sign, field_direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseChoice:
    """How the stored phase was read."""

    radians: np.ndarray | None  # (X, Y, Z), paramagnetic positive; None: it must be left out
    sentence: str  # range and sign, and why
    warning: str | None = None  # why it is left out, or in doubt


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """What the network sees of one scan, and how it came about."""

    prepared: PreparedVolume
    phase_rad: np.ndarray | None  # (X, Y, Z) on the scan's grid, paramagnetic positive
    region_map: RegionMap
    brain_mask: np.ndarray  # (X, Y, Z) bool on the scan's grid
    region_code: np.ndarray  # (X, Y, Z) uint8 on the scan's grid
    steps: tuple[str, ...]
    warnings: tuple[str, ...]
    timings: tuple[tuple[str, float], ...]  # name, seconds


class Clock:
    """Names and seconds of what was done, in order."""

    def __init__(self, earlier: Sequence[tuple[str, float]] = ()) -> None:
        self.timings = list(earlier)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body of a `with`."""
        tick = time.perf_counter()
        yield
        self.timings.append((name, round(time.perf_counter() - tick, 2)))


def read_phase(
    phase: Volume,
    reference: Volume,
    sign: PhaseSign = "auto",
    stored: PhaseRange | None = None,
) -> PhaseChoice:
    """Bring a stored phase image to radians with paramagnetic positive.

    Args:
      phase: as stored; radians, +-4096, 0..4095 or 0..2 pi.
      reference: SWI on the same grid, in which veins are darker than on the magnitude.
      sign: +1 or -1 multiplies the phase; "auto" lets veins and deep nuclei decide.
      stored: the storage range, if it must not be found from the data.

    Raises:
      NotAnalysableError: it is not a phase, or its unit cannot be determined.
    """
    phase_range = range_of(phase.data, stored)
    radians = phase_to_radians(phase.data, phase_range)
    doubts = judge_phase(phase.data, radians, reference.data).enforce("phase")
    if doubts:
        return _left_out(*doubts)
    # the sign is also determined where the user states it: a contradiction deserves a warning
    decision = decide_phase_sign(
        radians, reference.data, reference.spacing_mm, b0_direction=field_direction(reference.affine)
    )
    warning = None
    if sign == "auto":
        if not decision.confident:
            return _left_out(f"its sign is open ({decision.reason}); give --phase-sign")
        factor, why = decision.sign, decision.reason
    else:
        factor, why = int(sign), "as asked"
        if decision.confident and decision.sign != factor:
            warning = (
                f"the sign {factor:+d} of the phase was asked for, but the images say {decision.sign:+d} "
                f"({decision.reason}): if they are right, microbleeds and calcifications are exchanged"
            )
    sentence = f"phase read as {phase_range.name}, sign {factor:+d} ({why})"
    return PhaseChoice(radians=radians * factor, sentence=sentence, warning=warning)


def _left_out(why: str) -> PhaseChoice:
    """A phase without information: the detector works on the intensity alone rather than on a guess."""
    warning = f"the phase was left out: {why}; calcifications cannot be told from microbleeds"
    return PhaseChoice(radians=None, sentence="phase left out", warning=warning)


def prepare_scan(
    images: ScanImages,
    *,
    spacing_mm: tuple[float, float, float],
    phase_sign: PhaseSign = "auto",
    phase_range: PhaseRange | None = None,
    region_map: RegionMap | None = None,
    progress: Callable[[str], None] | None = None,
) -> PreparedScan:
    """Phase to radians, brain and regions by the region network, crop, scale, working grid.

    Args:
      images: of one scan, RAS axes.
      spacing_mm: working grid (z, y, x).
      phase_sign: "auto", "+1" or "-1" (what the stored phase is multiplied with, so that paramagnetic is
        positive).
      phase_range: storage range of the phase; default: found from the data.
      region_map: region codes to use instead of the region network's.
      progress: callback for progress messages.

    Raises:
      UserError: the images do not lie on one grid.
      NotAnalysableError: they are not what they are called, or no count can be given on them.
    """
    say, clock, steps = progress or (lambda _: None), Clock(), []
    swi, magnitude, warnings = _checked(images)
    radians = None
    if images.phase is None:
        warnings.append("no phase was given: calcifications cannot be told from microbleeds by their sign")
    else:
        say("reading the phase")
        with clock("phase"):
            radians, choice = _phase_in_content(images.phase, swi, phase_sign, phase_range)
        steps.append(choice.sentence)
        if choice.warning:
            warnings.append(choice.warning)

    say("finding brain regions")
    with clock("regions"):
        if region_map is None:
            region_map = predict_regions(swi if magnitude is None else magnitude)
            steps.append("brain mask and regions by the region network at 2 mm")
        else:
            steps.append("brain mask and regions from the given label volume")
        mask = brain_mask_on(swi, region_map)
        code = region_code_on(swi, region_map)
    warnings.extend(region_map.messages)
    # contrast is judged in regions, so this must wait until they are known, and trusted
    if region_map.trusted:
        region = region_of(code)
        fluid, tissue = region == Region.VENTRICLE, region == Region.DEEP_WHITE_MATTER
        warnings += judge_fluid(swi, fluid, tissue).enforce("SWI")
        warnings += judge_brain(swi, mask).enforce("SWI")

    say("preparing the images")
    with clock("preparation"):
        prepared = prepare(swi, radians, mask, spacing_mm=spacing_mm)
        z, y, x = prepared.spacing_mm
        filtered = "phase high-passed"
        if prepared.phase_was_filtered:
            filtered = "phase taken as it is, high-passed already"
        steps.append(f"cropped to the brain, {filtered}, resampled to {x:g} x {y:g} x {z:g} mm (x, y, z)")
    return PreparedScan(
        prepared=prepared,
        phase_rad=radians,
        region_map=region_map,
        brain_mask=mask,
        region_code=code,
        steps=tuple(steps),
        warnings=tuple(warnings),
        timings=tuple(clock.timings),
    )


def _checked(images: ScanImages) -> tuple[Volume, Volume | None, list[str]]:
    """SWI and magnitude at unit scale, and warnings; images of another kind than stated are refused."""
    swi, magnitude = images.swi, images.magnitude
    warnings = [f"SWI: {line}" for line in swi.warnings]
    for role, other in (("phase", images.phase), ("magnitude", magnitude)):
        if other is not None:
            check_same_grid(swi, other)
            warnings.extend(f"{role}: {line}" for line in other.warnings)
    warnings += judge_name(swi.source).enforce("SWI")
    warnings += judge_grid(swi).enforce("SWI")
    warnings += judge_intensity(swi.data).enforce("SWI")
    swi = _of_unit_scale(swi)
    if magnitude is not None:
        warnings += judge_intensity(magnitude.data).enforce("magnitude")
        doubts = judge_magnitude(magnitude.data, swi.data).reasons
        warnings += [f"the magnitude was left out: {doubt}" for doubt in doubts]
        magnitude = None if doubts else _of_unit_scale(magnitude)
    return swi, magnitude, warnings


def _phase_in_content(
    phase: Volume, swi: Volume, sign: PhaseSign, stored: PhaseRange | None
) -> tuple[np.ndarray | None, PhaseChoice]:
    """Radians on the whole grid, read within the box that the SWI fills: zeros around it decide nothing."""
    bounds = content_bounds(swi.data)
    choice = read_phase(phase.cut(bounds), swi.cut(bounds), sign, stored)
    if choice.radians is None:
        return None, choice
    radians = np.zeros(swi.shape, choice.radians.dtype)
    radians[tuple(slice(low, high) for low, high in bounds)] = choice.radians
    return radians, choice


def _of_unit_scale(volume: Volume) -> Volume:
    """The volume times the power of two that brings its bright tissue near 1: exact, and no scale matters."""
    # a power of two changes exponents alone: the same image at another scale gives the same result, bit for
    # bit
    top = float(np.percentile(volume.data[volume.data > 0], 99))
    factor = np.float32(2.0) ** -np.rint(np.log2(top))
    return dataclasses.replace(volume, data=volume.data * np.float32(factor))
