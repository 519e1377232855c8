"""The page as an HTML parser builds it: its policy names its own scripts, and texts stay texts."""

import base64
import hashlib
import itertools
import json
import re
from importlib import resources

import pytest
from selectolax.lexbor import LexborHTMLParser

from cmb_jax.viewer.page import MODULES, ViewerCase, embedded_in, render_viewer
from tests.report.test_html import ratio
from tests.viewer.conftest import make, make_candidates

VIEWER = resources.files("cmb_jax.viewer")


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("viewer") / "result")


@pytest.fixture(scope="module")
def tree(made):
    return LexborHTMLParser(made.page.read_text(encoding="utf-8"))


def test_policy_allows_the_two_scripts_and_the_style_sheet_alone(tree):
    policy = tree.css_first("meta[http-equiv=Content-Security-Policy]").attributes["content"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    scripts = [node for node in tree.css("script") if node.attributes.get("type") in (None, "module")]
    assert sorted(rules["script-src"]) == sorted(digest(node.text()) for node in scripts)
    (style,) = tree.css("style")
    assert rules["style-src"] == [digest(style.text())]
    assert rules["connect-src"] == ["'self'"]
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:"} & {
        w for r in rules.values() for w in r
    }


def test_nothing_is_fetched_and_nothing_inline_is_run(tree):
    assert tree.css("link, iframe, object, embed, base, img") == []
    for node in tree.css("*"):
        for name in node.attributes:
            assert not name.startswith("on"), (node.tag, name)
            assert name not in ("src", "href", "style"), (node.tag, name)


def test_texts_stand_out_from_what_is_behind_them():
    """Every color of texts on every surface; the page is dark whatever the browser asks for."""
    style = (resources.files("cmb_jax.viewer") / "style.css").read_text("utf-8")
    colors = dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", style))
    said = ("--ink", "--muted", "--microbleed", "--mimic", "--uncertain", "--warn", "--bad")
    pairs = list(itertools.product(said, ("--page", "--panel", "--raised")))
    pairs += [
        ("--on-accent", behind) for behind in ("--accent", "--microbleed", "--mimic", "--uncertain", "--ink")
    ]
    for text, behind in pairs:
        assert ratio(colors[text], colors[behind]) >= 4.5, (text, behind)  # WCAG 2.2 AA
    for behind in ("--page", "--panel", "--raised"):
        assert ratio(colors["--edge"], colors[behind]) >= 3  # of fields, and of what is chosen in a group
    assert "prefers-color-scheme" not in style


def test_niivue_is_the_published_file():
    record = json.loads(VIEWER.joinpath("vendor/niivue.json").read_text())
    content = VIEWER.joinpath("vendor", record["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert len(content) == record["bytes"]
    licenses = VIEWER.joinpath("vendor/LICENSES.txt").read_text()
    assert "BSD 2-Clause" in licenses
    assert f"@niivue/niivue {record['version']}" in licenses


def test_modules_import_only_what_stands_before_them():
    """So that putting them one behind the other is the same program."""
    seen, names = set(), set()
    for module in MODULES:
        text = VIEWER.joinpath(f"js/{module}.js").read_text()
        for wanted, source in re.findall(r"^import \{([^}]*)\} from '\./([a-z]+)\.js';$", text, re.MULTILINE):
            assert source in seen, (module, source)
            other = VIEWER.joinpath(f"js/{source}.js").read_text()
            for name in filter(None, map(str.strip, wanted.split(","))):
                assert re.search(
                    rf"^export (async function|function|const|class) {name}\b", other, re.MULTILINE
                )
        seen.add(module)
        own = re.findall(
            r"^(?:export )?(?:async function|function|const|let|class) ([A-Za-z_]+)", text, re.MULTILINE
        )
        assert not names & set(own), (module, names & set(own))  # one scope in the page
        names |= set(own)
    assert seen == {path.name.removesuffix(".js") for path in VIEWER.joinpath("js").iterdir()}


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "</script><!--<script>", "{{PROGRAM}}", "\u2028'\"&", "]]>-->"]
)
def test_texts_stay_texts(text):
    case = ViewerCase(
        title=text,
        subject="sub-01",
        swi_sha256="0" * 64,
        detections_sha256="1" * 64,
        rows=make_candidates(2, 1),
        regions_trusted=True,
        warnings=[text],
    )
    page = render_viewer(case, None)
    tree = LexborHTMLParser(page)
    assert tree.css_first("title").text() == f"{text}: microbleeds"
    facts = json.loads(tree.css_first("#case").text())
    assert facts["title"] == text
    assert facts["warnings"] == [text]
    assert len(tree.css("script")) == 3  # the facts, NiiVue, ours
    assert embedded_in(page.encode())[1] == facts


def test_images_come_back_out(made):
    files, facts = embedded_in(made.page.read_bytes())
    assert sorted(files) == facts["images"] == ["labels", "phase", "regions", "swi"]
    assert {content[:2] for content in files.values()} == {b"\x1f\x8b"}
    with pytest.raises(ValueError, match="not a page"):
        embedded_in(b"<html>")


def test_zones_are_not_told_where_regions_are_not_trusted():
    case = ViewerCase(
        title="x", subject="sub-01", swi_sha256="0" * 64, detections_sha256="1" * 64,
        rows=make_candidates(2, 0), regions_trusted=False)  # fmt: skip
    facts = embedded_in(render_viewer(case, None).encode())[1]
    assert {row["zone"] for row in facts["candidates"]} == {"none"}
    assert {row["place"] for row in facts["candidates"]} == {"location not reported"}
