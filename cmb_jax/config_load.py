"""Loading configurations: from JSON, with every field checked, and from Python files with `get_config()`."""

import dataclasses
import importlib.util
import json
import math
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from cmb_jax.config import (
    EXECUTION_FIELDS,
    NEWER_THAN_SOME_WEIGHTS,
    Config,
    ModelConfig,
    PrototypeLoss,
    prototype_losses,
)
from cmb_jax.errors import UserError
from cmb_jax.io.outside import parse_json, read_text, reading, shortened

Made = TypeVar("Made")

CONFIGS = next(
    (folder for parent in Path(__file__).resolve().parents[:2] if (folder := parent / "configs").is_dir()),
    Path("configs"),
)
"""The configurations that ship with cmb-jax: in an installed package, or at the top of a checkout."""

_LONGEST_LIST = 1000


def config_names() -> list[str]:
    """Names of the configurations that ship with cmb-jax, such as "small"."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def config_from_file(path: str | Path) -> Config:
    """What `get_config()` of a Python file returns; `path` may be the name of a configuration that ships.

    Raises:
      UserError: no such file, or it has no `get_config` that returns a Config.
    """
    return made_by_file(path, "get_config", Config)


def made_by_file(path: str | Path, function: str, kind: type[Made]) -> Made:
    """Run a configuration file and return what its `function`, called without arguments, returns.

    The file may import what lies beside it, such as a loss of the user's own.

    Raises:
      UserError: no such file, no such function, or it returns no `kind`.
    """
    if str(path) in config_names():
        path = CONFIGS / f"{path}.py"
    path = Path(path)
    if not path.is_file():
        names = ", ".join(config_names())
        raise UserError(
            f"{path}: no such configuration; give a Python file, or one that comes along: {names}"
        )
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; a configuration is a .py file with {function}()")
    module = importlib.util.module_from_spec(spec)
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))
    # a file that calls sys.exit() would end the program with its own code
    try:
        with reading(path, f"this configuration cannot be used: compare it with those in {CONFIGS}"):
            spec.loader.exec_module(module)
            result = getattr(module, function)()
    except SystemExit as error:
        raise UserError(f"{path}: this configuration ends the program; see those in {CONFIGS}") from error
    if not isinstance(result, kind):
        raise UserError(f"{path}: {function}() must return a {kind.__module__}.{kind.__name__}")
    return result


def config_to_json(config: Config) -> str:
    """Pretty JSON with one key per field."""
    return json.dumps(config_values(config), indent=2)


def config_values(config: Config) -> dict[str, Any]:
    """The tree as dictionaries, the prototype loss as its name and settings."""
    values = dataclasses.asdict(config)
    values["loss"]["prototype"] = loss_to_json(config.loss.prototype)
    return values


def without_paths(config: Config) -> Config:
    """The configuration without paths of this machine, fit to be published with the weights."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, index=None, split_file=None),
        phantom=dataclasses.replace(config.phantom, cache_dir=None),
        train=dataclasses.replace(config.train, init_from=None, network_of_start=False),
    )


def config_from_json(text: str) -> Config:
    """Inverse of `config_to_json`.

    A setting that the text lacks takes its default, so a new setting's default must be what the program did
    before. Only the network's settings must all be there, except for `NEWER_THAN_SOME_WEIGHTS`.

    Raises:
      ValueError: unknown fields, a network without all its settings, or values that the tree refuses.
    """
    return build(Config, _with_prototype(_with_precision(parse_json(text))), "config")


def read_config(path: Path, remedy: str) -> Config:
    """The configuration in a file of `config_to_json`.

    Raises:
      UserError: missing, damaged, or of another version.
    """
    with reading(path, remedy):
        return config_from_json(read_text(path, remedy))


def _with_precision(values: Any) -> dict[str, Any]:
    """Fill in `precision`: earlier versions had one `model.compute_dtype`, float32 by default."""
    values = _mapping(values, "config")
    model, train, inference = (
        dict(_mapping(values.get(part, {}), f"config.{part}")) for part in ("model", "train", "inference")
    )
    before = model.pop("compute_dtype", "float32")
    train.setdefault("precision", before)
    inference.setdefault("precision", before)
    parts = {"model": model, "train": train, "inference": inference}
    return values | {name: part for name, part in parts.items() if part}


_EARLIER_SETTINGS = {
    "concentration": {"gamma": "prototype_gamma", "pull": "prototype_pull"},
    "dce": {"gamma": "prototype_gamma"},
    "gcpl": {"gamma": "prototype_gamma", "pull": "prototype_pull"},
    "center": {},
    "supcon": {"temperature": "supcon_temperature"},
    "proxy_anchor": {"scale": "proxy_scale", "margin": "proxy_margin"},
    "triplet_hard": {"margin": "triplet_margin"},
}
"""Where earlier versions kept the settings of losses, all in `LossConfig`: loss -> setting -> old field."""


def _with_prototype(values: dict[str, Any]) -> dict[str, Any]:
    """Build `loss.prototype` from `loss.prototype_loss` and the fields of earlier versions."""
    loss = dict(_mapping(values.get("loss", {}), "config.loss"))
    if "prototype_loss" not in loss:
        return values
    name = loss.pop("prototype_loss")
    moved = _EARLIER_SETTINGS.get(name, {}) if isinstance(name, str) else {}
    settings = {new: loss[old] for new, old in moved.items() if old in loss}
    for old in {old for names in _EARLIER_SETTINGS.values() for old in names.values()}:
        loss.pop(old, None)
    return values | {"loss": loss | {"prototype": None if name == "none" else _as_json(name, settings)}}


@dataclasses.dataclass(frozen=True)
class ForeignLoss:
    """A loss from outside the package that a file names, kept as text: reading a file must import no code."""

    name: str  # module:Class
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, embeddings: Any, labels: Any, valid: Any, prototypes: Any, key: Any = None) -> Any:
        """Raises UserError: only a command line or a configuration can name code to run."""
        raise UserError(
            f"{self.name}: the weights were trained with this loss, which is not the package's; to train on "
            f"with it, give model and loss by a configuration, with --loss.prototype {self.name}"
        )


def loss_name(loss: PrototypeLoss) -> str:
    """Short name of a loss of the package, else module:Class."""
    kind = type(loss)
    short = {each: name for name, each in prototype_losses().items()}
    return short.get(kind, f"{kind.__module__}:{kind.__qualname__}")


def loss_to_json(loss: PrototypeLoss | None) -> dict[str, Any] | None:
    """Name and settings."""
    if loss is None:
        return None
    if isinstance(loss, ForeignLoss):
        return _as_json(loss.name, dict(loss.settings))
    return _as_json(loss_name(loss), dataclasses.asdict(loss))  # type: ignore[call-overload]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _as_json(name: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "settings": settings}


def _loss_from_json(values: Any, where: str) -> PrototypeLoss | None:
    if values is None:
        return None
    values = _mapping(values, where)
    name, settings = values.get("name"), _mapping(values.get("settings", {}), f"{where}.settings")
    if isinstance(name, str) and set(values) <= {"name", "settings"}:
        if name in prototype_losses():
            return build(prototype_losses()[name], settings, where)
        if re.fullmatch(r"[\w.]{1,200}:[\w.]{1,200}", name):
            return ForeignLoss(name, tuple((key, _frozen(value)) for key, value in sorted(settings.items())))
    raise ValueError(f"{where} names {shortened(ascii(name), 40)}, which is not a loss")


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a JSON object")
    return values


def build(kind: type, values: Any, where: str) -> Any:
    """A dataclass from JSON values of its fields, all of which are checked; `where` names it in errors.

    Raises:
      ValueError: unknown fields, or values of another type.
    """
    # Weights come from anywhere, and their configuration decides the size of arrays and which code runs. So
    # nothing is taken on trust: a name that no field has is an error, as are a value of another type, a
    # number that is not finite, and a network that leaves a setting to a default, which may have changed.
    values = _mapping(values, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    optional = EXECUTION_FIELDS | NEWER_THAN_SOME_WEIGHTS
    missing = sorted(set(fields) - set(values) - optional) if kind is ModelConfig else []
    if unknown or missing:
        faults = {f"has unknown fields {unknown}": unknown, f"lacks {missing}": missing}
        raise ValueError(f"{where} {' and '.join(text for text, names in faults.items() if names)}")
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if PrototypeLoss in typing.get_args(hints[name]):
            arguments[name] = _loss_from_json(value, f"{where}.{name}")
        elif dataclasses.is_dataclass(hints[name]):
            arguments[name] = build(hints[name], value, f"{where}.{name}")
        else:
            if not _fits(value, hints[name]):
                raise ValueError(f"{where}.{name} is {shortened(ascii(value), 40)}, which it must not be")
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; numbers are finite, lists no longer than any need be."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > _LONGEST_LIST:
            return False
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**53
    return type(value) is kind
