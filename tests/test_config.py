"""The configuration tree: JSON there and back, files, overrides, clear refusals."""

import dataclasses
import json
from pathlib import Path

import pytest

from cmb_jax.config import Config, DataConfig, InferenceConfig, ModelConfig, PhantomConfig, TrainConfig
from cmb_jax.config_io import config_from_json, config_to_json, without_paths
from cmb_jax.config_load import config_from_file, override
from cmb_jax.errors import UserError
from cmb_jax.training.run import with_start

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_builds_and_survives_json(path):
    config = config_from_file(path)
    assert config_from_json(config_to_json(config)) == config


def test_json_with_unknown_fields_or_half_a_network_is_refused():
    values = json.loads(config_to_json(Config()))
    values["model"]["colour"] = 1
    with pytest.raises(ValueError, match="colour"):
        config_from_json(json.dumps(values))
    del values["model"]["colour"], values["model"]["widths"]
    with pytest.raises(ValueError, match="widths"):
        config_from_json(json.dumps(values))


def test_settings_newer_than_the_json_take_their_default():
    config = Config(train=TrainConfig(steps=7))
    values = json.loads(config_to_json(config))
    del values["data"]["index"], values["train"]["init_from"]
    assert config_from_json(json.dumps(values)) == config


def test_precision_of_earlier_versions():
    """They had one type for training and inference, and computed in float32 where they did not name it."""
    values = json.loads(config_to_json(Config()))
    del values["train"]["precision"], values["inference"]["precision"]
    without = config_from_json(json.dumps(values))
    assert (without.train.precision, without.inference.precision) == ("float32", "float32")
    values["model"]["compute_dtype"] = "bfloat16"
    named = config_from_json(json.dumps(values))
    assert (named.train.precision, named.inference.precision) == ("bfloat16", "bfloat16")
    assert named.model == ModelConfig()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"train\.precision must be one of float32, mixed, bfloat16"):
        TrainConfig(precision="float16")
    with pytest.raises(ValueError, match=r"inference\.precision .* got 'fp8'"):
        InferenceConfig(precision="fp8")


def test_no_name_of_a_file_goes_out_with_weights():
    config = Config(
        data=DataConfig(index="site/anna.json", split_file="anna.csv", phantom_share=0.5),
        phantom=PhantomConfig(cache_dir="home/anna"),
        train=TrainConfig(init_from="anna.safetensors", steps=7),
    )
    assert "anna" not in config_to_json(without_paths(config))
    assert without_paths(config).train.steps == 7
    assert without_paths(config).data.phantom_share == 0.5


def test_dotted_overrides_keep_types():
    config = override(
        Config(),
        [
            "--train.steps",
            "7",
            "--model.widths",
            "8",
            "12",
            "16",
            "--data.spacing-mm",
            "1",
            "1",
            "1",
            "--model.encoder-convs",
            "0",
            "1",
            "1",
            "--model.decoder-convs",
            "0",
            "1",
        ],
        "train.py",
    )
    assert config.train.steps == 7
    assert config.model.widths == (8, 12, 16)
    assert config.data.spacing_mm == (1.0, 1.0, 1.0)
    assert (
        dataclasses.replace(
            config.model,
            widths=ModelConfig().widths,
            encoder_convs=ModelConfig().encoder_convs,
            decoder_convs=ModelConfig().decoder_convs,
        )
        == ModelConfig()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.phantom-share", "1.5"), "below 1"),
        (("--data.split-fractions", "0.5", "0.1", "0.1"), "sum to 1"),
    ],
)
def test_bad_values_on_the_command_line_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        override(Config(), arguments, "train.py")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_levels_must_agree():
    with pytest.raises(ValueError, match="one entry per level"):
        ModelConfig(widths=(8, 16, 32), encoder_convs=(1, 1))
    with pytest.raises(ValueError, match="at least three"):
        ModelConfig(widths=(8, 16), encoder_convs=(1, 1), decoder_convs=(1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "cannot be used"),
        ("def get_config(:", "cannot be used"),
        ("def get_config(): return 3", "must return"),
    ],
)
def test_bad_config_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        config_from_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such"):
        config_from_file(tmp_path / "missing.py")


@pytest.mark.parametrize("name", ["small", "base"])
def test_fine_tuning_takes_network_and_loss_of_its_start(name):
    config = override(
        config_from_file(ROOT / "configs" / "finetune.py"), ["--train.init-from", name], "train"
    )
    taken, start = with_start(config)
    assert start is not None
    assert (taken.model, taken.loss) == (start.config.model, start.config.loss)
    assert taken.data == config.data
    with pytest.raises(ValueError, match=r"network_of_start needs train\.init_from"):
        dataclasses.replace(config.train, init_from=None)
