"""What makes the figures of a scan doubtful: unclear labels, contradicting rules, odd positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cmb_jax.evaluation.matching import Match
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.volumes import to_index

_FEW_TIMES = 2  # lesions by one rule over those by another: more is no matter of touching lesions
_MOST = 0.8  # share of the lesions
_RIM_VOXELS = 3.0  # a detector may put a center a little beyond the edge


def doubts(
    reported: SubjectDetections, truth: SubjectTruth, pieces: int, matches: dict[str, Match]
) -> Iterator[str]:
    """What a reader of the figures must know: unclear numbers, and rules that contradict each other.

    Args:
        reported: detections.
        truth: of the same scan.
        pieces: lesions of the truth by the challenge's rule, which splits voxels anew.
        matches: by name of the rule.
    """
    name = truth.subject
    for side, volume in (("truth", truth.volume), ("prediction", reported.volume)):
        if volume is not None and volume.note:
            yield f"{name}: {side}: {volume.note}"
    lesions = len(truth.centers_mm)
    if max(lesions, pieces) > _FEW_TIMES * min(lesions, pieces) and lesions and pieces:
        yield (
            f"{name}: the truth holds {lesions} lesions by its labels, but {pieces} connected pieces, which "
            "are the lesions of the challenge's rule: the rules contradict each other"
        )
    rates = [match.tp / len(match.found) for match in matches.values() if len(match.found)]
    if rates and min(rates) == 0 and max(rates) >= _MOST:
        zero = ", ".join(rule for rule, match in matches.items() if not match.tp)
        most = ", ".join(rule for rule, match in matches.items() if match.tp >= _MOST * len(match.found))
        yield (
            f"{name}: nothing is found by {zero}, and nearly all by {most}: the labels or the positions of "
            "one side mean something else"
        )
    outside = _outside(reported, truth)
    if outside:
        yield outside


def _outside(reported: SubjectDetections, truth: SubjectTruth) -> str:
    """Detections of a table that lie beyond the truth's image, and whether LPS would put them inside."""
    if truth.volume is None or reported.volume is not None or not len(reported.centers_mm):
        return ""
    shape, affine = np.array(truth.volume.labels.shape), truth.volume.affine

    def inside(points_mm: np.ndarray) -> np.ndarray:
        index = to_index(points_mm, affine)
        return np.asarray(((index >= -_RIM_VOXELS) & (index <= shape - 1 + _RIM_VOXELS)).all(axis=1))

    beyond = int((~inside(reported.centers_mm)).sum())
    if not beyond:
        return ""
    turned = bool(inside(reported.centers_mm * [-1.0, -1.0, 1.0]).all())
    why = "; with x and y negated all lie inside: is the table in LPS?" if turned else ""
    return f"{truth.subject}: {beyond} of {len(reported.centers_mm)} detections lie outside the image{why}"
