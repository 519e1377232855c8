"""The page of a cohort in a browser: sorted and filtered by keyboard, and closed."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cmb_jax.report.cohort import CohortContent, CohortLine, Link, render_cohort
from cmb_jax.report.drawing import Picture, Shape, glyph
from cmb_jax.report.summary import Count
from tests.viewer.test_browser import page_seconds

SCANS = 300
HOSTILE = "<img src=x onerror=alert(1)>"


def picture(rng):
    """As large as the picture of a scan: noise does not compress."""
    gray = rng.integers(0, 255, (225, 419)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "JPEG", quality=12)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    marks = "".join(glyph("lobar", *rng.uniform(0, 200, 2), 6) for _ in range(10))
    return Picture(width=419, height=225, alt="", uri=uri, shapes=(Shape(marks, "ring z-lobar definite"),))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, SCANS)
    counts[200] = 90
    lines = [
        CohortLine(
            name=f"sub-{n:04d}",
            status="done",
            counted=Count(int(count)),
            zones=(
                ("lobar", Count(int(count))),
                *((zone, Count()) for zone in ("deep", "infratentorial", "none")),
            ),
            rejected=20,
            brain_ml=1400.0,
            warnings=("the phase sign was guessed",) * (n % 2),
            links=(Link(text="Report", href=f"sub-{n:04d}/report.html"),),
            picture=picture(rng),
        )
        for n, count in enumerate(counts)
    ]
    lines[7] = CohortLine(name="sub-0007", status="failed", reason=f"cannot be read {HOSTILE}")
    path = tmp_path_factory.mktemp("cohort") / "page.html"
    path.write_text(
        render_cohort(CohortContent(title="300 results", lines=tuple(lines), version="1")), encoding="utf-8"
    )
    return path, counts


@pytest.fixture
def page(chromium, cohort):
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(120_000)
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("console", lambda line: opened.complaints.append(line.text))
    opened.goto(cohort[0].as_uri())
    yield opened
    context.close()


def names(page):
    return page.locator("tbody tr:not([hidden]) th").all_text_contents()


def test_sorts_and_filters(page, cohort):
    _, counts = cohort
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    started = page_seconds(session)
    page.locator("thead button", has_text="All").focus()
    page.keyboard.press("Enter")
    assert page_seconds(session) - started < 30
    assert page.get_attribute("thead th:nth-child(4)", "aria-sort") == "descending"
    first = page.locator("tbody tr").first
    assert first.locator("th").text_content() == "sub-0200"
    values = page.eval_on_selector_all("tbody td:nth-child(4)", "cells => cells.map(c => +c.dataset.value)")
    assert values == sorted(values, reverse=True)
    assert values[-1] == -1  # the failed one is no zero
    page.keyboard.press("Enter")
    assert page.locator("tbody tr").first.locator("th").text_content() == "sub-0007"

    page.fill("#words", "CANNOT be read")
    assert names(page) == ["sub-0007"]
    assert page.text_content("#shown") == "1 of 300 shown"
    page.fill("#words", "")
    page.fill("#least", "8")
    assert len(names(page)) == int((np.delete(counts, 7) >= 8).sum())
    page.check("#outlying")
    page.check("#warned")
    assert names(page) == []  # the outlier has an even number and no warning
    link, linked = page.locator("#outliers a", has_text="sub-0200"), page.locator("#line-200")
    link.click()  # a link to a scan shows it again
    linked.wait_for(state="visible")
    page.check("#warned")
    page.uncheck("#pictures")
    linked.wait_for(state="hidden")
    assert not page.locator("#line-200 .seen").is_visible()
    link.click()  # the second time, too, though the address stays the same
    linked.wait_for(state="visible")
    page.locator("#line-200 .seen").wait_for(state="visible")  # with its picture, as the form says
    page.check("#warned")
    linked.wait_for(state="hidden")
    page.evaluate("location.hash = ''; location.hash = '#line-200'")  # or by its address, told later
    linked.wait_for(state="visible")
    page.select_option("#status", "failed")
    assert names(page) == ["sub-0007"]
    assert page.complaints == []


def test_nothing_is_run_or_fetched(page):
    assert HOSTILE in page.text_content("#line-7")
    assert page.locator("#line-7 img").count() == 0
    assert page.evaluate("fetch('file:///etc/passwd').then(() => false, () => true)")
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
    assert page.evaluate(f"{added} document.body.append(s); window.ran === undefined")
