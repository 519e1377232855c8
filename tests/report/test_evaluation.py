"""The evaluation page and its plots."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.evaluation import (
    EvaluationContent,
    Headline,
    Table,
    cell_text,
    render_evaluation_report,
)
from cmb_jax.report.plots import (
    CountAgreementText,
    FrocLine,
    ReliabilityLine,
    SubjectLine,
    count_plot,
    difference_plot,
    froc_plot,
    reliability_plot,
    sensitivity_at,
)


@pytest.fixture
def curve() -> FrocLine:
    return FrocLine(
        name="model <A>",
        fp_per_scan=np.array([0.0, 0.5, 2.0, 20.0]),
        sensitivity=np.array([0.2, 0.6, 0.8, 1.0]),
        band_fp_per_scan=np.array([0.125, 1.0, 8.0]),
        band_low=np.array([0.1, 0.5, 0.7]),
        band_high=np.array([0.3, 0.7, 0.9]),
        operating_point=(2.0, 0.8),
    )


@pytest.fixture
def evaluation(curve) -> EvaluationContent:
    return EvaluationContent(
        title="small <b>",
        headlines=(Headline(label="Sensitivity", value="0.80", note="0.70 to 0.90"),),
        tables=(
            Table(title="Rules", columns=("Rule", "F1"), rows=(("3 mm", 0.8125), ("5 mm", float("nan")))),
        ),
        curves=(curve,),
        subjects=(
            SubjectLine(subject="sub-1<i>", lesions=4, detections=5, tp=4, fp=1, fn=0),
            SubjectLine(
                subject="sub-2", lesions=0, detections=0, tp=0, fp=0, fn=0, note="no prediction found"
            ),
        ),
        agreement=CountAgreementText(icc=0.9, bias=0.5, limit_low=-1.0, limit_high=2.0),
        warnings=("few scans",),
        version="0.1.0",
    )


def path_points(d: str) -> np.ndarray:
    return np.array([[float(v) for v in p.split()] for p in d.strip("MZ").split("L")])


def test_froc_is_a_staircase_through_its_points(curve):
    # The axis runs over log2(8 / (1/8)) = 6 doublings; 1 is 3 doublings from its start.
    picture = froc_plot([curve])
    points = path_points(next(s.d for s in picture.shapes if s.style == "curve s0"))
    grid = [path_points(s.d) for s in picture.shapes if s.style == "grid"]
    x0, x1 = grid[0][0, 0], grid[6][0, 0]
    y0, y1 = grid[7][0, 1], grid[12][0, 1]
    doublings = (points[:, 0] - x0) / (x1 - x0) * 6
    sensitivity = (points[:, 1] - y0) / (y1 - y0)
    np.testing.assert_allclose(doublings, [0, 2, 2, 4, 4, 6], atol=0.01)
    np.testing.assert_allclose(sensitivity, [0.2, 0.2, 0.6, 0.6, 0.8, 0.8], atol=0.002)
    dot = next(s for s in picture.shapes if s.style == "point s0")
    assert "0.80 at 2.00" in dot.title
    assert any(s.style == "band s0" for s in picture.shapes)


def test_froc_tells_its_values_on_hover(curve):
    titles = [s.title for s in froc_plot([curve]).shapes if s.style == "value s0"]
    assert len(titles) == 7
    # between the band's points 0.125 and 1, linear: 0.1 + 0.4 * 3 / 7 and 0.3 + 0.4 * 3 / 7
    assert "model <A>: sensitivity 0.60 at 0.5 false positives per scan, 95 % interval 0.27 to 0.47" in titles


def test_small_bins_make_no_line():
    bins = {"probability": np.array([0.2, 0.8, 1.0]), "share": np.array([0.0, 0.5, 1.0])}
    many = reliability_plot(ReliabilityLine(**bins, detections=np.array([9, 9, 9])))
    few = reliability_plot(ReliabilityLine(**bins, detections=np.array([1, 1, 1])))
    for picture, drawn in ((many, 1), (few, 0)):
        assert sum(s.style == "curve s0" for s in picture.shapes) == drawn
        assert sum(s.style == "spot" for s in picture.shapes) == 3
        assert all(label.y > 10 for label in picture.labels)


def test_sensitivity_at(curve):
    assert [sensitivity_at(curve, r) for r in (0.0, 0.5, 1.99, 2.0, 100.0)] == [0.2, 0.6, 0.6, 0.8, 1.0]
    assert sensitivity_at(FrocLine(name="x", fp_per_scan=np.array([]), sensitivity=np.array([])), 1.0) == 0.0


def test_count_plot_merges_equal_scans():
    lines = [SubjectLine(subject=str(n), lesions=3, detections=4, tp=3, fp=1, fn=0) for n in range(4)]
    spots = [s for s in count_plot(lines).shapes if s.style == "spot"]
    assert len(spots) == 1
    assert spots[0].title == "4 scans: 3 true, 4 reported"


@pytest.mark.parametrize("high", [0, 1, 7, 400])
def test_plots_stay_on_the_paper(high):
    lines = [SubjectLine(subject="a", lesions=0, detections=high, tp=0, fp=high, fn=0)]
    agreement = CountAgreementText(
        icc=float("nan"), bias=float(high), limit_low=float("nan"), limit_high=float("nan")
    )
    for picture in (count_plot(lines), difference_plot(lines, agreement)):
        for label in picture.labels:
            assert 0 <= label.x <= picture.width
            assert 0 <= label.y <= picture.height
        ticks = [t for t in picture.labels if re.fullmatch(r"-?[\d.]+", t.text)]
        assert 4 <= len(ticks) <= 26


def test_page(evaluation):
    html = render_evaluation_report(evaluation)
    assert html.count("<tr data-subject>") == 2
    assert "sub-1&lt;i&gt;" in html
    assert "small &lt;b&gt;" in html
    assert "model &lt;A&gt;" in html
    assert '<td class="n">0.812</td>' in html
    assert '<td class="n">–</td>' in html
    assert "Research use only" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html


def test_an_empty_evaluation_is_a_page(tmp_path):
    path = tmp_path / "e.html"
    atomic_write_text(path, render_evaluation_report(EvaluationContent(title="nothing")))
    assert path.read_text(encoding="utf-8").endswith("</html>")
    with pytest.raises(UserError):
        atomic_write_text(path, render_evaluation_report(EvaluationContent(title="nothing")))


def test_ragged_tables_are_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table(title="t", columns=("a", "b"), rows=(("x",),))


def test_cell_text():
    assert [cell_text(v) for v in (None, float("nan"), 0.5, 12.34, 7, "x")] == [
        "–",
        "–",
        "0.500",
        "12.3",
        "7",
        "x",
    ]


def test_reliability_spots_lie_at_probability_and_share(evaluation):
    line = ReliabilityLine(
        probability=np.array([0.1, 0.5, 0.9]),
        share=np.array([0.0, 0.75, 1.0]),
        detections=np.array([40, 10, 20]),
        note="3 bins",
    )
    plot = reliability_plot(line)
    (curve,) = [path_points(shape.d) for shape in plot.shapes if shape.style == "curve s0"]
    (diagonal,) = [path_points(shape.d) for shape in plot.shapes if shape.style == "identity"]
    low, high = diagonal
    expected = low + np.stack([line.probability, line.share], axis=1) * (high - low)
    np.testing.assert_allclose(curve, expected, atol=0.1)
    assert {label.text for label in plot.labels} >= {"40", "10", "20"}
    page = render_evaluation_report(dataclasses.replace(evaluation, reliability=line))
    assert "10 detections: probability 0.50, 0.75 of them true" in page
    assert "Reliability diagram" not in render_evaluation_report(evaluation)
