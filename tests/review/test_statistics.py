"""Agreement against scikit-learn and formulas, consensus against what readers would expect."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from cmb_jax.errors import UserError
from cmb_jax.evaluation.statistics import cohen_kappa, icc_2_1
from cmb_jax.review.reading import Reading
from cmb_jax.review.statistics import (
    ScanReview,
    detector_agreement,
    read_review,
    reader_agreement,
    review_json,
    share,
)
from cmb_jax.review.truth import truth_rows
from cmb_jax.review.verdicts import Mark, Verdict
from tests.review.conftest import AFFINES, make_rows
from tests.review.edits import fill

M, N, U = Verdict.MICROBLEED, Verdict.MIMIC, Verdict.UNCERTAIN
ROWS = make_rows(AFFINES["RAS"])


def reading(*verdicts, added=(), mimic="", diameter=None):
    marks = tuple(
        Mark(
            candidate=row.id,
            verdict=verdict,
            position_mm=(row.x_mm, row.y_mm, row.z_mm),
            mimic=mimic if verdict is N else "",
            diameter_mm=diameter,
        )
        for row, verdict in zip(ROWS, verdicts, strict=True)
    )
    new = tuple(Mark(candidate=None, verdict=M, position_mm=place) for place in added)
    return Reading(marks=marks, added=new)


def scan(*readings, subject="s"):
    return ScanReview(subject=subject, rows=ROWS, readings=readings)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 3, 60)
    b = np.where(rng.random(60) < 0.7, a, rng.integers(0, 3, 60))
    table = np.zeros((3, 3), int)
    np.add.at(table, (a, b), 1)
    assert cohen_kappa(table) == pytest.approx(cohen_kappa_score(a, b))
    np.testing.assert_allclose(cohen_kappa(np.stack([table, table.T])), cohen_kappa_score(a, b))


def test_kappa_where_it_is_undefined():
    assert math.isnan(cohen_kappa(np.zeros((3, 3))))
    assert math.isnan(cohen_kappa(np.diag([5, 0, 0])))
    assert cohen_kappa(np.diag([5, 1, 0])) == 1.0


@pytest.mark.parametrize(("count", "of"), [(0, 7), (3, 7), (7, 7), (1, 1), (40, 41)])
def test_wilson_interval(count, of):
    z, p = 1.959963984540054, count / of
    center, half = p + z**2 / (2 * of), z * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    found = share(count, of)
    assert found.value == p
    assert found.low == pytest.approx(max((center - half) / (1 + z**2 / of), 0), abs=1e-12)
    assert found.high == pytest.approx(min((center + half) / (1 + z**2 / of), 1), abs=1e-12)
    assert math.isnan(share(0, 0).value)


def test_one_reader_against_the_detector():
    found = detector_agreement([scan(reading(M, N, U, None, M, added=[(9.0, 9.0, 9.0)]))], 0)
    kept = found.kept
    assert (kept.kept, kept.microbleed, kept.mimic, kept.uncertain, kept.not_read) == (4, 1, 1, 1, 1)
    assert (kept.precision.count, kept.precision.of) == (1, 2)
    by = {group.name: group for group in (*found.by_category, *found.by_zone)}
    assert (by["definite"].microbleed, by["definite"].mimic) == (1, 1)  # rows 1 and 2
    assert (by["possible"].uncertain, by["possible"].not_read) == (1, 1)  # rows 3 and 4
    assert (by["lobar"].kept, by["deep"].mimic, by["infratentorial"].uncertain) == (2, 1, 1)
    assert sum(group.kept for group in found.by_zone) == kept.kept
    assert (found.rejected_microbleeds, found.added_microbleeds) == (1, 1)
    assert (found.found.count, found.found.of) == (1, 3)


def test_two_readers():
    a = reading(M, N, M, None, M, added=[(0.0, 0.0, 0.0), (20.0, 0.0, 0.0)])
    b = reading(M, M, M, N, N, added=[(1.0, 1.0, 0.0)])
    found = reader_agreement([scan(a, b)], 0, 1)
    assert found.confusion == ((2, 1, 0), (1, 0, 0), (0, 0, 0))
    assert (found.agreement.count, found.agreement.of) == (2, 4)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(list("MNMM"), list("MMMN")))
    assert found.kappa.low <= found.kappa.value <= found.kappa.high
    assert (found.added_both, found.added_first, found.added_second) == (1, 1, 0)
    assert math.isnan(found.counts.icc)  # of one scan
    assert found.counts.bias == 5 - 4  # microbleeds: 3 + 2 and 3 + 1


def test_over_several_scans():
    pairs = [("MMMNU", "MMNNU"), ("NNNMM", "NNNMN"), ("MMUUN", "MNUMN"), ("MMMMM", "MMMMM")]
    words = {"M": M, "N": N, "U": U}
    scans = [
        scan(*(reading(*(words[c] for c in text)) for text in pair), subject=str(n))
        for n, pair in enumerate(pairs)
    ]
    found = reader_agreement(scans, 0, 1)
    a, b = ("".join(pair[side] for pair in pairs) for side in (0, 1))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(list(a), list(b)))
    assert found.resampled == "scans"
    counts = np.array([[text.count("M") for text in pair] for pair in pairs])
    assert found.counts.icc == pytest.approx(icc_2_1(counts))
    assert found.kappa == reader_agreement(scans, 0, 1).kappa  # the seed is fixed


def test_truth_of_one_reader():
    lines = truth_rows(ROWS, [reading(M, N, U, None, M, added=[(9.0, 9.0, 9.0)], mimic="vessel")])
    assert [line.kind for line in lines] == ["cmb", "mimic", "uncertain", "cmb", "cmb"]
    assert [line.mimic for line in lines] == ["", "vessel", "", "", ""]
    assert [line.candidate for line in lines] == ["1", "2", "3", "5", ""]
    assert [line.diameter_mm for line in lines] == [4.0, 4.5, 5.0, 6.0, 3.0]


def test_truth_of_several_readers():
    two = [reading(M, M, None, N, N), reading(M, N, M, N, U)]
    assert [line.kind for line in truth_rows(ROWS, two)] == ["cmb", "uncertain", "cmb", "mimic", "uncertain"]
    three = [*two, reading(N, N, N, N, N)]
    assert [line.kind for line in truth_rows(ROWS, three)] == ["cmb", "mimic", "uncertain", "mimic", "mimic"]
    new = [reading(*[M] * 5, added=[(9.0, 9.0, 9.0)]), reading(*[M] * 5, added=[(10.0, 9.0, 9.0)])]
    last = truth_rows(ROWS, new)[-1]
    assert (last.kind, last.x_mm, last.readers) == ("cmb", 9.5, 2)
    alone = [new[0], reading(*[M] * 5)]
    assert truth_rows(ROWS, alone)[-1].kind == "uncertain"


def test_drawn_diameters_come_before_the_detectors():
    readings = [reading(*[M] * 5, diameter=2.0), reading(*[M] * 5, diameter=3.0)]
    assert truth_rows(ROWS, readings)[0].diameter_mm == 2.5


def test_a_record_comes_back(tmp_path):
    before = scan(reading(M, N, U, None, M, added=[(9.0, 9.0, 9.0)], mimic="other", diameter=2.0))
    (tmp_path / "a.json").write_text(review_json(before))
    after = read_review(tmp_path / "a.json")
    assert after == before
    assert "NaN" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"format_version": 99},
        {"readings": []},
        {"candidates": []},
        {"readings": [{"marks": [{"candidate": 1}], "added": []}]},
        {"subject": None, "candidates": 3},
    ],
)
def test_a_record_that_is_damaged(tmp_path, change):
    content = json.loads(review_json(scan(reading(M, N, U, None, M))))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=r"a\.json: .*not a file of cmb-jax review import: import it"):
        read_review(path)


def test_the_agreement_command(run, exported, result, tmp_path):
    words = [["microbleed"] * 5, ["microbleed", "mimic", "microbleed", "mimic", "uncertain"]]
    for number, verdicts in enumerate(words):
        path = tmp_path / f"reader{number}.xlsx"
        path.write_bytes((exported / "review.xlsx").read_bytes())
        fill(path, {(row, "verdict"): word for row, word in enumerate(verdicts, start=2)})
    readers = [tmp_path / "reader0.xlsx", tmp_path / "reader1.xlsx"]
    done = run("import", *readers, "--result", result, "--out", tmp_path / "a_points.csv")
    assert done.code == 0, done.err
    assert "readers 1 and 2: same verdict 0.400 [" in done.out
    first = tmp_path / "a_points.json"
    record = json.loads(first.read_text())
    assert record["subject"] == "sub-07_ses-1_swi"
    assert record["agreement"]["readers"][0]["counts"]["icc"] is None
    assert record["agreement"]["readers"][0]["confusion"] == [[2, 2, 1], [0, 0, 0], [0, 0, 0]]

    other = tmp_path / "b_points.json"
    other.write_text(first.read_text().replace("sub-07_ses-1_swi", "sub-08_swi"))
    out = tmp_path / "agreement.json"
    done = run("agreement", first, other, "--out", out)
    assert done.code == 0, done.err
    pooled = json.loads(out.read_text())
    assert pooled["subjects"] == ["sub-07_ses-1_swi", "sub-08_swi"]
    assert pooled["readers"][0]["agreement"]["of"] == 10
    assert "ICC of counts" in done.out

    single = tmp_path / "c.csv"
    assert run("import", readers[0], "--result", result, "--out", single).code == 0
    for files, match in (
        ([first, first], "two of the files are of this scan"),
        ([first, single.with_suffix(".json")], "1 and 2 readers"),
        ([single], "not a file of cmb-jax review import"),
        ([tmp_path / "no.json"], "no such file"),
        ([], "no file was given"),
    ):
        done = run("agreement", *files, "--out", tmp_path / "no_out.json")
        assert done.code == 2
        assert match in done.err
