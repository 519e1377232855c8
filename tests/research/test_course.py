"""The recipe of docs/prototype-losses.md as it stands there, and what kept checkpoints say of its runs.

Their length, and the losses in the gradient.
"""

import csv
import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.cli import main
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import subjects_in
from cmb_jax.evaluation.statistics import froc_metrics
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.research import course
from cmb_jax.research.ablation import training_set, with_one_cache
from cmb_jax.research.findings import detections_of, subject_set
from cmb_jax.research.runs import grid_from_file, runs_of
from cmb_jax.training.detector import init_state, loss_function, put_batch, template_of
from cmb_jax.training.distributed import make_mesh
from cmb_jax.training.run_data import phantom_folders


@pytest.fixture(scope="module")
def recipe(pytestconfig, tmp_path_factory):
    """The files of the recipe; of two grids the first, tiny one, and the last one, of the study."""
    page = (pytestconfig.rootpath / "docs" / "prototype-losses.md").read_text()
    loss, tiny, study = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path_factory.mktemp("recipe")
    for name, text in (("own_loss", loss), ("own_grid", tiny), ("own_study", study)):
        (folder / f"{name}.py").write_text(text)
    path = [*sys.path]
    yield folder
    sys.modules.pop("own_loss", None)
    sys.path[:] = path


@pytest.fixture(scope="module")
def tables(recipe, subject_folder):
    """Of the recipe's command, shorter: two variants of a small network, two steps.

    Its subjects lie where the simulated ones are looked for.
    """
    text = (recipe / "own_grid.py").read_text()
    for a, b in {
        "steps=20": "steps=2",
        "warmup_steps=5": "warmup_steps=1",
        "checkpoint_every=10": "checkpoint_every=1",
        "(16, 48, 48)": "(16, 32, 32)",
        "(fusion, full, own)": "(fusion, own)",
        'name="own"': 'name="own", model=BASE.model, inference=BASE.inference',
        "from own_loss": "from tests.research.conftest import BASE\nfrom own_loss",
    }.items():
        assert a in text
        text = text.replace(a, b)
    (recipe / "own_grid.py").write_text(text)
    workdir, out = recipe / "runs", recipe / "tables"
    config = with_one_cache(grid_from_file(recipe / "own_grid.py"), workdir).variants[0].config
    for which in ("training", "validation", "test"):
        folders = phantom_folders(config, workdir, which)
        for folder, source in zip(folders, subjects_in(subject_folder), strict=False):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(source.folder)
    command = f"ablate --config {recipe}/own_grid.py --workdir {workdir} --out {out}"
    main([*command.split(), "--samples", "5", "--sensitivity", "0.5"])
    return out


@pytest.fixture(scope="module")
def trained(recipe, tables, subject_folder):
    """The run with the own loss, and subjects for validation."""
    grid = with_one_cache(grid_from_file(recipe / "own_grid.py"), recipe / "runs")
    run = runs_of(grid, recipe / "runs")[-1]
    return run, subject_set("validation", subjects_in(subject_folder), run.config.data.spacing_mm)


def test_one_command_and_one_config_give_the_table(recipe, tables):
    with (tables / "table.csv").open(newline="") as file:
        names = {row["variant"] for row in csv.DictReader(file)}
    assert names == {"rpn_ffm", "rpn_ffm_hspl-cosine"}
    text = (tables / "table.md").read_text()
    assert "sensitivity 0.500" in text
    for title in ("Embeddings before and after training", "Each loss in the gradient"):
        part = text.split(f"## {title}")[1].split("\n## ")[0]
        assert "rpn_ffm_hspl-cosine-seed0" in part
    assert "What the prototypes see" in (tables / "ablation.html").read_text()
    assert not (recipe / "runs" / "table.csv").exists()


def test_the_study_takes_another_variant(recipe):
    grid = grid_from_file(recipe / "own_study.py")
    own = grid.variants[-1]
    assert own.name == "rpn_ffm_hspl-cosine"
    assert type(own.config.loss.prototype).__name__ == "CosineMargin"
    assert (grid.matched_sensitivity, grid.reference) == (0.93, "rpn")


def test_the_kept_checkpoints_lead_to_the_weights(trained):
    run, _ = trained
    assert course.kept_steps(run) == (1, 2)
    end, weights = course.state_at(run, 2).ema, load_bundle(run.weights).params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(end), weights)
    before = jax.tree.leaves(course.state_at(run, 1).ema)
    assert any(not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(weights), strict=True))


def test_the_rise_is_that_of_average_precision(trained, monkeypatch):
    run, validation = trained
    (rise,) = course.rises_of((run,), validation, print)[run.variant.name]
    assert rise.steps == (1, 2)
    found = detections_of(run.weights, validation, print)
    events = course.froc_events(course.CENTER3, found.scans, validation.truths)
    assert rise.precision[1] == pytest.approx(froc_metrics(events, np.ones((1, 3), int))[0, -1])
    assert (run.folder / f"detections-validation-{validation.sha256[:12]}-step1.npz").exists()
    monkeypatch.setattr(course, "state_at", lambda *_: pytest.fail("restored again"))
    assert course.rises_of((run,), validation, print)[run.variant.name] == [rise]


def test_the_rule_of_length_is_on_the_mean_over_seeds():
    rises = {
        "a": [course.Rise(steps=(4000, 5000), precision=(0.5, 0.5 + up)) for up in (0.0, 0.012)],
        "b": [course.Rise(steps=(3000, 5000), precision=(0.5, 0.509))],
    }
    rows = course.length_table(rises, 0.005).rows
    assert rows[0] == ("a", 2, "4000 → 5000", "0.500 → 0.506", "+0.0060", "go on")
    assert rows[1][-2:] == ("+0.0045", "long enough")


def test_gradients_of_the_terms_are_those_of_losses_with_one_term(trained):
    """Each against the gradient of a total loss in which the other terms have weight 0."""
    run, _ = trained
    # products of a shorter type are rounded, so that their gradients do not add up
    config = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, precision="float32"))
    mesh = make_mesh()
    subjects = training_set(run).subjects
    stream = patch_batches(subjects, config.data, seed=3)
    batch = put_batch(next(stream), mesh)
    state = init_state(config, mesh)
    found = course.term_gradients(config, [batch])(state)
    key = jax.random.split(jax.random.key(course.GRADIENT_SEED), 1)[0]

    @jax.jit
    def gradient(box_weight, concentration_weight):
        loss = dataclasses.replace(
            config.loss, box_weight=box_weight, concentration_weight=concentration_weight
        )
        one, template = dataclasses.replace(config, loss=loss), template_of(config)
        whole = jax.grad(loss_function, has_aux=True)(state.params, batch, template, one, key=key)[0]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(whole["unet"])])

    objectness = gradient(0.0, 0.0)
    boxed = gradient(config.loss.box_weight, 0.0) - objectness
    prototypes = gradient(0.0, config.loss.concentration_weight) - objectness
    scale = np.abs(found).max()
    np.testing.assert_allclose(found, [objectness, boxed, prototypes], atol=2e-5 * scale)
    assert (np.abs(found).max(axis=1) > 1e-4 * scale).all()


def test_the_course_of_the_gradient_is_tabled_and_kept(trained, monkeypatch):
    run, _ = trained
    monkeypatch.setattr(course, "term_gradients", lambda *_: pytest.fail("made again"))
    found = course.gradient_course(run, training_set(run), print)
    assert found["norms"].shape == (2, 3)
    np.testing.assert_allclose(found["cosines"][:, 0], 1.0)
    table = course.gradient_table({run.name: (run.config, found)})
    assert [row[:2] for row in table.rows] == [(run.name, 1), (run.name, 2)]
    shares = [int(cell.split("(")[1].split("%")[0]) for cell in table.rows[0][2:5]]
    assert abs(sum(shares) - 100) <= 2


def test_without_its_training_subjects_a_run_has_no_set(grid, finished_study):
    assert training_set(runs_of(grid, finished_study)[0]) is None
