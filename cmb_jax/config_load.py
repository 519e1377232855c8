"""Configuration from a Python file, with overrides from the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.io.outside import reading

Made = TypeVar("Made")


def config_from_file(path: Path) -> Config:
    """What `get_config()` of a Python file returns.

    Raises:
      UserError: no such file, or it has no `get_config` that returns a Config.
    """
    return made_by_file(path, "get_config", Config)


def made_by_file(path: Path, function: str, kind: type[Made]) -> Made:
    """What a function without arguments of a configuration file returns. The file is code, and is run.

    Raises:
      UserError: no such file, no such function, or it returns no `kind`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; the ones that come along are in configs/")
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; a configuration is a .py file with {function}()")
    module = importlib.util.module_from_spec(spec)
    try:
        with reading(path, "this configuration cannot be used: see the ones in configs/"):
            spec.loader.exec_module(module)
            made = getattr(module, function)()
    except SystemExit as error:
        raise UserError(f"{path}: this configuration ends the program; see the ones in configs/") from error
    if not isinstance(made, kind):
        raise UserError(f"{path}: {function}() must return a {kind.__module__}.{kind.__name__}")
    return made


def override(config: Config, arguments: Sequence[str], prog: str) -> Config:
    """The configuration with dotted overrides, e.g. `--train.steps 500`; help comes from the dataclasses."""
    return tyro.cli(Config, default=config, args=list(arguments), prog=prog)
