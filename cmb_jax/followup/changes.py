"""Which lesion of one scan is which of the other, and what that says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmb_jax.evaluation.matching import Pairs, center_distances, match
from cmb_jax.followup.detectability import Surveyed, why_not_shown
from cmb_jax.followup.registration import Registration
from cmb_jax.followup.rigid import inverse, moved
from cmb_jax.inference.predict import LOW_SCORE
from cmb_jax.report.comparison_content import STATUSES, Change, Status
from cmb_jax.report.content import DetectionRow

MATCH_MM = 4.0
"""Greatest distance of a lesion at two times: a detector's error of its centre, twice, and registration's."""
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
        return cls(tuple(rows), own, moved(to_other, own))


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
    if row.reason == LOW_SCORE:
        return f"seen in the {scan.name} below the operating point (score {row.score:.2f})"
    return f"rejected in the {scan.name}: {row.reason}"
