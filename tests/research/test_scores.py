"""Scores against counting by hand and loops."""

import csv
import dataclasses
import math

import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region, RegionMap
from cmb_jax.evaluation.froc import collect_events
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import Counts
from cmb_jax.research.findings import SetDetections, localized
from cmb_jax.research.runs import Cost, Verdict
from cmb_jax.research.scores import (
    AVERAGE_PRECISION,
    FP_MATCHED,
    LOCALIZED,
    NAMES,
    RunScores,
    compare_variants,
    csv_text,
    markdown_text,
    score_run,
    study_tables,
)

COST = Cost(parameters=10, parameters_at_inference=8, gflop=1.5, steps=2, seconds_per_step=0.5, hours=0.25)


def scan(name, positions, scores):
    centers = np.array([[p, 0.0, 0.0] for p in positions]).reshape(-1, 3)
    return SubjectDetections(
        subject=name, centers_mm=centers, scores=np.array(scores), diameters_mm=np.ones(len(centers))
    )


def truth(name, positions):
    centers = np.array([[p, 0.0, 0.0] for p in positions]).reshape(-1, 3)
    return SubjectTruth(subject=name, centers_mm=centers, diameters_mm=np.ones(len(centers)))


def test_the_threshold_comes_from_validation_and_the_counts_from_test():
    # validation: 2 false positives per scan are allowed; at 0.5 there are 2, at 0.4 a third
    validation = SetDetections(
        scans=(scan("v", [0, 50, 60, 20, 70], [0.9, 0.8, 0.7, 0.5, 0.4]),), mimics=(("none",) * 5,)
    )
    test = SetDetections(
        scans=(scan("a", [0, 40, 80], [0.6, 0.47, 0.3]), scan("b", [10], [0.46])),
        mimics=(("none", "pial_vein", "sinus"), ("artery",)),
    )
    scores = score_run(
        "run", validation, [truth("v", [0, 20])], test, [truth("a", [1, 30]), truth("b", [])], 2.0
    )
    assert scores.threshold == pytest.approx(0.45)
    np.testing.assert_array_equal(scores.counts.tp, [1, 0])
    np.testing.assert_array_equal(scores.counts.fp, [1, 1])
    assert scores.false_positives == {"pial_vein": 1, "artery": 1}


def drawn_run(name, rng, lesions, quality):
    """Each lesion is found with some probability, at a random score; false positives at lower ones."""
    happened, tp, fp = [], [], []
    for count in lesions:
        found = rng.uniform(0.3, 1.0, rng.binomial(count, quality))
        false = rng.uniform(0.0, 0.8, rng.poisson(4))
        happened.append((found, false))
        tp.append((found >= 0.5).sum())
        fp.append((false >= 0.5).sum())
    return RunScores(
        name=name,
        threshold=0.5,
        counts=Counts(tp=np.array(tp), fp=np.array(fp), lesions=lesions),
        events=collect_events(happened, lesions),
        false_positives={"none": int(np.sum(fp))},
    )


def test_localization_takes_what_lies_in_the_ventricle_and_trusts_no_doubtful_map():
    # the working frame: detections are z, y, x from the corner; the ventricle is where x exceeds 20 mm
    code = np.full((20, 20, 20), Region.FRONTAL, np.uint8)
    code[10:] = Region.VENTRICLE
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 1.0
    centers = np.array([[20.0, 20.0, 8.0], [8.0, 20.0, 32.0], [20.0, 8.0, 30.0]])
    one = SubjectDetections(
        subject="a", centers_mm=centers, scores=np.array([0.9, 0.8, 0.7]), diameters_mm=np.full(3, 3.0)
    )
    found = SetDetections(scans=(one, one), mimics=(("none", "artery", "sinus"),) * 2)
    maps = [RegionMap(code=code, affine=affine, trusted=trusted) for trusted in (True, False)]
    inside = localized(found, maps)
    assert [list(each.scores) for each in inside.scans] == [[0.9], [0.9, 0.8, 0.7]]
    assert inside.mimics == (("none",), ("none", "artery", "sinus"))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    lesions = rng.poisson(3, 20)
    runs = {
        name: [drawn_run(f"{name}-seed{k}", rng, lesions, quality) for k in range(3)]
        for name, quality in (("full", 0.95), ("rpn", 0.6))
    }
    runs["same"] = runs["rpn"]
    return runs, compare_variants(runs, "rpn", samples=300)


def test_means_and_deviations_are_of_the_seeds(study):
    runs, result = study
    assert [variant.name for variant in result.variants] == ["rpn", "full", "same"]
    for variant in result.variants:
        each = [run.counts.tp.sum() / run.counts.lesions.sum() for run in runs[variant.name]]
        metric = variant.metrics["sensitivity"]
        assert metric.mean.value == pytest.approx(np.mean(each))
        assert metric.deviation == pytest.approx(np.std(each, ddof=1))
        assert metric.mean.low < metric.mean.value < metric.mean.high
    assert result.matched_sensitivity == result.variants[0].metrics["sensitivity"].mean.value


def test_false_positives_at_matched_sensitivity_by_brute_force(study):
    runs, result = study
    for variant in result.variants:
        each = []
        for run in runs[variant.name]:
            events, reached = run.events, []
            for threshold in np.unique(events.scores):
                kept = events.scores >= threshold
                tp = (kept & events.true).sum()
                if tp / run.counts.lesions.sum() >= result.matched_sensitivity - 1e-9:
                    reached.append((kept & ~events.true).sum() / 20)
            each.append(min(reached))
        np.testing.assert_allclose(variant.metrics[FP_MATCHED].mean.value, np.mean(each))


def test_a_better_variant_differs_and_an_equal_one_does_not(study):
    _, result = study
    reference, full, same = result.variants
    assert all(metric.difference is None for metric in reference.metrics.values())
    better = full.metrics["sensitivity"].difference
    assert better.difference.low > 0
    assert better.p_value < 0.02
    for name in NAMES:
        assert same.metrics[name].difference.p_value == 1.0
        assert same.metrics[name].difference.difference.value == 0


def test_one_seed_has_no_deviation(study):
    runs, _ = study
    result = compare_variants({"rpn": runs["rpn"][:1]}, "rpn", matched_sensitivity=0.3, samples=50)
    assert math.isnan(result.variants[0].metrics["sensitivity"].deviation)
    assert result.matched_sensitivity == 0.3


def test_a_sensitivity_that_is_not_reached_is_said(study):
    runs, _ = study
    result = compare_variants(runs, "rpn", matched_sensitivity=1.0, samples=50)
    whole_lists = [(~run.events.true).sum() / 20 for run in runs["rpn"]]
    assert result.variants[0].metrics[FP_MATCHED].mean.value == pytest.approx(np.mean(whole_lists))
    table = study_tables(result, result, {name: [COST] for name in runs})[1]
    assert "rpn-seed0, rpn-seed1, rpn-seed2" in table.note
    assert "never reached it" in table.note


def test_ratios_are_paired_over_scans(study):
    _, result = study
    reference, full, same = (variant.metrics[FP_MATCHED] for variant in result.variants)
    assert reference.ratio is None
    assert full.ratio.value == pytest.approx(full.mean.value / reference.mean.value)
    assert full.ratio.low < full.ratio.value < full.ratio.high < 1
    assert (same.ratio.low, same.ratio.value, same.ratio.high) == (1.0, 1.0, 1.0)


def test_another_pair_has_the_ratio_that_it_has_as_reference(study):
    runs, _ = study
    options = {"matched_sensitivity": 0.5, "samples": 300}
    paired = compare_variants(runs, "rpn", pairs=(("same", "full"), ("full", "missing")), **options)
    turned = compare_variants({name: runs[name] for name in ("full", "same")}, "full", **options)
    assert paired.ratios == {("same", "full"): turned.variants[1].metrics[FP_MATCHED].ratio}
    rows = list(csv.DictReader(csv_text(paired, paired).splitlines()))
    (row,) = (row for row in rows if row["reference"] == "full")
    assert (row["variant"], row["metric"], row["p"]) == ("same", FP_MATCHED, "")
    assert float(row["ratio"]) == pytest.approx(paired.ratios["same", "full"].value, rel=1e-5)


def test_the_verdict_is_by_the_ends_of_the_interval(study):
    runs, result = study
    rule = Verdict(claimed_below=0.5, absent_above=0.8)
    assert [rule.of(*ends) for ends in ((0.1, 0.49), (0.81, 2), (0.4, 0.5), (0.8, 0.9), (0.1, 3))] == [
        "as in the paper",
        "absent",
        *["undecided"] * 3,
    ]
    table = study_tables(result, result, {name: [COST] for name in runs}, rule)[2]
    assert table.rows[1] == ("same", "rpn", "1.00 [1.00, 1.00]", "absent")


def better_run(run):
    """The run without its false positives, and with every lesion found."""
    found = [(np.ones(count), np.zeros(0)) for count in run.counts.lesions]
    return dataclasses.replace(run, events=collect_events(found, run.counts.lesions))


def test_tables_hold_every_metric(study):
    runs, result = study
    with_regions = compare_variants(
        {name: [better_run(run) for run in each] for name, each in runs.items()}, "rpn", samples=50
    )
    lines = csv_text(result, with_regions).splitlines()
    assert len(lines) == 1 + 3 * (len(NAMES) + 2)
    (row,) = (
        row
        for row in csv.DictReader(lines)
        if (row["variant"], row["metric"]) == ("full", AVERAGE_PRECISION + LOCALIZED)
    )
    assert float(row["mean"]) == pytest.approx(1.0)
    assert all(line.count(",") == lines[0].count(",") for line in lines)
    text = markdown_text(
        "Title", ["Research use only."], study_tables(result, with_regions, {name: [COST] for name in runs})
    )
    sensitivity = result.variants[1].metrics["sensitivity"]
    assert f"{sensitivity.mean.value:.3f} ± {sensitivity.deviation:.3f}" in text
    assert text.startswith("# Title\n\nResearch use only.")
