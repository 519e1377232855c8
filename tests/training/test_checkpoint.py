"""Checkpoints: damaged ones are named and left out, the best is kept, any mesh can take one over."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.training.checkpoint import Checkpoints, fingerprint
from cmb_jax.training.distributed import make_mesh, replicated
from cmb_jax.training.state import TrainState


def state_of(step):
    rng = np.random.default_rng(step)
    params = {"kernel": rng.normal(size=(3, 3, 3, 4, 8)), "bias": rng.normal(size=8)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=jnp.int32(step), params=params, ema=params, opt_state=params, skipped_in_a_row=zero, skipped=zero
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state_of(10), 0.5)
        checkpoints.save(state_of(20), 0.25)
    return folder


def restored_step(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        state = checkpoints.restore_newest_whole(state_of(0), make_mesh())
        assert state is not None
        step = int(state.step)
        assert fingerprint(state) == fingerprint(state_of(step))
        assert checkpoints.latest_step() == step
        return step


def test_reading_changes_nothing(saved, tmp_path):
    """Not even what another program is writing."""
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    (folder / "30.orbax-checkpoint-tmp").mkdir()

    def contents():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = contents()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == (10, 20)
        assert int(checkpoints.restore(state_of(0), make_mesh(), 10).step) == 10
    assert contents() == before


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x5A
    path.write_bytes(content)


# Orbax leaves the reading of the other arrays behind when one fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, flip])
def test_whichever_file_is_damaged_no_wrong_state_comes_back(saved, tmp_path, capsys, damage):
    """Each file of the newest checkpoint in turn; what does not hold the state may be damaged unnoticed."""
    files = sorted(path.relative_to(saved) for path in (saved / "20").rglob("*") if path.is_file())
    skipped = 0
    for number, name in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(saved, folder)
        damage(folder / name)
        step = restored_step(folder)
        said = capsys.readouterr().err
        if step == 20:
            assert "damaged" not in said
            continue
        skipped += 1
        assert step == 10
        assert "checkpoint 20 is damaged" in said
        assert "damaged_checkpoints/20" in said
        assert (folder.parent / "damaged_checkpoints" / "20").is_dir()
        with Checkpoints(folder, keep=2) as checkpoints:  # and its place is free for the same step
            checkpoints.save(state_of(20), None)
        assert restored_step(folder) == 20
    assert skipped >= 2


@pytest.mark.parametrize("part", ["default", "metrics"])
def test_a_folder_without_any_whole_checkpoint_is_refused_and_left_alone(saved, tmp_path, part):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in ("10", "20"):
        for path in (folder / step / part).rglob("*"):
            if path.is_file():
                truncate(path)
    with pytest.raises(UserError, match="no checkpoint can be read"):
        restored_step(folder)
    assert {"10", "20"} <= {path.name for path in folder.iterdir()}


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.restore_newest_whole(state_of(0), make_mesh()) is None


def test_what_a_killed_run_left_half_saved_is_cleared_away(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    half = folder / "30.orbax-checkpoint-tmp"
    shutil.copytree(saved / "20", half)
    assert restored_step(folder) == 20
    assert not half.exists()


@pytest.mark.parametrize("to", [(1, 1), (4, 2)])
def test_eight_devices_hand_over_to_another_mesh(tmp_path, to):
    state = jax.device_put(state_of(7), replicated(make_mesh(1, 8)))
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(state, None)
    mesh = make_mesh(*to)
    with Checkpoints(tmp_path, 1) as checkpoints:
        restored = checkpoints.restore_newest_whole(state_of(0), mesh)
    assert fingerprint(restored) == fingerprint(state_of(7))
    assert all(leaf.sharding.device_set == set(mesh.devices.flat) for leaf in jax.tree.leaves(restored))
