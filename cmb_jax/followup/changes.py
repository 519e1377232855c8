"""Matches the lesions of two scans and classifies them as new, resolved, stable or uncertain.

A lesion that only one scan shows is new or resolved only if the other scan could have shown it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.core.detection import DetectionRow
from cmb_jax.evaluation.matching import Pairs, center_distances, match
from cmb_jax.followup.registration import Registration, inverse
from cmb_jax.io.volume import Volume
from cmb_jax.report.comparison import STATUSES, Change, Status

MIN_SIGNAL = 0.4
"""Surroundings darker than this fraction of the brain's median are signal loss, as in the phantom's truth."""
MIN_DISTINCTNESS = 2.5
"""Minimum contrast, in robust standard deviations of the surroundings."""
STILL_DARK = 0.5
"""A spot with at least this fraction of the expected contrast may be a lesion that the detector missed."""
MATCH_MM = 4.0
"""Maximum distance between matched lesions: twice the detector's error plus that of the registration."""
MOVED_SHARE = 2.0
"""Unmatched lesions within this multiple of the matching distance may be one lesion that moved."""
UNREGISTERED = "the registration is not trusted"

_SHELL_MM = (1.0, 3.5)  # beyond the apparent radius
_NEAR_BRAIN_MM = 2.0  # the brain mask is right to about its 2 mm voxels


def settings(match_mm: float) -> tuple[tuple[str, str], ...]:
    """(name, value) of all thresholds, for the record."""
    values = {
        "match_mm": match_mm,
        "moved_mm": MOVED_SHARE * match_mm,
        "min_signal": MIN_SIGNAL,
        "min_distinctness": MIN_DISTINCTNESS,
        "still_dark": STILL_DARK,
    }
    return tuple((name, f"{value:g}") for name, value in values.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surveyed:
    """An image with what is needed to decide whether a lesion would be visible on it."""

    name: str  # "baseline" or "follow-up"
    image: Volume
    brain: np.ndarray  # (X, Y, Z) bool on the image's grid
    echo_time_ms: float | None = None
    field_strength_t: float | None = None

    def median(self) -> float:
        """Median of the brain, estimated from a subset of its voxels."""
        values = self.image.data[self.brain]
        return float(np.median(values[:: max(1, len(values) // 100_000)])) if len(values) else 0.0

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.image.affine[:3, :3])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spot:
    """The intensities of an image at a position."""

    core: float  # mean of the central voxels
    level: float  # median of the surroundings in the brain
    spread: float  # robust standard deviation of the surroundings
    near_brain: bool

    @property
    def contrast(self) -> float:
        """Loss of signal relative to the surroundings, 0..1."""
        return float(np.clip(1.0 - self.core / self.level, 0.0, 0.99)) if self.level > 0 else 0.0


def spot_at(scan: Surveyed, point_mm: np.ndarray, diameter_mm: float) -> Spot | None:
    """The intensities at the position of a lesion; None outside the field of view.

    The core is within half the radius (at least the nearest voxel), the surroundings 1 to 3.5 mm beyond the
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
    radius = diameter_mm / 2
    # compute distances (mm) only in a window that includes the surroundings
    reach = (radius + _SHELL_MM[1]) / np.array(scan.image.spacing_mm)
    low = np.maximum(np.floor(place - reach).astype(int), 0)
    high = np.minimum(np.ceil(place + reach).astype(int) + 1, shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.moveaxis(np.indices(high - low), 0, -1) + low
    distance = np.linalg.norm((index - place) @ affine[:3, :3].T, axis=-1)
    nearest = float(distance.min()) + 1e-4
    values, brain = scan.image.data[window], scan.brain[window]
    # a rim of 1 mm is left out, which blooming and partial volume darken
    shell = (distance >= radius + _SHELL_MM[0]) & (distance <= radius + _SHELL_MM[1])
    # outside the brain it is dark anyway; used only if no brain is near
    ring = values[shell & brain] if (shell & brain).any() else values[shell]
    level = float(np.median(ring)) if ring.size else 0.0
    return Spot(
        core=float(values[distance <= max(radius / 2, nearest)].mean()),
        level=level,
        spread=1.4826 * float(np.median(np.abs(ring - level))) if ring.size else 0.0,
        near_brain=bool((brain & (distance <= max(_NEAR_BRAIN_MM, nearest))).any()),
    )


def expected_contrast(spot: Spot, diameter_mm: float, shown: Surveyed, other: Surveyed) -> float:
    """The loss of signal that a lesion of one scan should cause in another, 0..1.

    Signal falls as exp(-k) with k proportional to echo time and field strength (Yablonskiy & Haacke 1994,
    static dephasing); unknown or higher values of the other scan are ignored. A voxel larger than the lesion
    dilutes the loss. A lesion is never expected to be more visible than it was seen.
    """
    decay = -np.log(1.0 - spot.contrast)
    # at most 1: a longer echo at the other scan could only make the lesion more visible
    for here, there in (
        (shown.echo_time_ms, other.echo_time_ms),
        (shown.field_strength_t, other.field_strength_t),
    ):
        if here and there:
            decay *= min(1.0, there / here)
    lesion_mm3 = np.pi / 6 * diameter_mm**3
    filled = [min(1.0, lesion_mm3 / scan.voxel_mm3) for scan in (shown, other)]
    return float((1.0 - np.exp(-decay)) * min(1.0, filled[1] / filled[0]))


def why_not_shown(
    shown: Surveyed, at_mm: np.ndarray, diameter_mm: float, other: Surveyed, there_mm: np.ndarray
) -> str:
    """Why the absence of a lesion in another scan proves nothing; empty if that scan would have shown it.

    Args:
        shown: the scan that shows the lesion.
        at_mm: (3,) its position in RAS mm of that scan.
        diameter_mm: its apparent diameter.
        other: the scan without it.
        there_mm: (3,) the same position in RAS mm of the other scan.
    """
    # from places that the other scan cannot show at all, to spots that it shows but did not report; only a
    # lesion that passes every test is called new or resolved
    there = spot_at(other, there_mm, diameter_mm)
    if there is None:
        return f"outside the field of view of the {other.name}"
    if not there.near_brain:
        return f"outside the brain of the {other.name}"
    if there.level < MIN_SIGNAL * other.median():
        return f"the {other.name} has lost its signal there"
    here = spot_at(shown, at_mm, diameter_mm)
    contrast = 0.0 if here is None else expected_contrast(here, diameter_mm, shown, other)
    if contrast * there.level < MIN_DISTINCTNESS * there.spread:
        return f"too small or faint for the {other.name} to have shown it"
    if there.contrast >= STILL_DARK * contrast:
        return f"the {other.name} is dark there too, though its result has nothing there"
    return ""


@dataclasses.dataclass(frozen=True)
class _Side:
    """Candidates of one scan, with their positions in both scans."""

    rows: tuple[DetectionRow, ...]
    here_mm: np.ndarray  # (n, 3) RAS mm of the scan
    there_mm: np.ndarray  # (n, 3) RAS mm of the other scan
    unmatched: np.ndarray  # (n,) bool, updated by `_pair`


def _sides(rows: Sequence[DetectionRow], to_other: np.ndarray) -> tuple[_Side, _Side]:
    """Kept and rejected candidates of a scan."""
    sides = []
    for kept in (True, False):
        part = tuple(row for row in rows if (row.status == "kept") == kept)
        here_mm = np.array([[row.x_mm, row.y_mm, row.z_mm] for row in part], np.float64).reshape(-1, 3)
        sides.append(_Side(part, here_mm, apply_affine(to_other, here_mm), np.ones(len(part), bool)))
    return sides[0], sides[1]


def _pair(baseline: _Side, followup: _Side, limit_mm: float) -> list[tuple[int, int, float]]:
    """(baseline, follow-up, mm) of unmatched candidates: most pairs first, then least total distance."""
    distance = center_distances(baseline.there_mm, followup.here_mm)
    allowed = (distance <= limit_mm) & baseline.unmatched[:, None] & followup.unmatched[None, :]
    partner = match(Pairs(allowed=allowed, cost=distance, one_to_one=True)).lesion
    pairs = [(int(n), int(m), float(distance[n, m])) for n, m in enumerate(partner) if m >= 0]
    for n, m, _ in pairs:
        baseline.unmatched[n] = followup.unmatched[m] = False
    return pairs


def find_changes(
    baseline_rows: Sequence[DetectionRow],
    followup_rows: Sequence[DetectionRow],
    registration: Registration,
    baseline: Surveyed,
    followup: Surveyed,
    *,
    match_mm: float = MATCH_MM,
) -> tuple[Change, ...]:
    """Each lesion that was kept in either scan, once: new, resolved, stable, or uncertain with a reason.

    Kept lesions are matched first, one to one within `match_mm`. The rest are matched with kept lesions up to
    twice as far away, then with rejected candidates of the other scan; both are uncertain. A lesion without
    any partner is new or resolved if the other scan could have shown it.

    Args:
        baseline_rows: all candidates of the first scan, rejected ones too.
        followup_rows: all candidates of the second scan.
        registration: if it is not trusted, every lesion is uncertain and none is matched.
        baseline: the first image.
        followup: the second image.
        match_mm: maximum distance of a match.
    """
    first, first_rejected = _sides(baseline_rows, registration.matrix)
    second, second_rejected = _sides(followup_rows, inverse(registration.matrix))
    # The surest matches come first: each pair removes its lesions from later rounds. Rejected candidates come
    # last, so that they never take the partner of a kept one.
    found: list[Change] = []
    if registration.trusted:
        for n, m, apart_mm in _pair(first, second, match_mm):
            found.append(_matched(first, n, second, m, apart_mm, ""))
        for n, m, apart_mm in _pair(first, second, MOVED_SHARE * match_mm):
            reason = f"moved, or two lesions: {apart_mm:.1f} mm apart"
            found.append(_matched(first, n, second, m, apart_mm, reason))
        for n, m, apart_mm in _pair(first, second_rejected, match_mm):
            reason = _why_rejected(second_rejected.rows[m], followup)
            found.append(_matched(first, n, second_rejected, m, apart_mm, reason))
        for n, m, apart_mm in _pair(first_rejected, second, match_mm):
            reason = _why_rejected(first_rejected.rows[n], baseline)
            found.append(_matched(first_rejected, n, second, m, apart_mm, reason))
    for side, shown, other in ((first, baseline, followup), (second, followup, baseline)):
        for n in np.flatnonzero(side.unmatched).tolist():
            reason = UNREGISTERED
            if registration.trusted:
                diameter_mm = side.rows[n].diameter_mm
                reason = why_not_shown(shown, side.here_mm[n], diameter_mm, other, side.there_mm[n])
            found.append(_alone(side, n, is_baseline=side is first, reason=reason))
    order = sorted(found, key=lambda change: (STATUSES.index(change.status), -change.row.score))
    return tuple(dataclasses.replace(change, id=number) for number, change in enumerate(order, start=1))


def _matched(baseline: _Side, n: int, followup: _Side, m: int, distance_mm: float, reason: str) -> Change:
    return Change(
        id=0,
        status="uncertain" if reason else "stable",
        reason=reason,
        baseline=baseline.rows[n],
        followup=followup.rows[m],
        baseline_mm=baseline.here_mm[n],
        followup_mm=followup.here_mm[m],
        distance_mm=round(distance_mm, 2),
    )


def _alone(side: _Side, n: int, *, is_baseline: bool, reason: str) -> Change:
    status: Status = "resolved" if is_baseline else "new"
    here_mm, there_mm = side.here_mm[n], side.there_mm[n]
    return Change(
        id=0,
        status="uncertain" if reason else status,
        reason=reason,
        baseline=side.rows[n] if is_baseline else None,
        followup=None if is_baseline else side.rows[n],
        baseline_mm=here_mm if is_baseline else there_mm,
        followup_mm=there_mm if is_baseline else here_mm,
        distance_mm=None,
    )


def _why_rejected(row: DetectionRow, scan: Surveyed) -> str:
    if row.below_operating_point:
        return f"seen in the {scan.name} below the operating point (score {row.score:.2f})"
    return f"rejected in the {scan.name}: {row.reason}"
