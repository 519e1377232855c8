"""Names that are HTML stay text: the pages as a browser's parser builds them."""

import dataclasses
import sys

import nibabel as nib
import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from cmb_jax import cli
from cmb_jax.core.detection import DetectionRow
from cmb_jax.evaluation.evaluate import evaluate_records
from cmb_jax.evaluation.present import report_content
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.io.volume import Volume
from cmb_jax.report.cohort import CohortContent, CohortLine, render_cohort
from cmb_jax.report.evaluation import render_evaluation_report
from cmb_jax.report.html import render_report
from cmb_jax.report.summary import ReportContent
from cmb_jax.viewer.page import ViewerCase, embedded_in, render_viewer

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
)
ALLOWED_SOURCES = ("data:image/", "#")


def check(page: str, text: str) -> None:
    """No script, no handler, nothing that is fetched; the text stands there as it was given."""
    tree = LexborHTMLParser(page)
    assert tree.css("script, iframe, object, embed, link, base, form, foreignObject, animate, set") == []
    for node in tree.css("*"):
        for name, value in node.attributes.items():
            assert not name.lower().startswith("on"), (node.tag, name)
            if name.lower() in ("src", "href", "xlink:href", "action", "formaction"):
                assert value is not None
                assert value.startswith(ALLOWED_SOURCES), value
    for style in tree.css("style"):
        assert "url(http" not in style.text()
        assert "@import" not in style.text()
    body = tree.css_first("body")
    assert body is not None
    assert text in body.text()


def content(text: str) -> ReportContent:
    row = DetectionRow(
        **{"id": 1, "i": 5, "j": 5, "k": 5, "x_mm": 5.0, "y_mm": 5.0, "z_mm": 5.0},
        **{"diameter_mm": 3.0, "volume_mm3": 14.1, "score": 0.9, "category": "definite"},
        **{"zone": "lobar", "region": text, "side": "left", "status": "kept", "reason": ""},
    )
    swi = Volume.from_array(np.random.default_rng(0).uniform(1, 2, (12, 12, 12)), np.eye(4))
    return ReportContent(
        subject=text,
        rows=(row, dataclasses.replace(row, id=2, status="rejected", reason=f"because of {text}")),
        swi=swi,
        phase=None,
        brain_mask=np.ones((12, 12, 12), bool),
        region_code=None,
        warnings=(text,),
        settings=((text, text), ("score_threshold", text)),
        inputs=((text, text, text),),
        steps=(text,),
        timings=((text, 1.0),),
        version=text,
        weights_sha256=text,
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_the_report_of_a_subject(text):
    check(render_report(content(text)), text)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_report_of_an_evaluation(text):
    centers = np.array([[1.0, 2.0, 3.0]])
    common = {"subject": text, "centers_mm": centers, "diameters_mm": np.array([3.0])}
    found = SubjectDetections(**common, scores=np.array([0.9]), zones=(text,), regions=(text,))
    truth = SubjectTruth(**common, zones=(text,), regions=(text,), protocol=text)
    result = evaluate_records([found], [truth], bootstrap_samples=0, warnings=(text,))
    page = report_content(result, title=text, settings=((text, text),), weights_sha256=text, timings=())
    check(render_evaluation_report(page), text)


@pytest.mark.parametrize("mark", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_marks_that_turn_text_are_shown_as_their_codes(mark):
    """`scan<mark>gpj.exe` would be read as scanexe.jpg; Hebrew and Arabic letters stay as they are."""
    text, shown = f"scan{mark}gpj.\u05d0 exe", f"scan\\u{ord(mark):04x}gpj.\u05d0 exe"
    line = CohortLine(name=text, status="failed", reason=text, warnings=(text,))
    case = ViewerCase(
        title=text, subject="sub-01", swi_sha256="0" * 64, detections_sha256="1" * 64,
        rows=(), regions_trusted=True, warnings=[text])  # fmt: skip
    viewer = render_viewer(case, None)
    facts = embedded_in(viewer.encode())[1]
    assert (facts["title"], facts["warnings"]) == (shown, [shown])
    assert LexborHTMLParser(viewer).css_first("title").text().startswith(shown)
    cohort = render_cohort(CohortContent(title=text, lines=(line,), notes=(text,), version="1"))
    for page in (render_report(content(text)), cohort):
        assert mark not in page
        assert LexborHTMLParser(page).text().count(shown) >= 3


@pytest.mark.parametrize("text", [text for text in HOSTILE if "/" not in text])
def test_the_contact_sheet(monkeypatch, tmp_path, text):
    data = tmp_path / "data"
    data.mkdir()
    image = np.random.default_rng(0).uniform(1, 2, (12, 12, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), data / f"{text}_swi.nii.gz")
    (data / f"{text}_points.csv").write_text("x_mm,y_mm,z_mm\n5,5,5\n")
    arguments = ("data", "check", str(data), "--out", str(tmp_path / "sheet.html"), "--keep-identifiers")
    monkeypatch.setattr(sys, "argv", ["cmb-jax", *arguments])
    cli.main()
    check((tmp_path / "sheet.html").read_text(), text)
