"""The recipe of docs/prototype-losses.md, as it stands there, from a folder outside of the package."""

import csv
import re
import sys

import pytest

from cmb_jax.cli import main
from cmb_jax.data.subjects import subjects_in
from cmb_jax.research.ablation import with_one_cache
from cmb_jax.research.runs import grid_from_file
from cmb_jax.training.run_data import phantom_folders


@pytest.fixture
def recipe(pytestconfig, tmp_path, monkeypatch):
    """The files of the recipe; of two grids the first, tiny one, and the last one, of the study."""
    page = (pytestconfig.rootpath / "docs" / "prototype-losses.md").read_text()
    loss, tiny, study = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for name, text in (("own_loss", loss), ("own_grid", tiny), ("own_study", study)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_loss", None)


def test_one_command_and_one_config_give_the_table(recipe, subject_folder, monkeypatch):
    """Shorter, with a small network, and on subjects that lie where the simulated ones are looked for."""
    text = (recipe / "own_grid.py").read_text()
    for a, b in {
        "steps=20": "steps=2",
        "warmup_steps=5": "warmup_steps=1",
        "checkpoint_every=10": "checkpoint_every=1",
        "(16, 48, 48)": "(16, 32, 32)",
        'name="own"': 'name="own", model=TINY_MODEL',
        "from own_loss": "from tests.tiny import TINY_MODEL\nfrom own_loss",
    }.items():
        assert a in text
        text = text.replace(a, b)
    (recipe / "own_grid.py").write_text(text)
    workdir = recipe / "runs"
    config = with_one_cache(grid_from_file(recipe / "own_grid.py"), workdir).variants[0].config
    for which in ("training", "validation", "test"):
        for folder, source in zip(
            phantom_folders(config, workdir, which), subjects_in(subject_folder), strict=False
        ):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(source.folder)
    monkeypatch.chdir(recipe.parent)  # the grid finds its loss wherever the command is started
    command = f"ablate --config {recipe}/own_grid.py --workdir {workdir} --out {recipe}/tables"
    main([*command.split(), "--samples", "5", "--sensitivity", "0.5"])
    with (recipe / "tables" / "table.csv").open(newline="") as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {
            "rpn_ffm",
            "rpn_ffm_hspl",
            "rpn_ffm_hspl-cosine",
        }
    text = (recipe / "tables" / "table.md").read_text()
    assert "sensitivity 0.500" in text
    for title in ("Embeddings before and after training", "Each loss in the gradient"):
        part = text.split(f"## {title}")[1].split("\n## ")[0]
        assert "rpn_ffm_hspl-cosine-seed0" in part
    assert not (workdir / "table.csv").exists()


def test_the_study_takes_another_variant(recipe):
    grid = grid_from_file(recipe / "own_study.py")
    own = grid.variants[-1]
    assert own.name == "rpn_ffm_hspl-cosine"
    assert type(own.config.loss.prototype).__name__ == "CosineMargin"
    assert (grid.matched_sensitivity, grid.reference) == (0.93, "rpn")
