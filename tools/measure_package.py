"""How large the package is and how it is cut: python tools/measure_package.py [FOLDER].

Prints one line of a Markdown table: files, lines, median file, shares of imports, docstrings and whole-line
comments, lines of code, folders that can reach themselves through imports. Tests are not counted.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path


def lines_of(nodes: list[ast.stmt]) -> int:
    """Lines that statements take."""
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes)


def docstrings(tree: ast.Module) -> list[ast.stmt]:
    """The statements that are docstrings, of fields too."""
    return [
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def imported(tree: ast.Module, package: str) -> set[str]:
    """Folders and modules of the package that a file imports."""
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}


def main() -> None:
    """Measure and print."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "cmb_jax")
    sizes, imports, docs, comments, blank = [], 0, 0, 0, 0
    graph: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree, count = ast.parse(text), len(text.splitlines())
        sizes.append(count)
        blank += sum(not line.strip() for line in text.splitlines())
        imports += lines_of([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)])
        docs += lines_of(docstrings(tree))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(t.type == tokenize.COMMENT and t.line.strip().startswith("#") for t in tokens)
        own = path.relative_to(root).with_suffix("").parts[0]
        graph.setdefault(own, set()).update(imported(tree, root.name) - {own})
    for _ in graph:
        for targets in graph.values():
            targets |= set().union(*(graph.get(target, set()) for target in targets))
    circles = sum(part in targets for part, targets in graph.items())
    total = sum(sizes)
    code = total - blank - imports - docs - comments
    print("| files | lines | median file | imports | docstrings | comments | code lines | in circles |")
    print("|---|---|---|---|---|---|---|---|")
    shares = " | ".join(f"{100 * part / total:.1f} %" for part in (imports, docs, comments))
    print(f"| {len(sizes)} | {total} | {statistics.median(sizes):.0f} | {shares} | {code} | {circles} |")


if __name__ == "__main__":
    main()
