"""Versions from git, against setuptools-scm; requirements and what a wheel would hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cmb_jax
from cmb_jax import _release

ROOT = Path(cmb_jax.__file__).resolve().parents[1]


def git(folder, *arguments):
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(("tag", "commits"), [(None, 1), (None, 3), ("v1.4.2", 0), ("v1.4.2", 2)])
def test_the_version_is_the_one_that_a_build_would_have(tmp_path, tag, commits):
    setuptools_scm = pytest.importorskip("setuptools_scm")
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "start")
    if tag:
        git(tmp_path, "tag", tag)
    for _ in range(commits):
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "more")
    built = setuptools_scm.get_version(str(tmp_path), fallback_version=_release.LAST_RELEASE)
    ours = _release.describe(tmp_path)
    assert ours.split("+")[0] == built.split("+")[0]
    # both name the commit, by more or fewer letters
    commit, theirs = (text.partition("+")[2] for text in (ours, built))
    assert theirs.startswith(commit[:8])


def test_changes_on_top_show(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "start")
    git(tmp_path, "tag", "v1.0.0")
    assert _release.describe(tmp_path) == "1.0.0"
    (tmp_path / "file").write_text("two")
    assert _release.describe(tmp_path).endswith(".dirty")
    assert _release.describe(tmp_path / "nowhere") is None


def test_requirements_to_run_are_without_tools_for_development():
    """As setup.py reads them; the whole list stays in requirements.txt."""
    code = """
import json, setuptools
setuptools.setup = lambda **given: print(json.dumps([given["install_requires"], given["extras_require"]]))
exec(open("setup.py").read())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    to_run, extras = json.loads(done.stdout)
    run = {line.split(">")[0] for line in to_run}
    assert {"jax", "flax", "optax", "orbax-checkpoint", "grain", "chex", "nibabel"} <= run
    assert not {"pytest", "ruff", "mypy", "torch", "pydicom", "simpleitk"} & run
    assert {"dicom", "compare", "all", "cuda12", "tpu", "dev", "docs"} <= set(extras)
    assert any(line.startswith("pytest") for line in extras["dev"])
