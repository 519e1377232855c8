"""The scan that lesions are put into, and the brain in it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.evaluation.read import read_labels
from cmb_jax.io.nifti import check_same_grid, read_echoes
from cmb_jax.io.outside import read_json_object
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.geometry import Grid
from cmb_jax.regions.predict import predict_regions, region_code_on
from cmb_jax.scan import StoredPhase
from cmb_jax.scan.judge import judge_grid, judge_intensity, judge_phase
from cmb_jax.scan.make_swi import check_echo_times, check_number
from cmb_jax.scan.phase_range import PhaseRange, asked_range, phase_to_radians, range_of
from cmb_jax.scan.phase_sign import SignDecision, decide_phase_sign, field_direction

_B0_T = (0.1, 14.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The data that lesions are put into, RAS."""

    magnitude: np.ndarray  # (E, X, Y, Z)
    phase: np.ndarray  # (E, X, Y, Z) radians, sign as stored
    like: Volume
    te_ms: tuple[float, ...]
    b0_t: float
    phase_range: PhaseRange
    sign: SignDecision

    @property
    def grid(self) -> Grid:
        """In array mm: voxel 0 at the origin."""
        return Grid(self.like.shape, self.like.spacing_mm, (0.0, 0.0, 0.0))

    @property
    def last(self) -> int:
        """Index of the longest echo, which shows susceptibility best."""
        return int(np.argmax(self.te_ms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brain:
    """Where lesions may lie, (X, Y, Z)."""

    mask: np.ndarray  # bool
    solid: np.ndarray | None  # bool, tissue without CSF; None where regions are not known
    code: np.ndarray | None  # uint8 region codes
    source: str


def read_scan(
    magnitude: Path,
    phase: Path,
    te_ms: tuple[float, ...],
    b0_t: float | None,
    sign: str,
    stored_as: StoredPhase,
) -> Scan:
    """Magnitude and phase with what is known about them.

    Raises:
      UserError: images that cannot be read or do not belong together, times or field strength missing.
    """
    sizes, angles = read_echoes(magnitude), read_echoes(phase)
    if len(sizes) != len(angles):
        raise UserError(
            f"{magnitude} and {phase}: {len(sizes)} and {len(angles)} echoes; give images of the same echoes"
        )
    check_same_grid(sizes[0], angles[0])
    notes = sidecar((magnitude, phase))
    times = echo_times(te_ms, notes, len(sizes), magnitude)
    strength = field_strength(b0_t, notes, magnitude)
    stored = np.stack([volume.data for volume in angles])
    try:
        kind = range_of(stored, asked_range(stored_as))
    except NotAnalysableError as error:
        raise NotAnalysableError(f"{phase}: {error}") from None
    radians, data = phase_to_radians(stored, kind), np.stack([volume.data for volume in sizes])
    like, last = sizes[0], int(np.argmax(times))
    judge_grid(like, head=False).enforce("magnitude")
    for echo, angle, raw in zip(data, radians, stored, strict=True):
        judge_intensity(echo).enforce("magnitude")
        judged = judge_phase(raw, angle, echo)
        if said := (*judged.reasons, *judged.warnings):
            raise NotAnalysableError(f"the phase is not analysable: {said[0]}")
    if sign != "auto":
        decision = SignDecision(sign=int(sign), confident=True, reason="as given")
    else:
        direction = field_direction(like.affine)
        # from the longest echo, in which veins are darkest and have turned the farthest
        decision = decide_phase_sign(radians[last], data[last], like.spacing_mm, direction)
        if not decision.confident:
            raise UserError(f"{phase}: its sign is open ({decision.reason}); give --phase-sign +1 or -1")
    return Scan(
        magnitude=data, phase=radians, like=like, te_ms=times, b0_t=strength, phase_range=kind, sign=decision
    )


def sidecar(images: Sequence[Path]) -> dict[str, Any]:
    """The JSON object beside the first of these images that has one; {} without.

    Raises:
      UserError: it is not a JSON object.
    """
    for image in images:
        path = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
        if path.is_file():
            return read_json_object(path, "repair or move it")
    return {}


def echo_times(given: Sequence[float], notes: dict[str, Any], echoes: int, image: Path) -> tuple[float, ...]:
    """(E,) echo times in ms, as given or from EchoTime (seconds) of the sidecar.

    Raises:
      UserError: none is known, one is impossible, they do not rise, or there are not as many as echoes.
    """
    times = _numbers(given) if given else _numbers(notes.get("EchoTime"), 1000.0)
    if times is None:
        raise UserError(
            f"{image}: the echo time is not known; give --te-ms (ms, one per echo; here {echoes}), "
            "or a JSON sidecar with EchoTime (s) beside the image"
        )
    check_echo_times(times)
    if len(times) != echoes:
        raise UserError(
            f"{image}: {echoes} echoes but {len(times)} echo times; give one per echo with --te-ms"
        )
    return times


def field_strength(given: float | None, notes: dict[str, Any], image: Path) -> float:
    """Tesla, as given or from MagneticFieldStrength of the sidecar.

    Raises:
      UserError: not known, or no field of a scanner.
    """
    values = _numbers(given if given is not None else notes.get("MagneticFieldStrength"))
    if values is None or len(values) != 1:
        raise UserError(
            f"{image}: the field strength is not known; give --b0-t (tesla, such as 1.5, 3 or 7), "
            "or a JSON sidecar with MagneticFieldStrength beside the image"
        )
    check_number("--b0-t", values[0], _B0_T, "tesla")
    return values[0]


def _numbers(value: object, scale: float = 1.0) -> tuple[float, ...] | None:
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in items):
        return None
    return tuple(round(float(v) * scale, 6) for v in items)


def find_brain(like: Volume, magnitude: np.ndarray, brain_mask: Path | None) -> Brain:
    """The brain in the given mask, or in the magnitude (X, Y, Z) by the region network or by intensity.

    Raises:
      UserError: no brain, or a mask on another grid.
    """
    # regions are named in the truth table also where the user gives the mask
    regions = predict_regions(dataclasses.replace(like, data=magnitude))
    code = region_code_on(like, regions)
    known = code if regions.trusted else None
    if brain_mask is None:
        region = region_of(code)
        mask = region != Region.OUTSIDE
        if not mask.any():
            raise UserError(f"{like.source}: no brain was found in it; give one with --brain-mask")
        solid = mask & (region < Region.VENTRICLE) if regions.trusted else None
        source = "region network" if regions.trusted else "; ".join(regions.messages)
        return Brain(mask=mask, solid=solid, code=known, source=source)
    values, affine = read_labels(brain_mask)
    volume = dataclasses.replace(Volume.from_array(values, affine), source=brain_mask)
    check_same_grid(like, volume)
    if not (values > 0).any():
        raise UserError(f"{brain_mask}: the mask is empty; brain voxels must be above 0")
    return Brain(mask=values > 0, solid=None, code=known, source="the given mask")
