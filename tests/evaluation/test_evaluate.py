"""A whole evaluation, in memory and from folders."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.evaluation.evaluate import evaluate, evaluate_records
from cmb_jax.evaluation.froc import choose_threshold
from cmb_jax.evaluation.matching import RULES
from cmb_jax.evaluation.metrics import write_metrics
from cmb_jax.evaluation.present import format_table, report_content
from cmb_jax.evaluation.records import MimicMap, SubjectDetections, SubjectTruth
from cmb_jax.report.evaluation_html import render_evaluation_report


def detections(subject, points, scores, **more):
    return SubjectDetections(
        subject=subject,
        centers_mm=np.array(points, float).reshape(-1, 3),
        scores=np.array(scores, float),
        diameters_mm=np.full(len(scores), 3.0),
        **more,
    )


def truth(subject, points, **more):
    points = np.array(points, float).reshape(-1, 3)
    return SubjectTruth(subject=subject, centers_mm=points, diameters_mm=np.full(len(points), 3.0), **more)


@pytest.fixture
def worked():
    """Three scans, one without lesions, four lesions; worked by hand below."""
    found = [
        detections(
            "a",
            [[0, 0, 0], [20, 0, 4], [40, 40, 0]],
            [0.9, 0.8, 0.7],
            zones=("lobar", "deep", "lobar"),
            regions=("frontal", "thalamus", "frontal"),
        ),
        detections("b", [[5, 5, 5]], [0.4], zones=("deep",), regions=("thalamus",)),
        detections("c", [[1, 0, 0]], [0.95], zones=("lobar",), regions=("insula",)),
    ]
    codes = np.zeros((50, 50, 5), np.uint8)
    codes[40, 41, 0] = 5
    true = [
        truth(
            "a",
            [[0, 0, 1], [20, 0, 0], [60, 0, 0]],
            zones=("lobar", "lobar", "deep"),
            regions=("frontal", "parietal", "thalamus"),
            cnr=np.array([3.0, 3.0, 30.0]),
            protocol="iso05",
            mimics=MimicMap(codes=codes, affine=np.eye(4), names={5: "pial_vein"}),
        ),
        truth("b", [], zones=(), regions=(), cnr=np.zeros(0), protocol="iso08"),
        truth(
            "c", [[0, 0, 0]], zones=("lobar",), regions=("frontal",), cnr=np.array([6.0]), protocol="iso08"
        ),
    ]
    return found, true


def test_worked_case(worked):
    result = evaluate_records(*worked, threshold=0.5, bootstrap_samples=50)
    assert (result.scans, result.scans_without_lesions, result.lesions) == (3, 1, 4)
    near = result.by_rule("center3")
    assert (near.tp, near.fp, near.fn) == (2, 2, 2)
    assert near.sensitivity.value == 0.5
    assert near.fp_per_scan.value == pytest.approx(2 / 3)  # over all three scans
    assert near.precision.value == 0.5
    assert near.f1.value == 0.5
    far = result.by_rule("center5")
    assert (far.tp, far.fp, far.fn) == (3, 1, 1)  # (20, 0, 4) is 4 mm away
    assert (result.by_rule("valdo").tp, result.by_rule("valdo").fp) == (3, 1)
    assert result.by_rule("box_iou").tp == 2
    assert result.by_rule("touch").tp == 2
    by = {
        breakdown.by: {g.group: (g.found, g.lesions) for g in breakdown.groups}
        for breakdown in result.breakdowns
    }
    assert by["zone"] == {"lobar": (2, 3), "deep": (0, 1)}
    assert by["protocol"] == {"iso05": (1, 3), "iso08": (1, 1)}
    assert by["cnr"] == {"2 to 5": (1, 2), "5 to 10": (1, 1), "20 and more": (0, 1)}
    assert {g.group: g.count for g in result.false_positives_by_mimic} == {"none": 1, "pial_vein": 1}
    assert {g.group: g.count for g in result.false_positives_by_zone} == {"deep": 1, "lobar": 1}
    assert (result.places.matched, result.places.zone.value, result.places.region.value) == (2, 1.0, 0.5)
    assert result.counts.bias == 0.0
    assert [(row.tp, row.fp, row.fn) for row in result.subjects] == [(1, 2, 2), (0, 0, 0), (1, 0, 0)]


def test_threshold_and_status_decide_what_is_reported(worked):
    found, true = worked
    assert evaluate_records(found, true, threshold=0.92, bootstrap_samples=0).headline_result.tp == 1
    assert evaluate_records(found, true, bootstrap_samples=0).headline_result.fp == 3
    marked = [found[0], detections("b", [[5, 5, 5]], [0.4], status=("rejected",)), found[2]]
    result = evaluate_records(marked, true, bootstrap_samples=0)
    assert result.headline_result.fp == 2
    assert result.headline_result.curve.fp[-1] == 2  # rejected ones are not in the curve either
    low = [found[0], detections("b", [[5, 5, 5]], [0.4], status=("candidate",)), found[2]]
    result = evaluate_records(low, true, bootstrap_samples=0)
    assert result.headline_result.fp == 2
    assert result.headline_result.curve.fp[-1] == 3


def test_headline_by_the_challenge_rule(worked):
    result = evaluate_records(*worked, rule="valdo", threshold=0.5, bootstrap_samples=0)
    assert result.headline_result.rule.name == "valdo"
    assert result.breakdown_rule == "center5"
    assert result.subjects[0].tp == 2


def test_perfect_and_empty_predictions(worked):
    _, true = worked
    perfect = [detections(t.subject, t.centers_mm, np.ones(len(t.centers_mm))) for t in true]
    for each in evaluate_records(perfect, true, bootstrap_samples=20).rules:
        assert (each.sensitivity.value, each.fp_per_scan.value, each.f1.value) == (1.0, 0.0, 1.0)
    nothing = [detections(t.subject, [], []) for t in true]
    for each in evaluate_records(nothing, true, bootstrap_samples=20).rules:
        assert (each.sensitivity.value, each.fp_per_scan.value, each.f1.value) == (0.0, 0.0, 0.0)
        assert np.isnan(each.precision.value)


def test_scans_must_correspond(worked):
    found, true = worked
    with pytest.raises(ValueError, match="are compared with truth of"):
        evaluate_records(found[::-1], true, bootstrap_samples=0)
    with pytest.raises(ValueError, match="no scans"):
        evaluate_records([], [])
    with pytest.raises(UserError, match="choose one of center3"):
        evaluate_records(found, true, rule="nearest")


def test_operating_point_is_the_best_f1_of_the_scans(worked):
    found, true = worked
    every = evaluate_records(found, true, bootstrap_samples=0)
    threshold = choose_threshold(every.headline_result.curve)
    best = max(
        evaluate_records(found, true, threshold=t, bootstrap_samples=0).headline_result.f1.value
        for t in (0.4, 0.7, 0.8, 0.9, 0.95)
    )
    chosen = evaluate_records(found, true, threshold=threshold, bootstrap_samples=0).headline_result
    assert chosen.f1.value == best
    assert choose_threshold(every.by_rule("center5").curve, 0.0) == pytest.approx(0.75)
    nothing = evaluate_records([detections("b", [], [])], [true[1]], bootstrap_samples=0)
    assert choose_threshold(nothing.headline_result.curve, fallback=0.3) == 0.3


def test_table_names_everything_that_makes_numbers_comparable(worked):
    text = format_table(
        evaluate_records(*worked, threshold=0.5, bootstrap_samples=20, warnings=("look here",))
    )
    for expected in (
        "Research use only",
        "3 scans, 1 of them without microbleeds, 4 microbleeds",
        "warning: look here",
        "score >= 0.5",
        "scans, including those",
        "connectivity",
        "bootstrap",
        "pial_vein",
        "Sensitivity by zone",
        "ICC(2,1)",
        *(rule.title for rule in RULES.values()),
    ):
        assert expected in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_page_of_the_report_renders(worked):
    result = evaluate_records(*worked, threshold=0.5, bootstrap_samples=20)
    page = render_evaluation_report(report_content(result, title="Test cohort"))
    assert "Test cohort" in page
    assert "center &lt; 3 mm, one to one" in page
    bare = evaluate_records([detections("b", [], [])], [truth("b", [])], bootstrap_samples=0)
    assert "Nothing" in render_evaluation_report(report_content(bare, title="Nothing"))


def test_metrics_are_json_without_nan_and_are_not_overwritten(worked, tmp_path):
    result = evaluate_records(*worked, threshold=0.97, bootstrap_samples=20)
    path = tmp_path / "metrics.json"
    write_metrics(result, path)
    content = json.loads(path.read_text())
    assert content["rules"]["center3"]["precision"]["value"] is None
    assert content["rules"]["center3"]["froc"][3]["fp_per_scan"] == 1.0
    assert content["false_positive_denominator"].startswith("all scans")
    assert content["subjects"][0]["subject"] == "a"
    with pytest.raises(UserError, match="exists"):
        write_metrics(result, path)
    write_metrics(result, path, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_the_same_seed_gives_the_same_intervals(worked):
    first, second = (evaluate_records(*worked, bootstrap_samples=50, seed=3) for _ in range(2))
    assert first.headline_result.sensitivity == second.headline_result.sensitivity


def test_folders_in_the_layout_of_the_challenge(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for name, shift in (("sub-101", 0), ("sub-102", 1), ("sub-103", None)):
        reference, prediction = np.zeros((2, 20, 20, 10), np.float32)
        reference[4:7, 4:7, 4:6] = 1
        (tmp_path / "truth" / name).mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(reference, affine), tmp_path / "truth" / name / f"{name}_space-T2S_CMB.nii.gz"
        )
        if shift is not None:
            (tmp_path / "pred").mkdir(exist_ok=True)
            prediction[4 + shift : 7 + shift, 4:7, 4:6] = 0.8
            path = tmp_path / "pred" / f"{name}_space-T2S_prediction.nii.gz"
            nib.save(nib.Nifti1Image(prediction, affine), path)
    result = evaluate(tmp_path / "pred", tmp_path / "truth", bootstrap_samples=20)
    assert [(each.tp, each.fp, each.fn) for each in result.rules] == [(2, 0, 1)] * 5
    assert result.subjects[2].missing
    assert "sub-103" in result.warnings[0]
    # Dice 1, 12/18 shifted by one of three, 0 for the missing one.
    assert result.valdo.median_dice == pytest.approx(2 / 3)
    assert result.valdo.median_volume_difference_mm3 == pytest.approx(0.2 * 18 * 2.0)
    strict = evaluate(tmp_path / "pred", tmp_path / "truth", threshold=0.9, bootstrap_samples=0)
    assert strict.headline_result.tp == 0


def test_prediction_on_another_grid_names_the_scan(tmp_path):
    for folder, shape in (("truth", (8, 8, 8)), ("pred", (8, 8, 9))):
        (tmp_path / folder).mkdir()
        mask = np.zeros(shape, np.uint8)
        mask[2, 2, 2] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / folder / "sub-1_x.nii.gz")
    with pytest.raises(UserError, match="sub-1: prediction and truth have different shapes"):
        evaluate(tmp_path / "pred", tmp_path / "truth")


def test_calibration_is_of_what_is_reported(worked):
    found, true = worked
    odds = [np.array([0.9, 0.6, np.nan]), np.array([0.2]), np.array([0.8])]
    judged = [dataclasses.replace(each, probabilities=p) for each, p in zip(found, odds, strict=True)]
    # at 0.75: true at 0.9 and 0.8, false (4 mm off) at 0.6; each of the ten bins holds one or none
    result = evaluate_records(judged, true, threshold=0.75, bootstrap_samples=50)
    assert (result.calibration.detections, result.calibration.true) == (3, 2)
    assert result.calibration.ece_equal_width.value == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert result.calibration.ece_equal_width.low <= result.calibration.ece_equal_width.high
    assert "Calibration of the probabilities" in format_table(result)
    page = render_evaluation_report(report_content(result, title="t"))
    assert "Reliability diagram" in page
    # at 0.7 a detection without a probability is reported too
    assert evaluate_records(judged, true, threshold=0.7, bootstrap_samples=0).calibration is None
    plain = evaluate_records(found, true, threshold=0.75, bootstrap_samples=0)
    assert plain.calibration is None
    assert "Calibration of the probabilities" not in format_table(plain)
