"""The scan that `cmb-jax implant` puts lesions into, and the brain in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.commands.implant_inputs import echo_times, field_strength, sidecar
from cmb_jax.errors import UserError
from cmb_jax.evaluation.read import read_labels
from cmb_jax.io.multi_echo import read_echoes
from cmb_jax.io.nifti import check_same_grid
from cmb_jax.io.phase import (
    PhaseRange,
    SignDecision,
    decide_phase_sign,
    detect_phase_range,
    field_direction,
    phase_to_radians,
)
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.geometry import Grid
from cmb_jax.regions.predict import predict_regions, region_code_on


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
    magnitude: Path, phase: Path, te_ms: tuple[float, ...], b0_t: float | None, sign: str, stored_as: str
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
        kind = detect_phase_range(stored) if stored_as == "auto" else PhaseRange(stored_as)
    except UserError as error:
        raise UserError(f"{phase}: {error}") from None
    radians, data = phase_to_radians(stored, kind), np.stack([volume.data for volume in sizes])
    like, last = sizes[0], int(np.argmax(times))
    if data.min() < 0:
        raise UserError(
            f"{magnitude}: holds negative values; give the magnitude, not a phase or complex part"
        )
    decision = SignDecision(sign=1, confident=True, reason="as given")
    if sign != "auto":
        decision = dataclasses.replace(decision, sign=int(sign))
    else:
        direction = field_direction(like.affine)
        decision = decide_phase_sign(radians[last], data[last], like.spacing_mm, direction)
    return Scan(
        magnitude=data,
        phase=radians,
        like=like,
        te_ms=times,
        b0_t=strength,
        phase_range=kind,
        sign=decision,
    )


def find_brain(like: Volume, magnitude: np.ndarray, brain_mask: Path | None) -> Brain:
    """The brain in the given mask, or in the magnitude (X, Y, Z) by the region network or by intensity.

    Raises:
      UserError: no brain, or a mask on another grid.
    """
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
