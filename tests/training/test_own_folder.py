"""A training run's folder: for one run at a time, and refused when its records are damaged."""

import pytest

from cmb_jax.config_load import config_to_json
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import locked
from cmb_jax.training import run as train
from tests.training.spheres import CONFIG


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    monkeypatch.setattr(train, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(train, "training_data", lambda *_: pytest.fail("data must not be prepared"))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with locked(tmp_path, "wait"), pytest.raises(UserError, match="another process is at work in it; wait"):
        train.train_run(CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", config_to_json(CONFIG)[:200], "[]", '{"model": 5}'])
def test_a_damaged_configuration_of_the_run_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        UserError, match=r"config\.json: .*; bring it back, or choose a new --workdir"
    ) as caught:
        train.train_run(CONFIG, tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]  # nor is the lock left


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train.train_run(CONFIG, tmp_path / "file" / "run")
