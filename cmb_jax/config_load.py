"""Configuration from a Python file, with overrides from the command line."""

from __future__ import annotations

import dataclasses
import importlib.util
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.io.outside import reading

Made = TypeVar("Made")


CONFIGS = next(
    (folder for parent in Path(__file__).resolve().parents[:2] if (folder := parent / "configs").is_dir()),
    Path("configs"),
)
"""The configurations that come along: in an installed package, or at the top of a checkout."""


def config_names() -> list[str]:
    """Names of the configurations that come along, such as "small"."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def config_from_file(path: str | Path) -> Config:
    """What `get_config()` of a Python file returns; also by the name of one that comes along.

    Raises:
      UserError: no such file, or it has no `get_config` that returns a Config.
    """
    return made_by_file(path, "get_config", Config)


def made_by_file(path: str | Path, function: str, kind: type[Made]) -> Made:
    """What a function without arguments of a configuration file returns. The file is code, and is run.

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
    try:
        with reading(path, f"this configuration cannot be used: compare it with those in {CONFIGS}"):
            spec.loader.exec_module(module)
            made = getattr(module, function)()
    except SystemExit as error:
        raise UserError(f"{path}: this configuration ends the program; see those in {CONFIGS}") from error
    if not isinstance(made, kind):
        raise UserError(f"{path}: {function}() must return a {kind.__module__}.{kind.__name__}")
    return made


_OPTIONAL = ConstructorRegistry()
"""How settings that may be left out are shown: as their type, where tyro would put {None}| before it."""


@_OPTIONAL.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
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


def override(config: Config, arguments: Sequence[str], prog: str) -> Config:
    """The configuration with dotted overrides, e.g. `--train.steps 500`; help comes from the dataclasses."""
    with warnings.catch_warnings():
        # a loss that a configuration file registers has a name that no Literal lists
        warnings.filterwarnings("ignore", message=".*default value", category=UserWarning)
        return tyro.cli(Config, default=config, args=list(arguments), prog=prog, registry=_OPTIONAL)
