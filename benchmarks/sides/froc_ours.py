"""Our FROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.cases import Prepared
from cmb_jax.evaluation.froc import collect_events, froc_curve, sensitivity_at


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """From each scan's scores to the mean sensitivity at the usual rates."""
    scans = inputs.candidates(options["scans"])
    lesions = [len(found) + 1 for found, _ in scans]

    def run() -> float:
        curve = froc_curve(collect_events(scans, lesions))
        return float(np.mean(sensitivity_at(curve.fp_per_scan, curve.sensitivity)))

    return Prepared(run=run, result=float)
