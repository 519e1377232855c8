"""MkDocs: files outside of docs/ that pages link to become pages of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what is linked to beside docs/, under `repository/`."""
    linked = set()
    for file in list(files.documentation_pages()):
        if not file.src_uri.endswith(".md"):
            continue
        for target, _ in _LINK.findall(Path(file.abs_src_path).read_text(encoding="utf-8")):
            path = (Path(file.abs_src_path).parent / target).resolve()
            if path.is_file() and not path.is_relative_to(config.docs_dir):
                linked.add(path)
    for path in sorted(linked):
        name = f"repository/{path.relative_to(ROOT).as_posix()}"
        name += "" if path.suffix else ".txt"
        files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to what `on_files` added."""
    here = Path(page.file.abs_src_path or "").parent
    depth = posixpath.dirname(page.file.src_uri).count("/") + bool(posixpath.dirname(page.file.src_uri))

    def moved(match: re.Match[str]) -> str:
        path = (here / match[1]).resolve()
        if not path.is_file() or path.is_relative_to(config.docs_dir):
            return match[0]
        name = f"repository/{path.relative_to(ROOT).as_posix()}" + ("" if path.suffix else ".txt")
        return f"]({'../' * depth}{name}{match[2] or ''})"

    return _LINK.sub(moved, markdown)
