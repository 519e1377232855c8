"""The page as a browser's parser sees it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from cmb_jax.core.detection import RejectReason
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text
from cmb_jax.report.html import MAX_REJECTED_DRAWN, render_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, the text of every id, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text_of: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.handle_data(" ")
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open, f"closing {tag} without opening"
        opened, _ = self._open.pop()
        assert opened == tag, f"{opened} closed by {tag}"

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "style":
            return
        self.text += data
        for _, name in self._open:
            if name:
                self.text_of[name] = self.text_of.get(name, "") + data

    def all(self, tag: str, attribute: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and (attribute is None or attribute in a)]

    def words(self, name: str) -> str:
        return " ".join(self.text_of[name].split())

    def values(self, attribute: str) -> list[str | None]:
        return [a[attribute] for _, a in self.elements if attribute in a]


def kept_only(content, n):
    return dataclasses.replace(content, rows=content.rows[:n])


def test_every_row_appears_once(content):
    page = Page(render_report(content))
    assert page.values("data-kept") == ["1", "2", "3", "4"]
    assert page.values("data-rejected") == ["6", "5", "7"]  # the highest score first
    ids = [i for i in page.values("id") if i]
    assert len(ids) == len(set(ids))
    links = {href[1:] for a in page.all("a") if (href := a["href"])}
    assert links <= set(ids)


def test_summary_counts_and_pattern(content):
    page = Page(render_report(content))
    summary = page.words("summary")
    assert summary.startswith("4 microbleeds reported 2 definite, 2 possible · 3 candidates rejected")
    assert "Lobar 2 1 definite, 1 possible" in summary
    assert "Deep 1 1 definite, 0 possible" in summary
    assert "Infratentorial 1 0 definite, 1 possible" in summary
    assert (
        "Definite microbleeds: mixed (lobar and deep); with the possible ones: mixed (lobar, deep and"
        in summary
    )


def test_research_use_is_said_first_and_last(content):
    text = Page(render_report(content)).text.split()
    joined = " ".join(text)
    assert joined.index("Research use only – not a diagnosis") < joined.index("microbleeds reported")
    assert joined.count("Research use only – not a diagnosis") == 2


def test_the_page_fetches_nothing_and_runs_nothing(content):
    html = render_report(content)
    page = Page(html)
    assert "//" not in re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", html)
    for attribute in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
        for value in page.values(attribute):
            assert value is not None
            assert value.startswith(("data:image/jpeg;base64,", "#"))
    assert "url(" not in html
    assert "@import" not in html
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_hostile_names_are_text(content):
    evil = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(2)>.nii.gz'
    rows = (
        dataclasses.replace(content.rows[0], region=evil),
        dataclasses.replace(content.rows[4], reason=evil),
    )
    hostile = dataclasses.replace(
        content,
        subject=evil,
        rows=rows,
        warnings=(evil,),
        settings=((evil, evil),),
        inputs=((evil, evil, evil),),
        weights_sha256=evil,
        version=evil,
        steps=(evil,),
        timings=((evil, 1.0),),
    )
    page = Page(render_report(hostile))
    assert not page.all("script")
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert evil in page.text
    plain = Page(render_report(dataclasses.replace(content, rows=(content.rows[0], content.rows[4]))))
    assert len(page.all("img")) == len(plain.all("img"))


def test_images_have_words_and_tables_have_headers(content):
    page = Page(render_report(content))
    assert all(a.get("alt") for a in page.all("img"))
    drawings = page.all("svg", "role")
    assert len(drawings) == 5  # three projections and two slabs with links
    assert all(a.get("aria-label") for a in drawings)
    assert all(a.get("scope") in ("col", "row", "colgroup") for a in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_pictures_of_a_detection(content):
    alts = [a["alt"] for a in Page(render_report(content)).all("img")]
    for modality in ("SWI", "Phase"):
        for plane in ("axial", "coronal", "sagittal"):
            assert alts.count(f"{modality}, {plane} plane, 20 mm around candidate 3") == 1
    assert sum("candidate 6" in alt for alt in alts) == 1  # rejected: one thumbnail


def test_at_most_n_detections_are_drawn(content, make_row):
    many = tuple(make_row(id=n, score=0.5 + n / 100) for n in range(1, 31))
    rejected = tuple(make_row(id=100 + n, status="rejected", reason="weak", score=0.1) for n in range(40))
    page = Page(render_report(dataclasses.replace(content, rows=many + rejected), max_drawn=5))
    alts = [a["alt"] for a in page.all("img")]
    drawn = {alt.rsplit(" ", 1)[1] for alt in alts if alt.startswith("SWI, coronal")}
    assert drawn == {"26", "27", "28", "29", "30"}
    assert sum(alt.startswith("SWI, axial") for alt in alts) == 5 + MAX_REJECTED_DRAWN
    assert sorted(map(int, page.values("data-kept"))) == list(range(1, 31))
    assert "the 5 microbleeds with the highest scores of 30; the other 25 are listed" in page.words("undrawn")


def test_an_empty_result_explains_itself(content):
    page = Page(render_report(dataclasses.replace(content, rows=content.rows[4:])))
    why = page.words("empty")
    assert "3 candidates were examined and rejected: 2 score below threshold, 1 in ventricle." in why
    assert "The score threshold was 0.5." in why
    assert "The highest score among them was 0.70." in why
    assert "does not prove" in why
    assert page.values("data-rejected") == ["6", "5", "7"]
    assert "open" in page.all("details")[0]


def test_no_candidate_at_all_explains_itself(content):
    page = Page(render_report(dataclasses.replace(content, rows=())))
    assert "The detector proposed no candidate" in page.words("empty")
    assert page.words("summary").startswith("0 microbleeds reported")


def test_untrusted_regions_hide_places(content):
    page = Page(render_report(dataclasses.replace(content, regions_trusted=False)))
    shown = page.text.lower()
    for word in ("lobar", "thalamus", "cerebellum right", "left frontal", "right frontal", "mixed"):
        assert word not in shown.split("quality control")[0], word
    assert "region map is not trusted" in page.words("warnings")
    assert "Definite 2 Possible 2 All 4" in page.words("counts")
    classes = " ".join(c or "" for c in page.values("class"))
    assert "z-lobar" not in classes
    assert "z-none" in classes
    assert page.values("data-kept") == ["1", "2", "3", "4"]


def test_partial_field_of_view_and_missing_phase_are_said(content):
    page = Page(render_report(dataclasses.replace(content, partial_field_of_view=True, phase=None)))
    assert "within the scanned part of the brain" in page.words("summary")
    assert "lower bound" in page.words("warnings")
    assert "No phase image" in page.words("warnings")
    assert "sign was guessed" in page.words("warnings")
    assert not any((a["alt"] or "").startswith("Phase") for a in page.all("img"))


def test_provenance_is_complete(content):
    text = Page(render_report(content)).text
    for expected in ("a" * 64, "b" * 64, "c" * 64, "sub-01_swi.nii.gz", "cmb_jax 0.1.0", "Detected", "12.34"):
        assert text.count(expected) == 1
    assert "inference.score_threshold" in text


def test_rows_without_region_map_or_outside_the_scan_are_drawn(content, make_row):
    rows = (
        make_row(x_mm=500.0, y_mm=-500.0, z_mm=500.0),
        make_row(id=2, zone="none", region="outside", side="none"),
    )
    page = Page(render_report(dataclasses.replace(content, rows=rows, region_code=None)))
    assert page.values("data-kept") == ["1", "2"]
    assert "No zone" in page.words("mars")
    assert "No side" in page.words("mars")


def test_writing_is_whole_or_not_at_all(content, tmp_path):
    path = tmp_path / "report.html"
    atomic_write_text(path, render_report(kept_only(content, 1)))
    assert path.read_text(encoding="utf-8").endswith("</html>")
    with pytest.raises(UserError, match=r"report\.html"):
        atomic_write_text(path, render_report(content))
    atomic_write_text(path, render_report(content), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_mask_of_another_shape_is_refused(content):
    with pytest.raises(ValueError, match="brain_mask"):
        dataclasses.replace(content, brain_mask=content.brain_mask[:-1])


def test_probabilities_are_shown_where_there_are_any(content, make_row):
    rows = (
        make_row(probability=0.8312),
        make_row(id=2, status="rejected", reason="score below the operating point", probability=0.1149),
        make_row(id=3, status="rejected", reason="inside a ventricle"),
    )
    text = Page(render_report(dataclasses.replace(content, rows=rows))).text
    assert "0.83" in text
    assert "0.11" in text
    assert "Probability" in text
    assert "robability" not in Page(render_report(content)).text


def luminance(color):
    """Relative luminance of #rrggbb by the formula of WCAG 2."""
    channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ratio(first, second):
    """Contrast ratio of two colors by the formula of WCAG 2."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_texts_stand_out_from_what_is_behind_them():
    style = (resources.files("cmb_jax.report") / "templates" / "style.css").read_text("utf-8")
    themes = [dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media")[:2]]
    assert themes[0]["--zero"] != themes[1]["--zero"]
    for colors in themes:
        for text in ("--zero", "--muted", "--ink", "--accent", "--bad", "--infra"):
            for behind in ("--card", "--faint", "--page"):
                assert ratio(colors[text], colors[behind]) >= 4.5, (text, behind)
        assert ratio(colors["--notice-ink"], colors["--notice"]) >= 4.5
        for drawn in ("--lobar", "--deep", "--infra", "--none", "--muted", "--accent"):
            assert ratio(colors[drawn], colors["--card"]) >= 3, drawn  # of what is drawn, not written


def test_parts_are_reached_by_keyboard(content):
    page = Page(render_report(content))
    assert not [a for a in page.all("a") if "tabindex" in a]
    jumps = [
        href[1:]
        for a in page.all("a")
        if (href := a["href"] or "").startswith("#") and "candidate" not in href
    ]
    assert jumps == ["overview", "criteria", "detections", "slabs", "quality", "rejected", "provenance"]
    scrolled = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert len(scrolled) == 3
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolled)
    # an image hides its links from programs that read aloud
    assert {svg["role"] for svg in page.all("svg", "role")} == {"group"}


def test_says_how_many_candidates_are_not_listed(content):
    rows = tuple(
        dataclasses.replace(row, reason=RejectReason.LOW_SCORE.sentence) if "threshold" in row.reason else row
        for row in content.rows
    )
    page = Page(render_report(dataclasses.replace(content, rows=rows, unlisted=130)))
    assert "of 132 candidates below it the 2 best are listed" in page.words("rejected")
    page = Page(render_report(dataclasses.replace(content, rows=rows, unlisted=0)))
    assert "best are listed" not in page.words("rejected")


def test_300_microbleeds_are_all_listed(content):
    kept = [dataclasses.replace(content.rows[0], id=number, score=0.99) for number in range(1, 301)]
    rejected = [dataclasses.replace(content.rows[-1], id=number) for number in range(301, 341)]
    page = Page(render_report(dataclasses.replace(content, rows=(*kept, *rejected))))
    assert page.values("data-kept") == [str(number) for number in range(1, 301)]
    assert len(page.values("data-rejected")) == 40
    assert page.words("summary").startswith("300 microbleeds reported")
