"""Fill the generated parts of README and docs from their sources; `make figures` runs it.

    python tools/figures.py [--check]

A part stands between `<!-- figures: NAME -->` and `<!-- /figures -->`. Sources are the model cards
(tools/model_card.py), the records beside the weights, CITATION.cff, the command line itself, the record of a
detection and the texts in the package's source. A test runs the check, so that what is shown is what the
sources say.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from cmb_jax import cli
from cmb_jax.cli import present
from cmb_jax.core.detection import columns_table, reasons_list
from cmb_jax.evaluation.breakdown import ALONE, WITH_PHASE
from cmb_jax.evaluation.subsets import COUNTED, LEFT_OUT, READERS_SIZE
from cmb_jax.inference.options import DEFAULT_WEIGHTS
from cmb_jax.research.runs import Verdict, grid_from_file
from cmb_jax.research.scores import AVERAGE_PRECISION, FP_MATCHED, LOCALIZED

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "cmb_jax" / "weights"
_PART = re.compile(r"(<!-- figures: (\w+) -->\n).*?(\n?<!-- /figures -->)", re.DOTALL)
_ROWS = ("sensitivity", "false positives per scan", "average precision")


def pages() -> list[Path]:
    """Pages that may hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _names() -> list[str]:
    return sorted(
        (path.stem for path in WEIGHTS.glob("*.safetensors") if path.stem != "region"), reverse=True
    )


def card_results(name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Test sets and rows of the table "Results" of a model card."""
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    table = re.search(r"^## Results\n\n(.*?)\n\n", card, re.MULTILINE | re.DOTALL)
    if table is None:
        raise SystemExit(f"{name}.md: no table under Results; write it with tools/model_card.py")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    return cells[0][1:], {row[0]: row[1:] for row in cells[2:]}


def card_parts(name: str) -> list[dict[str, str]]:
    """Rows of the table "By phase and size" of a model card, by column."""
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    table = re.search(r"^### By phase and size\n\n(.*?)\n\n", card, re.MULTILINE | re.DOTALL)
    if table is None:
        raise SystemExit(f"{name}.md: no table by phase and size; write it with tools/model_card.py")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def headline() -> str:
    """What the detectors find on the last data set of the model cards, with and without a phase."""
    data = card_results(DEFAULT_WEIGHTS)[0][-1]
    scans = card_results(DEFAULT_WEIGHTS)[1]["scans"][-1]

    def found(name: str, scans: str, calcifications: str) -> str:
        part = next(
            row
            for row in card_parts(name)
            if row["data"] == data
            and (row["scans"], row["size"], row["calcifications"]) == (scans, READERS_SIZE, calcifications)
        )
        return part["sensitivity at 0.5"]

    others = "; ".join(
        f"`{name}` {found(name, WITH_PHASE, COUNTED)}"
        for name in (each for each in _names() if each != DEFAULT_WEIGHTS)
    )
    return (
        f"Measured on {scans} simulated scans that nothing was trained on ({data}), at 0.5 false positives "
        f"per scan: with a phase the detector finds {found(DEFAULT_WEIGHTS, WITH_PHASE, COUNTED)} of the "
        f"microbleeds of {READERS_SIZE} ({others}). From the magnitude alone it finds "
        f"{found(DEFAULT_WEIGHTS, ALONE, COUNTED)}, because calcifications look the same there; "
        f"{found(DEFAULT_WEIGHTS, ALONE, LEFT_OUT)} if they are not counted as false positives."
    )


def zoo() -> str:
    """A table of the bundled weights."""
    lines = ["| weights | test set | " + " | ".join(_ROWS) + " |", "| --- | --- |" + " --- |" * len(_ROWS)]
    about = []
    for name in _names():
        record = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        size = (WEIGHTS / f"{name}.safetensors").stat().st_size / 1e6
        sets, rows = card_results(name)
        for n, one in enumerate(sets):
            cells = [f"`{name}`" if n == 0 else "", one, *(rows[row][n] for row in _ROWS)]
            lines.append("| " + " | ".join(cells) + " |")
        about.append(
            f"- `{name}`: {size:.1f} MB, sha256 `{record['sha256'][:12]}`, {record['date']}; trained on "
            f"{record['training_data']}"
        )
    return "\n".join([*lines, "", *about])


def bibtex() -> str:
    """The entry that CITATION.cff stands for."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    author = " and ".join("{" + one["name"] + "}" for one in cff["authors"])
    return "\n".join(
        [
            "```bibtex",
            "@software{cmb_jax,",
            f"  author  = {{{author}}},",
            f"  title   = {{{cff['title']}}},",
            f"  version = {{{cff['version']}}},",
            f"  year    = {{{str(cff['date-released'])[:4]}}},",
            f"  license = {{{cff['license']}}},",
            "}",
            "```",
        ]
    )


def commands() -> str:
    """What `cmb-jax help` prints."""
    return f"```text\n{cli.overview()}\n```"


def options() -> str:
    """`--help` of every command."""
    os.environ["COLUMNS"] = "92"  # docs/stylesheets/extra.css
    parts = []
    for name, command in cli.all_commands().items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            present.run(command, f"cmb-jax {name}", ["--help"])
        colorless = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
        plain = "\n".join(line.rstrip() for line in colorless.strip().splitlines())
        parts.append(f"## {name}\n\n```text\n{plain}\n```")
    return "\n\n".join(parts)


_ERRORS = {"UserError", "NotAnalysableError", "Unreadable", "OpenSignError"}
_SAID = {"warnings", "warning", "notes", "note", "reasons", "reason", "messages", "problems", "what", "why"}
_SAID |= {"lines", "line", "said", "told", "doubts", "text"}  # variables and arguments that hold a message
_SAYING = re.compile(r"doubt|warning|message|note|reason|problem|unread|why")  # functions that return one
_SILENT = {
    "core",
    "report",
    "research",
    "present.py",
    "self_test.py",
    "calls.py",
}
_WORDS = 4


def _literal(node: ast.AST) -> str | None:
    """A text of the source, with dots for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("%s", "...")
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
        return re.sub(r"(\.\.\.)+", "...", "".join(map(str, parts)))
    return None


def _kind(node: ast.AST, kind: str | None) -> str | None:
    """Whether what stands inside of a node is an "error" or a "warning"; `kind`: of the node around."""
    name = ""
    if isinstance(node, ast.Raise):
        return "error" if isinstance(node.exc, ast.Call) else kind
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in _ERRORS:
            return "error"
        if name in ("ValueError", "isinstance", "join") or name.endswith("Error"):
            return None  # of programmers
        if name in ("append", "insert", "extend"):
            name = getattr(getattr(node.func, "value", None), "id", "")
        elif name in ("Problem", "Judgement", "skip", "note", "tell", "warn", "warning"):
            return "warning"
        elif name == "print":
            return "warning" if any(each.arg == "file" for each in node.keywords) else None
        else:
            return kind
    elif isinstance(node, ast.keyword):
        name = node.arg or ""
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        name = next((target.id for target in targets if isinstance(target, ast.Name)), "")
    elif isinstance(node, ast.Yield):
        return "warning"
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        return None
    return "warning" if name in _SAID else kind


def said(path: Path) -> list[tuple[str, str]]:
    """What a module may say to people: ("error" or "warning", text) in order, dots for what is filled in."""
    found: dict[tuple[str, str], None] = {}

    def look(node: ast.AST, kind: str | None, returned: str | None) -> None:
        text = _literal(node)
        if text is not None:
            kind = "warning" if text.startswith(("note: ", "warning: ")) else kind
            if kind and len(text.replace("...", " ").split()) >= _WORDS:
                found[kind, " ".join(text.split())] = None
            return
        kind = _kind(node, kind)
        if isinstance(node, ast.FunctionDef):
            returned = "warning" if _SAYING.search(node.name) else None
        elif isinstance(node, ast.Return):
            kind = returned
        body = list(ast.iter_child_nodes(node))
        documented = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        for child in body:
            if not (documented and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                look(child, kind, returned)

    look(ast.parse(path.read_text(encoding="utf-8")), None, None)
    return list(found)


def messages() -> str:
    """Every error and warning that the package can give, by folder."""
    package, parts = ROOT / "cmb_jax", []
    for folder in (package, *sorted(path.parent for path in package.glob("*/__init__.py"))):
        modules = sorted(folder.glob("*.py") if folder == package else folder.rglob("*.py"))
        texts = [each for path in modules if not {path.name, folder.name} & _SILENT for each in said(path)]
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines = [f"## {folder.name}", "", about.splitlines()[0]]
        for kind in ("error", "warning"):
            mine = sorted({text for one, text in texts if one == kind}, key=str.lower)
            if mine:
                lines += ["", f"{kind.capitalize()}s:", "", *(f"- `` {text} ``" for text in mine)]
        if texts:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


_STUDY = (("prototype_study", "Easy test subjects"), ("prototype_study_hard", "Hard test subjects"))


def prototype_study() -> str:
    """Outcome of the study of prototypes, from the tables that `cmb-jax ablate` wrote for it."""
    rule = grid_from_file(ROOT / "configs" / "prototype_study.py").verdict
    assert rule is not None
    parts = []
    for name, title in _STUDY:
        path = ROOT / "docs" / "ablation" / f"{name}.csv"
        if path.exists():
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            parts.append(f"{title} ([all figures](ablation/{path.name})):\n\n{_study_table(rows, rule)}")
    if not parts:
        return "The study is not finished: there are no figures yet."
    return "\n\n".join(parts)


def _study_table(rows: list[dict[str, str]], rule: Verdict) -> str:
    """False positives and ratio of each variant, further pairs last."""

    def estimate(row: dict[str, str], value: str, low: str, high: str) -> str:
        numbers = [row[name] for name in (value, low, high)]
        return "{:.2f} [{:.2f}, {:.2f}]".format(*map(float, numbers)) if all(numbers) else "-"

    precision, localized = (
        {row["variant"]: row for row in rows if row["metric"] == metric}
        for metric in (AVERAGE_PRECISION, FP_MATCHED + LOCALIZED)
    )
    lines = [
        "| variant | seeds | FP per scan | with localization | average precision | over | ratio of FP "
        "| reduction |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    compared = [row for row in rows if row["metric"] == FP_MATCHED]
    compared.sort(key=lambda row: row["reference"] != rows[0]["reference"])
    for row in compared:
        whole = row["ratio_low"] and row["ratio_high"]
        cells = (
            f"`{row['variant']}`",
            row["seeds"],
            estimate(row, "mean", "low", "high"),
            estimate(localized[row["variant"]], "mean", "low", "high"),
            estimate(precision[row["variant"]], "mean", "low", "high"),
            f"`{row['reference']}`" if row["ratio"] else "-",
            estimate(row, "ratio", "ratio_low", "ratio_high"),
            rule.of(float(row["ratio_low"]), float(row["ratio_high"])) if whole else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "prototype_study": prototype_study,
    "headline": headline,
    "zoo": zoo,
    "bibtex": bibtex,
    "commands": commands,
    "options": options,
    "messages": messages,
    "columns": columns_table,
    "reasons": reasons_list,
}


def filled(text: str) -> str:
    """A page with its parts made anew."""

    def part(match: re.Match[str]) -> str:
        return match[1] + PARTS[match[2]]() + "\n<!-- /figures -->"

    return _PART.sub(part, text)


def stale() -> list[Path]:
    """Pages whose parts differ from their sources."""
    return [page for page in pages() if filled(text := page.read_text(encoding="utf-8")) != text]


def main() -> None:
    """Fill the pages, or with --check name those that are stale."""
    found = stale()
    for page in found:
        if "--check" in sys.argv[1:]:
            print(f"{page.relative_to(ROOT)}: stale; run make figures")
        else:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    if found and "--check" in sys.argv[1:]:
        sys.exit(1)


if __name__ == "__main__":
    main()
