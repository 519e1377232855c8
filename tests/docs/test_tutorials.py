"""Tutorials: their cells run (the long ones with -m slow), and what they show is from a run."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
QUICK = {"jax-and-pytorch"}


def cells(path):
    notebook = json.loads(path.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shown_outputs_are_of_a_whole_run(path):
    counts = [cell["execution_count"] for cell in cells(path)]
    if set(counts) == {None}:
        pytest.skip(f"not run yet: python tools/run_tutorials.py {path.stem}")
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    for cell in cells(path):
        ast.parse("".join(cell["source"]))
    # nothing of the machine that ran it
    assert str(Path.home()) not in path.read_text()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_the_tutorial_runs(path, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    spec = importlib.util.spec_from_file_location("run_tutorials", ROOT / "tools/run_tutorials.py")
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    tools.executed(path, tmp_path)
