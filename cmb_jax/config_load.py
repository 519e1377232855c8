"""Configuration from a Python file, with overrides from the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tyro

from cmb_jax.config import Config
from cmb_jax.errors import UserError


def config_from_file(path: Path) -> Config:
    """What `get_config()` of a Python file returns.

    Raises:
      UserError: no such file, or it has no `get_config` that returns a Config.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; the ones that come along are in configs/")
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; a configuration is a .py file with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (ValueError, TypeError, SyntaxError, AttributeError, ImportError) as error:
        raise UserError(
            f"{path}: this configuration cannot be used ({error}); see configs/small.py"
        ) from error
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a cmb_jax.config.Config")
    return config


def override(config: Config, arguments: Sequence[str], prog: str) -> Config:
    """The configuration with dotted overrides, e.g. `--train.steps 500`; help comes from the dataclasses."""
    return tyro.cli(Config, default=config, args=list(arguments), prog=prog)
