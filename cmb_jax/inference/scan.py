"""From the images of one scan to what the network sees: the same for prediction and for training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.data.prepare import PreparedVolume, content_bounds, prepare
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.phase import PhaseRange, detect_phase_range, phase_to_radians
from cmb_jax.io.phase_sign import SignDecision, decide_phase_sign, field_direction
from cmb_jax.io.volume import ScanImages, Volume
from cmb_jax.regions.predict import brain_mask_on, predict_regions, region_code_on

PhaseSign = Literal["auto", "+1", "-1"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseChoice:
    """How the stored phase was read."""

    radians: np.ndarray  # (X, Y, Z), paramagnetic positive
    sentence: str  # range and sign, and why
    warning: str | None  # when the sign could not be decided


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
        """Times the body of a `with`."""
        tick = time.perf_counter()
        yield
        self.timings.append((name, round(time.perf_counter() - tick, 2)))


def read_phase(
    phase: Volume,
    reference: Volume,
    sign: PhaseSign = "auto",
    stored: PhaseRange | None = None,
    customary_sign: SignDecision | None = None,
) -> PhaseChoice:
    """Bring a stored phase image to radians with paramagnetic positive.

    Args:
      phase: as stored; radians, +-4096, 0..4095 or 0..2 pi.
      reference: SWI on the same grid, in which veins are darker than on the magnitude.
      sign: +1 or -1 multiplies the phase; "auto" lets veins and deep nuclei decide.
      stored: the storage range, if it must not be found from the data.
      customary_sign: taken if the images do not tell the sign.
    """
    try:
        found = detect_phase_range(phase.data) if stored is None else stored
    except UserError as error:
        raise UserError(f"{phase.source or 'phase'}: {error}") from error
    radians = phase_to_radians(phase.data, found)
    warning = None
    if sign == "auto":
        decision = decide_phase_sign(
            radians, reference.data, reference.spacing_mm, b0_direction=field_direction(reference.affine)
        )
        if not decision.confident and customary_sign is not None:
            decision = customary_sign
        factor, why = decision.sign, decision.reason
        if not decision.confident:
            warning = f"the sign of the phase could not be decided with confidence ({why}); give --phase-sign"
    else:
        factor, why = int(sign), "as asked"
    sentence = f"phase read as {found.value}, sign {factor:+d} ({why})"
    return PhaseChoice(radians=radians * factor, sentence=sentence, warning=warning)


def prepare_scan(
    images: ScanImages,
    *,
    spacing_mm: tuple[float, float, float],
    phase_sign: PhaseSign = "auto",
    phase_range: PhaseRange | None = None,
    customary_sign: SignDecision | None = None,
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
      customary_sign: the sign to take if "auto" finds none with confidence, such as the scanner's.
      region_map: region codes to use instead of the region network's.
      progress: told what is being done.

    Raises:
      UserError: the images do not lie on one grid, or the phase has no known range.
    """
    say = progress or (lambda _: None)
    swi, phase, magnitude = images.swi, images.phase, images.magnitude
    clock, warnings, steps = Clock(), [f"SWI: {line}" for line in swi.warnings], []
    for role, other in (("phase", phase), ("magnitude", magnitude)):
        if other is not None:
            check_same_grid(swi, other)
            warnings.extend(f"{role}: {line}" for line in other.warnings)
    anatomy = swi if magnitude is None else magnitude

    radians = None
    if phase is not None:
        say("reading the phase")
        with clock("phase"):
            # zeros around the head decide nothing
            bounds = content_bounds(swi.data)
            choice = read_phase(phase.cut(bounds), swi.cut(bounds), phase_sign, phase_range, customary_sign)
        radians = np.zeros(swi.shape, choice.radians.dtype)
        radians[tuple(slice(low, high) for low, high in bounds)] = choice.radians
        steps.append(choice.sentence)
        if choice.warning:
            warnings.append(choice.warning)
    else:
        warnings.append("no phase was given: calcifications cannot be told from microbleeds by their sign")

    say("finding brain regions")
    with clock("regions"):
        if region_map is None:
            region_map = predict_regions(anatomy)
            steps.append("brain mask and regions by the region network at 2 mm")
        else:
            steps.append("brain mask and regions from the given label volume")
        mask = brain_mask_on(swi, region_map)
        code = region_code_on(swi, region_map)
    warnings.extend(region_map.messages)

    say("preparing the images")
    with clock("preparation"):
        prepared = prepare(swi, radians, mask, spacing_mm=spacing_mm)
        z, y, x = prepared.spacing_mm
        was = prepared.phase_was_filtered
        filtered = "phase taken as it is, high-passed already" if was else "phase high-passed"
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
