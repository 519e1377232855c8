"""What README and docs show is what their sources say: figures, pictures, links, messages, commands."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

import cmb_jax
from cmb_jax import _release, cli
from cmb_jax.cli import present
from cmb_jax.inference.bundle import BUNDLED
from cmb_jax.inference.options import DEFAULT_WEIGHTS
from cmb_jax.io.atomic import sha256_file
from tests.command_line import run_cli

ROOT = Path(cmb_jax.__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_equal_their_sources(monkeypatch, tmp_path):
    figures = tool("figures")
    assert [str(page) for page in figures.stale()] == []
    # and the check would see a figure that is another
    readme = (ROOT / "README.md").read_text()
    changed = re.sub(r"(figures: headline -->\n.*`small` )0\.", r"\g<1>9.", readme, count=1)
    assert changed != readme
    assert figures.filled(changed) == readme


def test_the_picture_is_of_the_bundled_scan_and_weights():
    shown = json.loads((ROOT / "docs/images/result.json").read_text())
    assert shown == {
        "swi": sha256_file(next((ROOT / "cmb_jax/demo").rglob("*_swi.nii.gz"))),
        "weights": sha256_file(BUNDLED / f"{DEFAULT_WEIGHTS}.safetensors"),
    }, "run make figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}
            assert anchor in slugs, target


def _strings():
    for path in (ROOT / "cmb_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_faq_quotes_what_the_program_says():
    said = "\n".join(_strings())
    faq = (ROOT / "docs/faq.md").read_text().split("## Questions")[0]
    quotes = [
        part for line in re.findall(r"^(\*\*.*)$", faq, re.MULTILINE) for part in line.split("**")[1::2]
    ]
    assert len(quotes) > 20
    for quote in quotes:
        for fragment in re.split(r"\.\.\.|<.*?>", quote):
            words = fragment.strip(" ():;,'[]")
            assert not words or words in said, words


def test_what_is_said_of_a_scan_stands_in_the_faq():
    """Each warning of the folders that read, prepare, compare and score scans."""
    figures = tool("figures")
    faq = (ROOT / "docs/faq.md").read_text()
    no_warnings = ("phase_sign.py", "comparison.py", "bundle.py")  # a reason within one, a footnote, a record
    missing, seen = [], 0
    for folder in ("io", "scan", "inference", "regions", "evaluation", "ops"):
        for path in sorted((ROOT / "cmb_jax" / folder).rglob("*.py")):
            if path.name in figures._SILENT or path.name in no_warnings:
                continue
            for kind, text in figures.said(path):
                if kind == "warning":
                    seen += 1
                    longest = max(text.split("..."), key=len).strip(" ():;,'")
                    missing += [] if longest in faq else [f"{path.name}: {text}"]
    assert missing == []
    assert seen > 30


def test_the_list_of_messages_holds_what_the_program_says(monkeypatch, capsys, tmp_path):
    """Messages as they come, not as they stand in the source."""
    listed = [
        re.compile(".*?".join(map(re.escape, line[5:-3].split("..."))))
        for line in (ROOT / "docs/messages.md").read_text().splitlines()
        if line.startswith("- ``")
    ]
    empty = tmp_path / "empty.nii.gz"
    empty.write_bytes(b"")
    for arguments in (
        ("predct",),
        ("predict", "-i", "nowhere.nii.gz", "-o", tmp_path / "new"),
        ("predict", "-i", empty, "-o", tmp_path / "new"),
        ("weights", "show", "larg"),
        ("demo", "--out", tmp_path),
        ("bids", tmp_path / "none", tmp_path / "out", "participant"),
    ):
        code, _, err = run_cli(monkeypatch, capsys, *arguments)
        assert code == 2
        assert any(pattern.search(err) for pattern in listed), err


def test_commands_in_the_docs_have_the_options_that_they_name():
    known = {name: set(present.option_names(command)) for name, command in cli.all_commands().items()}
    seen = 0
    for page in PAGES:
        for line in re.findall(r"^cmb-jax [^\n]*(?:\\\n[^\n]*)*", page.read_text(), flags=re.MULTILINE):
            words = line.split("#")[0].replace("\\\n", " ").split()[1:]
            name = " ".join(words[:2]) if words[0] in cli.GROUPS else words[0]
            if name not in known:
                assert words[0] in (*cli.OWN_PARSERS, "help", "completion", "COMMAND", "--version"), (
                    page,
                    line,
                )
                continue
            seen += 1
            for word in words:
                if word.startswith("--"):
                    option = word.split("=")[0].replace("_", "-")
                    assert option in known[name] | {"--help"}, (page.name, line)
    assert seen > 20


def test_the_site_fetches_nothing_from_elsewhere():
    """The offline plugin adds a script of another server unless its stand-in is named here."""
    settings = (ROOT / "mkdocs.yml").read_text()
    script = re.search(r"polyfills: \[(.*iframe-worker.*)\]", settings)[1]
    assert (ROOT / "docs" / script).exists()
    assert "font: false" in settings


def test_versions_agree():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert released[0] == (cff["version"], str(cff["date-released"]))
    assert cff["version"] == _release.LAST_RELEASE
    assert f'fallback_version = "{_release.LAST_RELEASE}"' in (ROOT / "pyproject.toml").read_text()


def test_the_outcome_of_the_study_is_read_from_its_table(monkeypatch, tmp_path):
    figures = tool("figures")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "prototype_study.py").write_text(
        (ROOT / "configs" / "prototype_study.py").read_text()
    )
    folder = tmp_path / "docs" / "ablation"
    folder.mkdir(parents=True)
    assert "not finished" in figures.prototype_study()
    columns = "variant,metric,seeds,mean,low,high,ratio,ratio_low,ratio_high,reference"
    rows = (
        "rpn,fp_per_scan_at_matched_sensitivity,3,8,7,9,,,,rpn",
        "rpn,average_precision,3,0.8,0.7,0.9,,,,rpn",
        "rpn,fp_per_scan_at_matched_sensitivity_with_localization,3,5,4,6,,,,rpn",
        "hspl,fp_per_scan_at_matched_sensitivity_with_localization,3,1.5,1,2,0.3,0.2,0.4,rpn",
        "hspl,fp_per_scan_at_matched_sensitivity,3,2,1,3,0.25,0.2,0.4,rpn",
        "hspl,average_precision,3,0.9,0.8,0.95,1.1,1,1.2,rpn",
        "hspl,fp_per_scan_at_matched_sensitivity,3,2,1,3,0.95,0.9,1.1,hard",
    )
    (folder / "prototype_study_hard.csv").write_text("\n".join([columns, *rows]))
    lines = figures.prototype_study().splitlines()
    assert lines[0].startswith("Hard test subjects")
    row = "| `hspl` | 3 | 2.00 [1.00, 3.00] | 1.50 [1.00, 2.00] | 0.90 [0.80, 0.95] |"
    assert lines[4:] == [
        "| `rpn` | 3 | 8.00 [7.00, 9.00] | 5.00 [4.00, 6.00] | 0.80 [0.70, 0.90] | - | - | - |",
        f"{row} `rpn` | 0.25 [0.20, 0.40] | as in the paper |",
        f"{row} `hard` | 0.95 [0.90, 1.10] | absent |",
    ]
