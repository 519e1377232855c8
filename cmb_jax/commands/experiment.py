"""The command line that train.py and eval.py share: a configuration file, a folder, dotted overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file, override
from cmb_jax.errors import UserError


def argument_parser(prog: str, text: str) -> argparse.ArgumentParser:
    """Reads --config and --workdir; more can be added."""
    parser = argparse.ArgumentParser(prog=prog, description=text, add_help=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--workdir", type=Path)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """What `argument_parser` knows, then dotted overrides of the configuration; --help ends the program."""
    known, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        print("\nSettings that can be overridden:\n")
    elif known.config is None or known.workdir is None:
        raise UserError(f"{parser.prog}: give --config FILE and --workdir DIR; --help lists the settings")
    config = Config() if known.config is None else config_from_file(known.config)
    return override(config, rest, parser.prog), known
