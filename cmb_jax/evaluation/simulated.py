"""The truth of a simulated scan in memory."""

from __future__ import annotations

import numpy as np

from cmb_jax.anatomy.regions import Region, Zone
from cmb_jax.evaluation.records import LabeledVolume, MimicMap, SubjectTruth
from cmb_jax.phantom.types import MimicKind, PhantomSubject

IGNORED = MimicKind.IGNORED_MICROBLEED.name.lower()
"""Kind of a lesion in the truth table that no reader would see for sure."""

MIMIC_NAMES: dict[int, str] = {int(kind): kind.name.lower() for kind in MimicKind}


def phantom_truth(phantom: PhantomSubject, subject: str) -> SubjectTruth:
    """What `read.read_simulated_truth` reads, without the way over files.

    Args:
        phantom: a simulated scan.
        subject: its name.
    """
    lesions = phantom.lesions
    rows = np.flatnonzero(lesions.is_cmb)
    ignored = lesions.is_ignored
    return SubjectTruth(
        subject=subject,
        centers_mm=lesions.center_mm[rows],
        diameters_mm=lesions.diameter_mm[rows],
        apparent_diameters_mm=lesions.apparent_diameter_mm[rows],
        regions=tuple(Region(int(code)).name.lower() for code in lesions.region[rows]),
        zones=tuple(Zone(int(code)).name.lower() for code in lesions.zone[rows]),
        cnr=lesions.cnr[rows],
        protocol=phantom.protocol,
        tier=phantom.tier,
        has_phase=phantom.phase is not None,
        volume=LabeledVolume(
            labels=rows_of_ids(phantom.cmb_labels, lesions.id[rows]), affine=phantom.swi.affine
        ),
        mimics=MimicMap(codes=phantom.mimic_labels, affine=phantom.swi.affine, names=MIMIC_NAMES),
        ignored_centers_mm=lesions.center_mm[ignored],
        ignored_diameters_mm=lesions.apparent_diameter_mm[ignored],
    )


def rows_of_ids(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Instance labels (X, Y, Z) as int32 row numbers from 1; every label must be one of ids (M,)."""
    row = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    row[ids] = np.arange(1, len(ids) + 1)
    return row[labels.astype(np.int32)]
