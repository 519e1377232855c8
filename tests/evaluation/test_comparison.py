"""Two programs on the same scans, against resampling done by hand."""

import json

import numpy as np
import pytest

from cmb_jax.evaluation.comparison import compare, comparison_table, comparison_values
from cmb_jax.evaluation.froc import FROC_RATES, collect_events
from cmb_jax.evaluation.records import CANDIDATE, KEPT, SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import paired_bootstrap_froc, resample_weights


def scan(number, hits, false, lesions=4):
    """A scan with lesions 20 mm apart: scores of hits on the first of them, and of false positives."""
    truth = np.array([[20.0 * n, 0.0, 0.0] for n in range(lesions)]).reshape(-1, 3)
    centers = [*truth[: len(hits)], *([[-50.0 - 10 * n, 0, 0] for n in range(len(false))])]
    scores = np.array([*hits, *false])
    found = SubjectDetections(
        subject=str(number),
        centers_mm=np.array(centers).reshape(-1, 3),
        scores=scores,
        diameters_mm=np.full(len(scores), 3.0),
        status=tuple(KEPT if score >= 0.5 else CANDIDATE for score in scores),
    )
    return found, SubjectTruth(subject=str(number), centers_mm=truth, diameters_mm=np.full(lesions, 3.0))


@pytest.fixture(scope="module")
def cohort():
    """Twelve scans: the better program finds every lesion, the worse half of them and errs more."""
    rng = np.random.default_rng(0)
    better, worse, truths = [], [], []
    for number in range(12):
        lesions = int(rng.integers(0, 5))
        good, truth = scan(number, rng.uniform(0.6, 1.0, lesions), rng.uniform(0.0, 0.4, 2), lesions)
        bad, _ = scan(number, rng.uniform(0.2, 0.9, (lesions + 1) // 2), rng.uniform(0.3, 0.9, 3), lesions)
        better.append(good)
        worse.append(bad)
        truths.append(truth)
    return better, worse, truths


def test_a_program_does_not_differ_from_itself(cohort):
    better, _, truths = cohort
    result = compare(("a", "b"), better, better, truths, samples=200)
    for metric in result.metrics:
        assert metric.first == metric.second
        assert metric.paired.difference.value == 0
        assert metric.paired.p_value == 1.0


def test_the_better_program_is_seen_to_be_better(cohort):
    result = compare(("better", "worse"), *cohort, samples=500)
    by_name = {metric.name: metric for metric in result.metrics}
    sensitivity = by_name["sensitivity"]
    assert sensitivity.first.value == 1.0
    assert sensitivity.paired.difference.value == pytest.approx(1.0 - sensitivity.second.value)
    assert sensitivity.paired.difference.low > 0
    assert by_name["fp_per_scan"].paired.difference.value < 0
    assert by_name["average precision"].paired.p_value < 0.05
    assert result.lesions == sum(len(truth.centers_mm) for truth in cohort[2])
    assert "better against worse: 12 scans" in comparison_table(result)


def test_paired_differences_are_those_of_resampled_scans(cohort):
    """Each resample as a set of scans of its own, the slow way."""
    from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
    from cmb_jax.evaluation.statistics import froc_metrics

    better, worse, truths = cohort
    lesions = [len(truth.centers_mm) for truth in truths]

    def per_scan(found):
        return [
            events(pairs_of(CENTER3, one, truth), one.scores)
            for one, truth in zip(found, truths, strict=True)
        ]

    a, b = per_scan(better), per_scan(worse)
    result = paired_bootstrap_froc(collect_events(a, lesions), collect_events(b, lesions), samples=40, seed=3)
    rows = []
    for weights in np.concatenate(list(resample_weights(12, 40, 3))):
        drawn = np.repeat(np.arange(12), weights)
        sides = [
            froc_metrics(
                collect_events([side[n] for n in drawn], [lesions[n] for n in drawn]),
                np.ones((1, len(drawn)), int),
            )[0]
            for side in (a, b)
        ]
        rows.append(sides[0] - sides[1])
    low, high = np.nanpercentile(rows, [2.5, 97.5], axis=0)
    assert len(result) == len(FROC_RATES) + 1
    np.testing.assert_allclose([one.difference.low for one in result], low, atol=1e-12)
    np.testing.assert_allclose([one.difference.high for one in result], high, atol=1e-12)


def test_other_scans_cannot_be_compared(cohort):
    first = collect_events([(np.ones(1), np.zeros(0))], [1])
    second = collect_events([(np.ones(1), np.zeros(0))], [2])
    with pytest.raises(ValueError, match="same scans"):
        paired_bootstrap_froc(first, second, samples=10)


def test_values_are_json_even_where_nothing_is_defined():
    found, truth = scan(0, [], [0.9], lesions=0)
    result = compare(("a", "b"), [found], [found], [truth], samples=10)
    values = json.loads(json.dumps(comparison_values(result), allow_nan=False))
    assert values["metrics"][0]["name"] == "sensitivity"
    assert values["metrics"][0]["first"]["value"] is None
    assert values["metrics"][1]["first"]["value"] == 1.0
