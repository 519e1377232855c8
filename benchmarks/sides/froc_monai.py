"""MONAI's FROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

from benchmarks import inputs
from benchmarks.cases import Prepared
from cmb_jax.evaluation.froc import FROC_RATES


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """From each scan's scores to the mean sensitivity at the usual rates."""
    scans = inputs.candidates(options["scans"])
    lesions = sum(len(found) + 1 for found, _ in scans)

    def run() -> float:
        found = np.concatenate([pair[0] for pair in scans])
        false = np.concatenate([pair[1] for pair in scans])
        rates, sensitivity = compute_froc_curve_data(false, found, lesions, len(scans))
        return float(compute_froc_score(rates, sensitivity, FROC_RATES))

    return Prepared(run=run, result=float)
