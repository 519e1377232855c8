"""The configuration tree: JSON there and back, files, overrides, clear refusals."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from cmb_jax.cli.settings import override
from cmb_jax.config import (
    Config,
    DataConfig,
    InferenceConfig,
    LossConfig,
    ModelConfig,
    PhantomConfig,
    TrainConfig,
)
from cmb_jax.config_load import config_from_file, config_from_json, config_to_json, without_paths
from cmb_jax.detector.prototype_losses import (
    Center,
    Concentration,
    NearestPrototype,
    ProxyAnchor,
    SupervisedContrastive,
)
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.training.run import with_start

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_builds_and_survives_json(path):
    config = config_from_file(path)
    assert config_from_json(config_to_json(config)) == config


def test_json_with_unknown_fields_or_half_a_network_is_refused():
    values = json.loads(config_to_json(Config()))
    values["model"]["color"] = 1
    with pytest.raises(ValueError, match="color"):
        config_from_json(json.dumps(values))
    del values["model"]["color"], values["model"]["widths"]
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


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        ({"prototype_loss": "none"}, None),
        ({"prototype_loss": "gcpl", "prototype_gamma": 0.5}, NearestPrototype(gamma=0.5)),
        (
            {"prototype_loss": "supcon", "supcon_temperature": 0.2, "proxy_scale": 7.0},
            SupervisedContrastive(0.2),
        ),
        ({"prototype_loss": "proxy_anchor", "proxy_scale": 7.0, "proxy_margin": 0.3}, ProxyAnchor(7.0, 0.3)),
        ({}, Concentration()),
    ],
)
def test_prototype_losses_of_earlier_versions(loss, want):
    values = json.loads(config_to_json(Config()))
    del values["loss"]["prototype"]
    read = config_from_json(json.dumps(values | {"loss": values["loss"] | loss}))
    assert read.loss == LossConfig(prototype=want)


@pytest.mark.parametrize("name", ["small", "base"])
def test_bundled_weights_were_trained_with_the_concentration_loss(name):
    assert load_bundle(name).config.loss.prototype == Concentration(gamma=1.0, pull=0.05)


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("none", None),
        ("center", Center()),
        ("proxy_anchor scale=16", ProxyAnchor(scale=16.0)),
        ("supcon temperature=0.5", SupervisedContrastive(temperature=0.5)),
    ],
)
def test_a_prototype_loss_on_the_command_line(words, want):
    arguments = ["--loss.prototype", *words.split(), "--train.steps", "7"]
    config = override(Config(), arguments, "train")
    assert (config.loss.prototype, config.train.steps) == (want, 7)
    assert config_from_json(config_to_json(config)) == config


OWN = """
import dataclasses


@dataclasses.dataclass(frozen=True)
class Constant:
    value: float = 1.0

    def __call__(self, embeddings, labels, valid, prototypes, key=None):
        return valid * self.value


class NoDataclass:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_constant.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_constant"
    sys.modules.pop("own_constant", None)


def test_a_loss_of_ones_own_by_module_and_class(own_module):
    config = override(Config(), ["--loss.prototype", f"{own_module}:Constant", "value=3"], "train")
    assert config.loss.prototype(None, None, 2, None) == 6
    text = config_to_json(config)
    assert json.loads(text)["loss"]["prototype"] == {
        "name": "own_constant:Constant",
        "settings": {"value": 3},
    }
    # reading runs no code of the file's choice, and loses nothing
    del sys.modules[own_module]
    read = config_from_json(text)
    assert own_module not in sys.modules
    assert config_to_json(read) == text
    with pytest.raises(UserError, match="own_constant:Constant"):
        read.loss.prototype(None, None, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--loss.prototype proxyanchor", "give one of concentration, dce"),
        ("--loss.prototype supcon scale=3", "unknown fields .'scale'.*supcon takes temperature="),
        ("--loss.prototype supcon temperature=warm", "'warm', which it must not be"),
        ("--loss.prototype supcon temperature=0", "above 0"),
        ("--loss.prototype none scale=3", "give one of"),
        ("--loss.prototype no_such_module:Loss", "cannot be imported .ModuleNotFoundError"),
        ("--loss.prototype own_constant:Missing", "cannot be imported .AttributeError"),
        ("--loss.prototype own_constant:NoDataclass", "must be a dataclass with __call__"),
        ("--loss.prototype-loss supcon", "--loss.prototype NAME"),
        ("--loss.proxy_scale=3", "--loss.prototype NAME"),
    ],
)
def test_what_is_no_prototype_loss_is_refused_in_one_line(own_module, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        override(Config(), arguments.split(), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        3,
        {"name": "supcon", "settings": {"temperature": "x"}},
        {"name": "supcon", "settings": {"scale": 1.0}},
        {"name": "os.system"},
        {"name": "a:b", "code": "c"},
        {"settings": {}},
    ],
)
def test_a_damaged_loss_is_refused(loss):
    values = json.loads(config_to_json(Config()))
    values["loss"]["prototype"] = loss
    with pytest.raises(ValueError, match=r"config\.loss\.prototype"):
        config_from_json(json.dumps(values))


def test_a_loss_must_be_an_object_that_can_be_called():
    for loss in (Center, "center", lambda *_: 0):
        with pytest.raises(ValueError, match="object of a dataclass"):
            LossConfig(prototype=loss)


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
