"""Training: it learns, it resumes bit for bit, it skips what is not finite, it stops when asked."""

import csv
import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.config import TrainConfig
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.prototype_losses import SupervisedContrastive
from cmb_jax.errors import UserError
from cmb_jax.training.checkpoint import QUALITY, Checkpoints
from cmb_jax.training.detector import init_state, make_step, put_batch, train_detector
from cmb_jax.training.distributed import RunStopped, check_fit, make_mesh
from cmb_jax.training.state import learning_rate
from tests.training.spheres import CONFIG, store_spheres


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return (store_spheres(tmp_path_factory.mktemp("subject")),)


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
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_a_stopped_run_continues_bit_for_bit(subjects, tmp_path):
    """Stopped by an error after a checkpoint, as a crash would."""

    class Stop(Exception):
        pass

    def stop_at_three(params):
        raise Stop

    whole = train_detector(CONFIG, tmp_path / "whole", subjects)
    with pytest.raises(Stop):
        train_detector(with_train(CONFIG, evaluate_every=4), tmp_path / "parts", subjects, stop_at_three)
    continued = train_detector(CONFIG, tmp_path / "parts", subjects)
    assert int(continued.step) == CONFIG.train.steps
    assert equal(whole, continued)


def test_logs_and_checkpoints_are_kept(subjects, tmp_path):
    qualities = iter([0.9, 0.1, 0.2])
    config = with_train(CONFIG, evaluate_every=2, checkpoint_every=2, keep_checkpoints=1)
    train_detector(config, tmp_path, subjects, lambda params: {QUALITY: next(qualities)})
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
    for _ in range(2):  # so that a moment and a rate above 0 would move the parameters without any gradient
        state, metrics = step(state, put_batch(batch, mesh))
    before = jax.tree.map(np.array, state)
    bad = dataclasses.replace(batch, image=np.full_like(batch.image, np.nan))
    state, metrics = step(state, put_batch(bad, mesh))
    assert not bool(metrics.finite)
    assert equal(before.params, state.params)
    assert equal(before.ema, state.ema)
    assert equal(before.opt_state, state.opt_state)
    assert int(state.skipped) == int(state.skipped_in_a_row) == 1
    assert int(state.step) == 3
    state, metrics = step(state, put_batch(batch, mesh))
    assert bool(metrics.finite)
    assert int(state.skipped_in_a_row) == 0
    assert int(state.skipped) == 1
    assert not equal(before.params, state.params)


def test_ten_bad_steps_in_a_row_stop_the_run(subjects, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("boxes", "ignored_boxes", "mimics", "mimic_points", "brain_points"):
        (folder / f"{name}.npy").write_bytes((subjects[0].folder / f"{name}.npy").read_bytes())
    np.save(folder / "image.npy", np.full_like(subjects[0].image(), np.nan))
    with pytest.raises(UserError, match="not finite for 10 steps"):
        train_detector(with_train(CONFIG, steps=30), tmp_path / "run", (StoredSubject(folder=folder),))


CARRYING = dataclasses.replace(
    CONFIG,
    loss=dataclasses.replace(
        CONFIG.loss,
        prototype=SupervisedContrastive(),
        prototype_update="moving_average",
        prototype_decay=0.5,
        memory_bank=48,
    ),
)


def test_what_a_step_carries_on_one_device_and_on_a_mesh(subjects):
    """One step is the same; after two, rounding has chosen among anchors that are nearly equally hard."""
    batches = patch_batches(subjects, CARRYING.data, seed=0)
    two = [next(batches), next(batches)]
    first = []
    for shape in ((1, 1), (4, 2)):
        mesh = make_mesh(*shape)
        step, state = make_step(CARRYING, mesh), init_state(CARRYING, mesh)
        start = np.asarray(state.params["prototypes"])
        for batch in two:
            state, metrics = step(state, put_batch(batch, mesh))
            first.append((float(metrics.terms.total), float(metrics.gradient_norm)))
        _check_what_is_carried(start, state)
    assert first[2] == pytest.approx(first[0], rel=1e-4)


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


def test_a_bank_restores_onto_another_mesh(tmp_path):
    config, mesh = CARRYING, make_mesh(4, 2)
    state = init_state(config, mesh)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(state, None)
    with Checkpoints(tmp_path, 1) as checkpoints:
        restored = checkpoints.restore(init_state(config, make_mesh()), make_mesh(1, 1))
    assert equal(state, restored)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize(
    ("change", "mesh", "message"),
    [
        ({"batch_size": 6}, (4, 1), "a batch of 6 patches cannot be shared by 4 devices"),
        ({"patch_shape": (24, 32, 32)}, (1, 4), "must be a multiple of 16"),
    ],
)
def test_what_a_mesh_cannot_share_evenly_is_refused(change, mesh, message):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **change))
    with pytest.raises(UserError, match=message):
        check_fit(config, make_mesh(*mesh))


def test_all_devices_are_taken_where_none_are_counted():
    assert make_mesh(0, 1).devices.shape == (8, 1)
    assert make_mesh(0, 4).devices.shape == (2, 4)


def test_a_stop_signal_saves_the_step_and_the_run_goes_on_from_it(subjects, tmp_path):
    """The signal comes while validation runs, which is left at once."""
    config = with_train(CONFIG, evaluate_every=2)

    def evaluate(params):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("validation went on")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match="step 2 is saved"):
        train_detector(config, tmp_path / "run", subjects, evaluate)
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path / "run" / "checkpoints", 1) as checkpoints:
        assert checkpoints.latest_step() == 2
    continued = train_detector(CONFIG, tmp_path / "run", subjects)
    assert equal(continued, train_detector(CONFIG, tmp_path / "whole", subjects))


def test_the_schedule_warms_up_and_decays():
    config = TrainConfig(steps=1000, warmup_steps=100, learning_rate=1.0)
    schedule = learning_rate(config)
    values = np.array([float(schedule(jnp.array(step))) for step in (0, 50, 100, 550, 1000)])
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, (1.0 + 0.01) / 2, 0.01], atol=1e-3)
