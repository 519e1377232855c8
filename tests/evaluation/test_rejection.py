"""What rejection costs, on scans worked by hand."""

import numpy as np
import pytest

from cmb_jax.evaluation.evaluate import evaluate_records
from cmb_jax.evaluation.metrics import metrics
from cmb_jax.evaluation.present import format_table
from cmb_jax.evaluation.records import CANDIDATE, KEPT, REJECTED, SubjectDetections, SubjectTruth


def detections(rows):
    """(x in mm, score, status, reason) of each row."""
    x, scores, status, reasons = zip(*rows, strict=True)
    return SubjectDetections(
        subject="a",
        centers_mm=np.array([[value, 0.0, 0.0] for value in x]),
        scores=np.array(scores),
        diameters_mm=np.full(len(x), 3.0),
        status=status,
        reasons=reasons,
    )


TRUTH = SubjectTruth(
    subject="a", centers_mm=np.array([[0.0, 0, 0], [20.0, 0, 0], [40.0, 0, 0]]), diameters_mm=np.full(3, 3.0)
)
FOUND = detections(
    [
        (0.0, 0.9, KEPT, ""),
        (1.0, 0.8, REJECTED, "outside"),  # its lesion is found already: nothing lost
        (20.5, 0.7, REJECTED, "outside"),  # lost
        (80.0, 0.6, REJECTED, "ventricle"),  # removed for good
        (60.0, 0.3, CANDIDATE, "low score"),
        (40.0, 0.2, REJECTED, "outside"),  # would not have been reported
    ]
)


def rejection(threshold=None):
    result = evaluate_records([FOUND], [TRUTH], threshold=threshold, bootstrap_samples=0)
    return {each.reason: (each.true_lost, each.false_removed) for each in result.rejection}, result


def test_lost_and_removed_by_rule():
    by_reason, result = rejection()
    assert by_reason == {"outside": (1, 1), "ventricle": (0, 1)}
    outside = next(each for each in result.rejection if each.reason == "outside")
    assert outside.lost_share.value == pytest.approx(1 / 3)
    assert outside.false_removed_per_scan == 1.0


def test_a_given_threshold_decides_what_would_have_been_reported():
    assert rejection(0.65)[0] == {"outside": (1, 1)}
    assert rejection(0.1)[0] == {"outside": (2, 1), "ventricle": (0, 1)}


def test_shown_in_text_and_json():
    _, result = rejection()
    assert "What rejection by place costs" in format_table(result)
    written = metrics(result)["rejection_by_rule"]
    assert written[0]["reason"] == "outside"
    assert written[0]["true_lost"] == 1


def test_nothing_is_said_where_nothing_is_rejected():
    kept = detections([(0.0, 0.9, KEPT, "")])
    result = evaluate_records([kept], [TRUTH], bootstrap_samples=0)
    assert result.rejection == ()
    assert "rejection" not in format_table(result)
