"""Whether one scan could have shown a lesion that another shows."""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.followup.rigid import moved
from cmb_jax.io.volume import Volume

MIN_SIGNAL = 0.4
"""Surroundings darker than this share of the brain's median are signal loss, as in the phantom's truth."""
MIN_DISTINCTNESS = 2.5
"""Contrast that is needed, in robust standard deviations of the surroundings."""
STILL_DARK = 0.5
"""A spot that keeps this share of the expected contrast may be the lesion, missed by the detector."""
_SHELL_MM = (1.0, 3.5)  # beyond the apparent radius
_NEAR_BRAIN_MM = 2.0  # the brain mask is right to about its 2 mm voxels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surveyed:
    """An image with what is needed to say whether a lesion would show on it."""

    name: str  # "baseline" or "follow-up"
    image: Volume
    brain: np.ndarray  # (X, Y, Z) bool on the image's grid
    echo_time_ms: float | None = None
    field_strength_t: float | None = None

    def typical(self) -> float:
        """The brain's median."""
        values = self.image.data[self.brain]
        return float(np.median(values[:: max(1, len(values) // 100_000)])) if len(values) else 0.0

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.image.affine[:3, :3])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spot:
    """What an image shows at a place."""

    core: float  # mean of the middle
    level: float  # median of the surroundings in the brain
    spread: float  # robust standard deviation of the surroundings
    near_brain: bool

    @property
    def contrast(self) -> float:
        """Loss of signal, 0..1, against the surroundings."""
        return float(np.clip(1.0 - self.core / self.level, 0.0, 0.99)) if self.level > 0 else 0.0


def spot_at(scan: Surveyed, point_mm: np.ndarray, diameter_mm: float) -> Spot | None:
    """The place of a lesion in an image; None outside its field of view.

    The core lies within half the radius (the nearest voxel at least), the surroundings 1 to 3.5 mm beyond the
    radius, as in the phantom's measure of visibility.

    Args:
        scan: the image.
        point_mm: (3,) RAS mm of this scan.
        diameter_mm: apparent diameter.
    """
    affine, shape = scan.image.affine, np.array(scan.image.shape)
    place = moved(np.linalg.inv(affine), point_mm)
    if (place < -0.5).any() or (place > shape - 0.5).any():
        return None
    reach = (diameter_mm / 2 + _SHELL_MM[1]) / np.array(scan.image.spacing_mm)
    low = np.maximum(np.floor(place - reach).astype(int), 0)
    high = np.minimum(np.ceil(place + reach).astype(int) + 1, shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1
    )
    away = np.linalg.norm((index - place) @ affine[:3, :3].T, axis=-1)
    values, brain = scan.image.data[window], scan.brain[window]
    core = away <= max(diameter_mm / 4, float(away.min()) + 1e-4)
    shell = (away >= diameter_mm / 2 + _SHELL_MM[0]) & (away <= diameter_mm / 2 + _SHELL_MM[1])
    near = bool((brain & (away <= max(_NEAR_BRAIN_MM, float(away.min()) + 1e-4))).any())
    ring = values[shell & brain] if (shell & brain).any() else values[shell]
    level = float(np.median(ring)) if ring.size else 0.0
    spread = 1.4826 * float(np.median(np.abs(ring - level))) if ring.size else 0.0
    return Spot(core=float(values[core].mean()), level=level, spread=spread, near_brain=near)


def expected_contrast(spot: Spot, diameter_mm: float, shown: Surveyed, other: Surveyed) -> float:
    """The loss of signal that a lesion of one scan would make in another, 0..1.

    Signal falls as exp(-k), k in proportion to echo time and field strength (Yablonskiy & Haacke 1994, static
    dephasing), where both are known and the other's are lower; a voxel that is larger than the lesion dilutes
    what is lost. Nothing is expected to show better than it was seen.
    """
    decay = -np.log(1.0 - spot.contrast)
    for mine, theirs in (
        (shown.echo_time_ms, other.echo_time_ms),
        (shown.field_strength_t, other.field_strength_t),
    ):
        if mine and theirs:
            decay *= min(1.0, theirs / mine)
    lesion_mm3 = np.pi / 6 * diameter_mm**3
    filled = [min(1.0, lesion_mm3 / scan.voxel_mm3) for scan in (shown, other)]
    return float((1.0 - np.exp(-decay)) * min(1.0, filled[1] / filled[0]))


def why_not_shown(
    shown: Surveyed, at_mm: np.ndarray, diameter_mm: float, other: Surveyed, there_mm: np.ndarray
) -> str:
    """Why the absence of a lesion from another scan says nothing; empty where it was really looked for.

    Args:
        shown: the scan that shows the lesion, at `at_mm` (3,) in its RAS mm.
        at_mm: its place.
        diameter_mm: its apparent diameter.
        other: the scan without it.
        there_mm: (3,) the same place in the other scan's RAS mm.
    """
    there = spot_at(other, there_mm, diameter_mm)
    if there is None:
        return f"outside the field of view of the {other.name}"
    if not there.near_brain:
        return f"outside the brain of the {other.name}"
    if there.level < MIN_SIGNAL * other.typical():
        return f"the {other.name} has lost its signal there"
    here = spot_at(shown, at_mm, diameter_mm)
    contrast = 0.0 if here is None else expected_contrast(here, diameter_mm, shown, other)
    if contrast * there.level < MIN_DISTINCTNESS * there.spread:
        return f"too small or faint for the {other.name} to have shown it"
    if there.contrast >= STILL_DARK * contrast:
        return f"the {other.name} is dark there too, though not by the detector"
    return ""
