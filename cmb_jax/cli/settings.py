"""How fields of the configuration are entered and shown on the command line of `train` and `eval`."""

import contextlib
import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from cmb_jax.config import Config, PrototypeLoss, prototype_losses
from cmb_jax.config_load import build, loss_name
from cmb_jax.errors import UserError
from cmb_jax.io.outside import shortened

SETTINGS = ConstructorRegistry()
"""Rules for settings that tyro has no short form for."""


@SETTINGS.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Show a setting that may be None as its type, where tyro would put {None}| before it."""
    parts = [part for part in typing.get_args(info.type) if part is not types.NoneType]
    if types.NoneType not in typing.get_args(info.type) or len(parts) != 1:
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(parts[0], info.markers))
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    none = ["None"]
    return dataclasses.replace(
        inner,
        instance_from_str=lambda words: None if words == none else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: none if value is None else inner.str_from_instance(value),
    )


@SETTINGS.primitive_rule
def _prototype(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Make a prototype loss one option: its name and the settings that differ from their defaults."""
    if PrototypeLoss not in typing.get_args(info.type):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME [SETTING=VALUE ...]",
        instance_from_str=loss_from_words,
        is_instance=lambda value: value is None or dataclasses.is_dataclass(value),
        str_from_instance=_words_of_loss,
    )


def _plain(text: str) -> bool | int | float | str:
    """A setting as it is typed: true, false, a number, or a word."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def loss_from_words(words: Sequence[str]) -> PrototypeLoss | None:
    """The prototype loss of words such as proxy_anchor scale=16; module:Class is imported; None for none."""
    name, *settings = words or [""]
    if name == "none" and not settings:
        return None
    kind = _own_loss(name) if ":" in name else prototype_losses().get(name)
    if kind is None:
        names = ", ".join([*prototype_losses(), "none"])
        raise UserError(f"--loss.prototype {name}: give one of {names}, or module:Class for one of your own")
    values = {}
    for setting in settings:
        field, _, text = setting.partition("=")
        values[field] = _plain(text)
    try:
        loss: PrototypeLoss = build(kind, values, "loss.prototype")
    except (ValueError, TypeError) as error:
        takes = ", ".join(f"{field.name}=..." for field in dataclasses.fields(kind)) or "no settings"  # type: ignore[arg-type]
        raise UserError(f"--loss.prototype {' '.join(words)}: {error}; {name} takes {takes}") from error
    return loss


def _words_of_loss(loss: Any) -> list[str]:
    if loss is None:
        return ["none"]
    return [loss_name(loss), *(f"{name}={value}" for name, value in dataclasses.asdict(loss).items())]


def _own_loss(name: str) -> type[PrototypeLoss]:
    """The class that module:Class names; importing runs the module's code."""
    module, _, inside = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed command does not look where it is started
    try:
        kind = getattr(importlib.import_module(module), inside)
    except Exception as error:
        raise UserError(
            f"--loss.prototype {name}: cannot be imported ({type(error).__name__}: {shortened(str(error))}); "
            f"start the command in the folder of {module}.py"
        ) from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and "__call__" in dir(kind)):
        raise UserError(f"--loss.prototype {name}: must be a dataclass with __call__ (docs/losses.md)")
    return typing.cast("type[PrototypeLoss]", kind)


_PART_OF_THE_LOSS = frozenset(
    f"--loss.{name}"
    for name in (
        "prototype-loss",
        "prototype-gamma",
        "prototype-pull",
        "supcon-temperature",
        "proxy-scale",
        "proxy-margin",
        "triplet-margin",
    )
)


def override(config: Config, arguments: Sequence[str], prog: str) -> Config:
    """The configuration with dotted overrides, e.g. `--train.steps 500`; help comes from the dataclasses."""
    for word in arguments:
        if word.split("=")[0].replace("_", "-") in _PART_OF_THE_LOSS:
            raise UserError(
                f"{word}: is part of --loss.prototype NAME [SETTING=VALUE ...] now, "
                "such as --loss.prototype proxy_anchor scale=16"
            )
    return tyro.cli(Config, default=config, args=list(arguments), prog=prog, registry=SETTINGS)
