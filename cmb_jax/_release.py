"""The version: of the commit in a checkout, else what was written when the package was built."""

import importlib
import re
import subprocess
from pathlib import Path

TAG = "v[0-9]*"
LAST_RELEASE = "0.2.0"
"""Counted on from where git knows no tag, as in a shallow clone; `fallback_version` in pyproject.toml too."""


def version() -> str:
    """Such as "0.2.0", or "0.2.1.dev3+g1a2b3c4" three commits later; ".dirty" with changes on top."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / ".git").exists() and (described := describe(checkout)):
        return described
    try:
        return str(importlib.import_module("cmb_jax._version").version)
    except ImportError:
        return f"{LAST_RELEASE}+unknown"


def describe(checkout: Path) -> str | None:
    """The version of a git checkout, counted as setuptools-scm does; None where git does not answer."""
    text = _git(checkout, "describe", "--tags", "--long", "--dirty", "--match", TAG)
    if text is None:
        count, commit = _git(checkout, "rev-list", "--count", "HEAD"), _git(checkout, "describe", "--always")
        if count is None or commit is None:
            return None
        dirty = "-dirty" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else ""
        text = f"v{LAST_RELEASE}-{count}-g{commit}{dirty}"
    found = re.fullmatch(r"v(\d+(?:\.\d+)*)\.(\d+)-(\d+)-(g[0-9a-f]+)(-dirty)?", text)
    if found is None:
        return None
    front, last, distance, commit, dirty = found.groups()
    if distance == "0" and not dirty:
        return f"{front}.{last}"
    return f"{front}.{int(last) + 1}.dev{distance}+{commit}{'.dirty' if dirty else ''}"


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
