"""Detections and truth of prepared subjects, without localization, in mm of their own working grid.

Points are (z, y, x) mm from the first corner of the working grid: enough for distances, no place in the head.
"""

from __future__ import annotations

import numpy as np

from cmb_jax.config import PROPOSAL_STRIDE
from cmb_jax.data.subjects import READERS_MIMIC, StoredSubject
from cmb_jax.detector.anchors import box_centers
from cmb_jax.evaluation.read import MIMIC_NAMES
from cmb_jax.evaluation.records import MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.inference.proposals import ProposalFinder


def detect(finder: ProposalFinder, stored: StoredSubject) -> SubjectDetections:
    """What a detector finds in a prepared subject; the diameter is the box's edge along z."""
    spacing = np.array(finder.config.data.spacing_mm)
    detections = finder.find(stored.image())
    keep = np.asarray(detections.valid)
    boxes = np.asarray(detections.boxes)[keep]
    return SubjectDetections(
        subject=stored.folder.name,
        centers_mm=np.asarray(box_centers(detections.boxes))[keep] * spacing,
        scores=np.asarray(detections.scores)[keep],
        diameters_mm=(boxes[:, 3] - boxes[:, 0]) * spacing[0],
    )


def truth_of(stored: StoredSubject, spacing_mm: tuple[float, float, float]) -> SubjectTruth:
    """The microbleeds of a prepared subject and those to be ignored, by their boxes."""
    spacing = np.array(spacing_mm)
    counting, ignored = (
        ((boxes[:, :3] + boxes[:, 3:]) / 2 * spacing, (boxes[:, 3] - boxes[:, 0]) * spacing[0])
        for boxes in (stored.boxes(), stored.ignored_boxes())
    )
    return SubjectTruth(
        subject=stored.folder.name,
        centers_mm=counting[0],
        diameters_mm=counting[1],
        ignored_centers_mm=ignored[0],
        ignored_diameters_mm=ignored[1],
    )


def mimics_of(stored: StoredSubject, spacing_mm: tuple[float, float, float]) -> MimicMap:
    """Where the known mimics of a prepared subject lie: cells (z, y, x) of the proposal grid."""
    edge = np.array(PROPOSAL_STRIDE) * np.array(spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(edge)
    affine[:3, 3] = edge / 2
    return MimicMap(
        codes=np.asarray(stored.mimics()),
        affine=affine,
        names={**MIMIC_NAMES, READERS_MIMIC: "named_by_reader"},
    )
