"""Which lesion of one scan is which of the other, and what that says.

A lesion that only one scan shows is new or gone only if the other scan could have shown it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.core.detection import DetectionRow
from cmb_jax.evaluation.matching import Pairs, center_distances, match
from cmb_jax.followup.registration import Registration, inverse
from cmb_jax.io.volume import Volume
from cmb_jax.report.comparison_content import STATUSES, Change, Status

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
    place = apply_affine(np.linalg.inv(affine), point_mm)
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


MATCH_MM = 4.0
"""Greatest distance of a lesion at two times: a detector's error of its center, twice, and registration's."""
MOVED_SHARE = 2.0
"""Two lesions without a partner, apart by more than the match and less than this multiple, may be one."""
UNREGISTERED = "the registration is not trusted"


@dataclasses.dataclass(frozen=True)
class _Side:
    """Candidates of one scan, and where the other scan should show them."""

    rows: tuple[DetectionRow, ...]
    own_mm: np.ndarray  # (n, 3) RAS mm of the scan
    other_mm: np.ndarray  # (n, 3) RAS mm of the other

    @classmethod
    def of(cls, rows: Sequence[DetectionRow], to_other: np.ndarray) -> _Side:
        own = np.array([[row.x_mm, row.y_mm, row.z_mm] for row in rows], np.float64).reshape(-1, 3)
        return cls(tuple(rows), own, apply_affine(to_other, own))


def _one_to_one(
    first: np.ndarray, second: np.ndarray, limit_mm: float, first_free: np.ndarray, second_free: np.ndarray
) -> list[tuple[int, int, float]]:
    """Pairs of free points of two sets (n, 3), (m, 3) within a distance: as many as possible, least total."""
    distance = center_distances(first, second)
    allowed = (distance <= limit_mm) & first_free[:, None] & second_free[None, :]
    partner = match(Pairs(allowed=allowed, cost=distance, one_to_one=True)).lesion
    return [(int(n), int(m), float(distance[n, m])) for n, m in enumerate(partner) if m >= 0]


def find_changes(
    baseline_rows: Sequence[DetectionRow],
    followup_rows: Sequence[DetectionRow],
    registration: Registration,
    baseline: Surveyed,
    followup: Surveyed,
    *,
    match_mm: float = MATCH_MM,
) -> tuple[Change, ...]:
    """Each lesion that was kept in either scan, once: new, resolved, stable or uncertain with its reason.

    Kept lesions are matched first, one to one within `match_mm`. What is left is matched with kept lesions
    up to twice as far, then with candidates that the other scan rejected; both are uncertain. A lesion
    without any partner is new or resolved if the other scan could have shown it.

    Args:
        baseline_rows: all candidates of the first scan, rejected ones too.
        followup_rows: all candidates of the second scan.
        registration: of the two; where it is not trusted, every lesion is uncertain and none is matched.
        baseline: the first image.
        followup: the second image.
        match_mm: greatest distance of a match.
    """
    there, back = registration.matrix, inverse(registration.matrix)
    kept = [row for row in baseline_rows if row.status == "kept"]
    doubted = [row for row in baseline_rows if row.status != "kept"]
    first, first_doubted = _Side.of(kept, there), _Side.of(doubted, there)
    kept = [row for row in followup_rows if row.status == "kept"]
    doubted = [row for row in followup_rows if row.status != "kept"]
    second, second_doubted = _Side.of(kept, back), _Side.of(doubted, back)
    found: list[Change] = []
    free = np.ones(len(first.rows), bool), np.ones(len(second.rows), bool)

    def pair(a: _Side, n: int, b: _Side, m: int, distance: float, status: Status, reason: str) -> None:
        found.append(
            Change(
                id=0,
                status=status,
                reason=reason,
                baseline=a.rows[n],
                followup=b.rows[m],
                baseline_mm=a.own_mm[n],
                followup_mm=b.own_mm[m],
                distance_mm=round(distance, 2),
            )
        )

    if registration.trusted:
        for n, m, distance in _one_to_one(first.other_mm, second.own_mm, match_mm, *free):
            pair(first, n, second, m, distance, "stable", "")
            free[0][n] = free[1][m] = False
        for n, m, distance in _one_to_one(first.other_mm, second.own_mm, MOVED_SHARE * match_mm, *free):
            reason = f"moved, or two lesions: {distance:.1f} mm apart"
            pair(first, n, second, m, distance, "uncertain", reason)
            free[0][n] = free[1][m] = False
        every = np.ones(len(second_doubted.rows), bool)
        for n, m, distance in _one_to_one(first.other_mm, second_doubted.own_mm, match_mm, free[0], every):
            reason = _doubt(second_doubted.rows[m], followup)
            pair(first, n, second_doubted, m, distance, "uncertain", reason)
            free[0][n] = False
        every = np.ones(len(first_doubted.rows), bool)
        for n, m, distance in _one_to_one(first_doubted.other_mm, second.own_mm, match_mm, every, free[1]):
            pair(first_doubted, n, second, m, distance, "uncertain", _doubt(first_doubted.rows[n], baseline))
            free[1][m] = False
    solitary: tuple[tuple[_Side, np.ndarray, Surveyed, Surveyed, Status], ...] = (
        (first, free[0], baseline, followup, "resolved"),
        (second, free[1], followup, baseline, "new"),
    )
    for side, alone, shown, other, status in solitary:
        for n in np.flatnonzero(alone).tolist():
            row, own, elsewhere = side.rows[n], side.own_mm[n], side.other_mm[n]
            reason = UNREGISTERED
            if registration.trusted:
                reason = why_not_shown(shown, own, row.diameter_mm, other, elsewhere)
            is_first = side is first
            found.append(
                Change(
                    id=0,
                    status="uncertain" if reason else status,
                    reason=reason,
                    baseline=row if is_first else None,
                    followup=None if is_first else row,
                    baseline_mm=own if is_first else elsewhere,
                    followup_mm=elsewhere if is_first else own,
                    distance_mm=None,
                )
            )
    order = sorted(found, key=lambda each: (STATUSES.index(each.status), -each.row.score))
    return tuple(dataclasses.replace(each, id=number) for number, each in enumerate(order, start=1))


def _doubt(row: DetectionRow, scan: Surveyed) -> str:
    """Why a candidate at the place in the other scan was not reported there."""
    if row.below_operating_point:
        return f"seen in the {scan.name} below the operating point (score {row.score:.2f})"
    return f"rejected in the {scan.name}: {row.reason}"
