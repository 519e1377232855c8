"""Kept checkpoints of a run that is trained for a moment: its length, and the losses in its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.config import PhantomConfig
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import subjects_in
from cmb_jax.detector.prototype_losses import DistanceCrossEntropy
from cmb_jax.evaluation.statistics import froc_metrics
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.research import course
from cmb_jax.research.ablation import training_set, with_one_cache
from cmb_jax.research.findings import detections_of, subject_set
from cmb_jax.research.runs import complete, runs_of
from cmb_jax.training.detector import init_state, loss_function, put_batch, template_of
from cmb_jax.training.distributed import make_mesh
from cmb_jax.training.run_data import phantom_folders
from tests.research.conftest import BASE


def placed(config, workdir, subject_folder):
    """Let prepared subjects lie where simulated ones of the configuration are looked for."""
    for which in ("training", "validation", "test"):
        for folder, source in zip(
            phantom_folders(config, workdir, which), subjects_in(subject_folder), strict=True
        ):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(source.folder)


@pytest.fixture(scope="module")
def trained(grid, subject_folder, tmp_path_factory):
    """One run of two steps with its checkpoints, and its subjects."""
    workdir = tmp_path_factory.mktemp("trained")
    phantom = PhantomConfig(train_subjects=3, validation_subjects=3, test_subjects=3)
    loss = dataclasses.replace(BASE.loss, prototype=DistanceCrossEntropy(), sampled_negatives=16)
    variants = tuple(
        dataclasses.replace(each, config=dataclasses.replace(each.config, phantom=phantom, loss=loss))
        for each in grid.variants
    )
    small = with_one_cache(dataclasses.replace(grid, variants=variants), workdir)
    placed(small.variants[0].config, workdir, subject_folder)
    run = runs_of(small, workdir)[1]
    complete((run,), print, training=True)
    return run, subject_set("validation", subjects_in(subject_folder), BASE.data.spacing_mm)


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
    subjects = training_set(run)
    found = course.gradient_course(run, subjects, print)
    assert found["norms"].shape == (2, 3)
    np.testing.assert_allclose(found["cosines"][:, 0], 1.0)
    monkeypatch.setattr(course, "term_gradients", lambda *_: pytest.fail("made again"))
    again = course.gradient_course(run, subjects, print)
    table = course.gradient_table({run.name: (run.config, again)})
    assert [row[:2] for row in table.rows] == [(run.name, 1), (run.name, 2)]
    shares = [int(cell.split("(")[1].split("%")[0]) for cell in table.rows[0][2:5]]
    assert abs(sum(shares) - 100) <= 2


def test_without_its_training_subjects_a_run_has_no_set(grid, finished_study):
    assert training_set(runs_of(grid, finished_study)[0]) is None
