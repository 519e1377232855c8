"""`train` and `eval`: a configuration, a folder, dotted overrides.

The options are `cmb_jax.config.Config`, so that every field of it can be given.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cmb_jax.cli.common import check_run, run_cli
from cmb_jax.cli.present import Common, one_line_errors
from cmb_jax.cli.settings import override
from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file, config_names
from cmb_jax.errors import UserError

Apply = Callable[[Common], None]


def run(arguments: Sequence[str], apply: Apply) -> None:
    """Train a detector on phantoms or own scans; run again to resume."""
    parser = run_parser("cmb-jax train", "Train a detector on phantoms or own scans; run again to resume.")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, of several")
    parser.add_argument("--processes", metavar="N", help="how many processes train together, or auto")
    parser.add_argument("--process", type=int, metavar="I", help="this process, from 0")
    config, known = parse_run(parser, arguments, apply)
    start(config, known.workdir, known.coordinator, known.processes, known.process)


def start(
    config: Config, workdir: Path, coordinator: str | None, processes: str | None, process: int | None
) -> None:
    """Train in this process, together with others if there are several (docs/scaling.md)."""
    from absl import flags
    from absl import logging as absl_logging

    from cmb_jax.devices import keep_freed_memory
    from cmb_jax.training.distributed import exit_without_barrier, start_processes
    from cmb_jax.training.run import train_run

    keep_freed_memory()
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    if not logging.getLogger("cmb_jax").isEnabledFor(logging.DEBUG):  # --verbose
        absl_logging.set_verbosity(absl_logging.ERROR)

    def command() -> None:
        start_processes(coordinator, processes, process)
        train_run(config, workdir)

    # the error of one of several processes is reported before it leaves the others
    with exit_without_barrier():
        run_cli(command)


def eval_(arguments: Sequence[str], apply: Apply) -> None:
    """Evaluate a trained detector on fresh simulated subjects, or on the test part of --data.index."""
    parser = run_parser(
        "cmb-jax eval",
        "Evaluate a trained detector on fresh simulated subjects, or on the test part of --data.index. "
        "Writes WORKDIR/eval/metrics.json and report.html.",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace WORKDIR/eval")
    parser.add_argument(
        "--baseline", metavar="WEIGHTS", help="name or file of weights to compare with on the same scans"
    )
    config, known = parse_run(parser, arguments, apply)
    check_run(known.workdir, known.overwrite)
    from cmb_jax.training.evaluate import evaluate_run

    evaluate_run(config, known.workdir, known.overwrite, known.baseline)


def run_parser(prog: str, text: str) -> argparse.ArgumentParser:
    """The options of both commands besides the fields of the configuration."""
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


def parse_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str], apply: Apply
) -> tuple[Config, argparse.Namespace]:
    """Parse the command's own options, then dotted overrides; --help prints and exits."""
    # two parsers: argparse takes what it knows, and the rest are fields of the configuration, for tyro
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
