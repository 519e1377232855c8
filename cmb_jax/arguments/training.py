"""The command lines of `cmb-jax train` and `cmb-jax eval`: a configuration, a folder, dotted overrides."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from cmb_jax.arguments.present import Common, one_line_errors
from cmb_jax.commands.common import check_run
from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file, config_names, override
from cmb_jax.errors import UserError

Apply = Callable[[Common], None]


def train(arguments: Sequence[str], apply: Apply) -> None:
    """Train a detector on phantoms or own scans; run again to resume.

    Raises:
      UserError: settings, data or weights that cannot be used.
    """
    parser = _parser("cmb-jax train", "Train a detector on phantoms or own scans; run again to resume.")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, of several")
    parser.add_argument("--processes", metavar="N", help="how many processes train together, or auto")
    parser.add_argument("--process", type=int, metavar="I", help="this process, from 0")
    config, known = _parse(parser, arguments, apply)
    from cmb_jax.commands.train import start

    start(config, known.workdir, known.coordinator, known.processes, known.process)


def evaluate_run(arguments: Sequence[str], apply: Apply) -> None:
    """Evaluate a trained detector on fresh simulated subjects, or on the test part of --data.index.

    Raises:
      UserError: the run has no weights yet, an evaluation is there already, or no test scans can be used.
    """
    parser = _parser(
        "cmb-jax eval",
        "Evaluate a trained detector on fresh simulated subjects, or on the test part of --data.index. "
        "Writes WORKDIR/eval/metrics.json and report.html.",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace WORKDIR/eval")
    parser.add_argument(
        "--baseline", metavar="WEIGHTS", help="name or file of weights to compare with on the same scans"
    )
    config, known = _parse(parser, arguments, apply)
    check_run(known.workdir, known.overwrite)
    from cmb_jax.commands.evaluate_run import run

    run(config, known.workdir, known.overwrite, known.baseline)


def _parser(prog: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=text, add_help=False, exit_on_error=False)
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help=f"Python file with get_config(), or one that comes along: {', '.join(config_names())}",
    )
    parser.add_argument("--workdir", "-o", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="what to compute on"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--verbose", action="store_true", help="what the libraries log, and tracebacks")
    return parser


def _parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], apply: Apply
) -> tuple[Config, argparse.Namespace]:
    """What the parser knows, then dotted overrides of the configuration; --help ends the program."""
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{parser.prog}: {error}; {parser.prog} --help lists the settings") from None
    if {"-h", "--help"} & set(rest):
        print(parser.format_help().replace("[--device", "[-h] [--device", 1))
        print("Settings of the configuration that can be overridden:\n")
    elif known.config is None or known.workdir is None:
        raise UserError(
            f"{parser.prog}: give --config NAME and --workdir DIR; --help lists the settings, and the "
            f"configurations that come along are {', '.join(config_names())}"
        )
    config = Config() if known.config is None else config_from_file(known.config)
    apply(Common(device=known.device, quiet=known.quiet, verbose=known.verbose))
    with one_line_errors(Config, parser.prog, rest):
        return override(config, rest, parser.prog), known
