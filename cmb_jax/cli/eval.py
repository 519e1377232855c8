"""cmb-jax eval: a trained run through the whole pipeline; options as of `cmb-jax train`."""

from __future__ import annotations

from collections.abc import Sequence

from cmb_jax.cli.common import check_run
from cmb_jax.cli.train import Apply, parse_run, run_parser


def run(arguments: Sequence[str], apply: Apply) -> None:
    """Evaluate a trained detector on fresh simulated subjects, or on the test part of --data.index.

    Raises:
      UserError: the run has no weights yet, an evaluation is there already, or no test scans can be used.
    """
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
