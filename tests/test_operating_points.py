"""Operating points by a limit on false positives."""

import numpy as np
import pytest

from cmb_jax.calibration import above, counts_at, operating_point, operating_table
from cmb_jax.evaluation.froc import collect_events

# two scans: true at 0.9, 0.6 (of 3) and 0.8 (of 1); false at 0.7, 0.3 and 0.5
EVENTS = collect_events(
    [(np.array([0.9, 0.6]), np.array([0.7, 0.3])), (np.array([0.8]), np.array([0.5]))], [3, 1]
)


@pytest.mark.parametrize(
    ("limit", "threshold", "tp", "fp"), [(0.25, 0.75, 2, 0), (0.5, 0.55, 3, 1), (9.0, 0.55, 3, 1)]
)
def test_the_highest_sensitivity_within_the_limit(limit, threshold, tp, fp):
    point = operating_point(EVENTS, limit, samples=200)
    assert point.threshold == pytest.approx(threshold)
    assert point.sensitivity.value == pytest.approx(tp / 4)
    assert point.fp_per_scan.value == pytest.approx(fp / 2)
    assert point.precision.value == pytest.approx(tp / (tp + fp))
    assert point.sensitivity.low <= point.sensitivity.value <= point.sensitivity.high


def test_counts_by_scan():
    counts = counts_at(EVENTS, 0.5)
    assert counts.tp.tolist() == [2, 1]
    assert counts.fp.tolist() == [1, 1]
    assert counts.lesions.tolist() == [3, 1]


def test_no_threshold_where_the_lists_are_cut_short():
    assert operating_point(EVENTS, 1.0, complete_from=0.4, samples=0) is None
    assert operating_point(EVENTS, 0.9, complete_from=0.4, samples=0).threshold == pytest.approx(0.55)
    limits = [point.max_fp_per_scan for point in operating_table(EVENTS, complete_from=0.4, samples=0)]
    assert limits == [0.125, 0.25, 0.5]
    assert len(above(EVENTS, 0.4).scores) == 5
