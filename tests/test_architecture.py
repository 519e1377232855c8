"""Which folder may import which: docs/architecture.md says it, and the imports are held to it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cmb_jax"
FOR_ALL = {"errors", "progress"}


def part_of(module: str) -> str:
    """The folder or module of the package that a dotted name lies in; the configuration's modules are one."""
    name = module.split(".")[1]
    return "config" if name.startswith("config") else name


def imports() -> Iterator[tuple[str, str, Path]]:
    """(importing part, imported part, file) for every import within the package, those in functions too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("")
        own = part_of(f"cmb_jax.{inside.parts[0]}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
                if node.module == "cmb_jax":
                    names = [
                        f"cmb_jax.{alias.name}" for alias in node.names if not alias.name.startswith("_")
                    ]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.startswith("cmb_jax.") and part_of(name) != own:
                    yield own, part_of(name), path


def allowed() -> dict[str, set[str]]:
    """The table of docs/architecture.md: part -> parts that it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|.*\|([^|]*)\|$", text, flags=re.MULTILINE)
    table = {}
    for part, cell in rows:
        named = set(re.findall(r"`([a-z_]+)`", cell))
        everything = {name for name, _ in rows} | {"config", "devices"}
        table[part] = everything - named if cell.strip().startswith("everything but") else named
    return table


def test_imports_are_those_that_the_architecture_allows():
    table = allowed()
    assert len(table) > 20
    wrong = {
        f"{path.relative_to(ROOT)}: {own} imports {other}"
        for own, other, path in imports()
        if own in table and other not in table[own] | FOR_ALL
    }
    assert not wrong


def test_every_folder_is_in_the_table():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(allowed())


def test_imports_run_one_way():
    graph: dict[str, set[str]] = {}
    for own, other, _ in imports():
        if own != "__init__":
            graph.setdefault(own, set()).add(other)
    reached = {part: set(graph.get(part, ())) for part in graph}
    for _ in graph:
        for targets in reached.values():
            targets |= set().union(*(reached.get(target, set()) for target in targets))
    assert not [part for part, targets in reached.items() if part in targets]


@pytest.mark.parametrize("line", ["from cmb_jax.io.volume import Volume", "import cmb_jax.io"])
def test_an_import_is_seen_however_it_is_written(tmp_path, monkeypatch, line):
    folder = tmp_path / "boxes"
    folder.mkdir()
    (folder / "x.py").write_text(f"def f():\n    {line}\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert [(own, other) for own, other, _ in imports()] == [("boxes", "io")]
