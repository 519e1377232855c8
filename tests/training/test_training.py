"""Training: it learns, it resumes bit for bit, it skips what is not finite, a mesh changes nothing."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.errors import UserError
from cmb_jax.training.checkpoint import QUALITY, Checkpoints
from cmb_jax.training.loop import train
from cmb_jax.training.sharding import make_mesh
from cmb_jax.training.state import init_state, learning_rate
from cmb_jax.training.step import make_step, put_batch

CONFIG = Config(
    name="tiny",
    model=ModelConfig(
        widths=(4, 6, 8),
        encoder_convs=(0, 1, 1),
        decoder_convs=(0, 1),
        fusion_width=4,
        head_width=6,
        embedding_dim=4,
        prototypes_per_class=2,
    ),
    loss=LossConfig(max_positives=16, max_hard_negatives=16),
    data=DataConfig(patch_shape=(16, 32, 32), batch_size=4, max_truths=4),
    train=TrainConfig(
        steps=6, warmup_steps=2, checkpoint_every=3, evaluate_every=100, log_every=2, learning_rate=5e-3
    ),
)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Dark spheres of 3 mm in noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("subject")
    shape = (32, 64, 64)
    image = rng.normal(0, 0.05, (*shape, 2)) + np.array([1.0, 0.0])
    z, y, x = np.meshgrid(*[np.arange(n) + 0.5 for n in shape], indexing="ij")
    boxes = []
    for center in rng.uniform([5, 10, 10], [27, 54, 54], (6, 3)):
        distance = np.sqrt((z - center[0]) ** 2 + ((y - center[1]) / 2) ** 2 + ((x - center[2]) / 2) ** 2)
        image[distance < 1.5] = [0.1, 0.6]
        half = np.array([1.5, 3, 3])
        boxes.append(np.concatenate([center - half, center + half]))
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "boxes.npy", np.array(boxes, np.float32))
    np.save(folder / "mimics.npy", np.zeros((32, 32, 32), np.uint8))
    np.save(folder / "mimic_points.npy", np.zeros((0, 3), np.int32))
    np.save(folder / "brain_points.npy", rng.integers(4, 28, (50, 3)).astype(np.int32))
    return (StoredSubject(folder=folder),)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_the_loss_falls(subjects):
    config = with_train(CONFIG, steps=60)
    mesh = make_mesh()
    step, state = make_step(config, mesh), init_state(config, mesh)
    losses = []
    batches = patch_batches(subjects, config.data, seed=0)
    for _ in range(40):
        batch = next(batches)
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(metrics.terms.total))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_stopped_run_continues_bit_for_bit(subjects, tmp_path):
    """Stopped by an error after a checkpoint, as a crash would."""

    class Stop(Exception):
        pass

    def stop_at_three(params):
        raise Stop

    whole = train(CONFIG, tmp_path / "whole", subjects)
    with pytest.raises(Stop):
        train(with_train(CONFIG, evaluate_every=4), tmp_path / "parts", subjects, stop_at_three)
    continued = train(CONFIG, tmp_path / "parts", subjects)
    assert int(continued.step) == CONFIG.train.steps
    assert equal(whole, continued)


def test_logs_and_checkpoints_are_kept(subjects, tmp_path):
    qualities = iter([0.9, 0.1, 0.2])
    config = with_train(CONFIG, evaluate_every=2, checkpoint_every=2, keep_checkpoints=1)
    train(config, tmp_path, subjects, lambda params: {QUALITY: next(qualities)})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == [2, 4, 6]
    assert [row[f"validation/{QUALITY}"] for row in rows if row[f"validation/{QUALITY}"]] == [
        "0.9",
        "0.1",
        "0.2",
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert checkpoints.best_step() == 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "6"}


def test_a_step_that_is_not_finite_changes_only_the_counters(subjects):
    mesh = make_mesh()
    step, state = make_step(CONFIG, mesh), init_state(CONFIG, mesh)
    batch = next(patch_batches(subjects, CONFIG.data, seed=0))
    before = jax.tree.map(np.asarray, state)
    bad = dataclasses.replace(batch, image=np.full_like(batch.image, np.nan))
    state, metrics = step(state, put_batch(bad, mesh))
    assert not bool(metrics.finite)
    assert equal(before.params, state.params)
    assert equal(before.opt_state, state.opt_state)
    assert int(state.skipped) == int(state.skipped_in_a_row) == int(state.step) == 1
    for _ in range(2):  # the warm-up begins at a rate of 0
        state, metrics = step(state, put_batch(batch, mesh))
    assert bool(metrics.finite)
    assert int(state.skipped_in_a_row) == 0
    assert int(state.skipped) == 1
    assert not equal(before.params, state.params)


def test_ten_bad_steps_in_a_row_stop_the_run(subjects, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("boxes", "mimics", "mimic_points", "brain_points"):
        (folder / f"{name}.npy").write_bytes((subjects[0].folder / f"{name}.npy").read_bytes())
    np.save(folder / "image.npy", np.full_like(subjects[0].image(), np.nan))
    with pytest.raises(UserError, match="not finite for 10 steps"):
        train(with_train(CONFIG, steps=30), tmp_path / "run", (StoredSubject(folder=folder),))


CARRYING = dataclasses.replace(
    CONFIG,
    loss=dataclasses.replace(
        CONFIG.loss,
        prototype_loss="supcon",
        prototype_update="moving_average",
        prototype_decay=0.5,
        memory_bank=48,
    ),
)


@pytest.mark.parametrize(("config", "data", "space"), [(CONFIG, 4, 2), (CARRYING, 1, 8)])
def test_a_mesh_gives_the_same_step(subjects, config, data, space):
    batches = patch_batches(subjects, config.data, seed=0)
    two = [next(batches), next(batches)]
    results = []
    for shape in ((1, 1), (data, space)):
        mesh = make_mesh(*shape)
        step, state = make_step(config, mesh), init_state(config, mesh)
        start = np.asarray(state.params["prototypes"])
        for batch in two:
            state, metrics = step(state, put_batch(batch, mesh))
        if config is CARRYING:
            _check_what_is_carried(start, state)
        results.append(
            (
                jax.tree.map(np.asarray, (state.params, state.bank)),
                float(metrics.terms.total),
                float(metrics.gradient_norm),
            )
        )
    (params, loss, norm), (mesh_params, mesh_loss, mesh_norm) = results
    assert mesh_loss == pytest.approx(loss, rel=1e-5)
    assert mesh_norm == pytest.approx(norm, rel=1e-4)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(mesh_params), strict=True):
        # Adam divides by the gradient's size, so that rounding of tiny gradients shows in the parameters
        np.testing.assert_allclose(a, b, atol=2e-4)


def _check_what_is_carried(start, state):
    """The prototypes followed the samples of two steps, far beyond what a rate of learning would do."""
    moved = np.abs(np.asarray(state.params["prototypes"]) - start).max(axis=-1)
    assert (moved > 0.05).any()
    bank = state.bank.samples
    assert int(bank.valid.sum()) > 16
    assert set(np.asarray(bank.classes)[np.asarray(bank.valid)]) == {0, 1}
    assert float(jnp.abs(bank.embeddings[bank.valid]).min(axis=-1).max()) > 0


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="needs 999 devices"):
        make_mesh(999, 1)


@pytest.mark.parametrize("config", [CONFIG, CARRYING])
def test_checkpoint_restores_onto_another_mesh(config, tmp_path):
    mesh = make_mesh(4, 2)
    state = init_state(config, mesh)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(state, None)
    with Checkpoints(tmp_path, 1) as checkpoints:
        restored = checkpoints.restore(init_state(config, make_mesh()), make_mesh(1, 1))
    assert equal(state, restored)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(restored))


def test_the_schedule_warms_up_and_decays():
    config = TrainConfig(steps=1000, warmup_steps=100, learning_rate=1.0)
    schedule = learning_rate(config)
    values = np.array([float(schedule(jnp.array(step))) for step in (0, 50, 100, 550, 1000)])
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, (1.0 + 0.01) / 2, 0.01], atol=1e-3)
