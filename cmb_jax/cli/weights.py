"""`weights show` describes weights; `calibrate` writes weights that give probabilities."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cmb_jax.cli.common import check_output
from cmb_jax.errors import UserError
from cmb_jax.inference.options import DEFAULT_WEIGHTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show how weights were trained and calibrated, their operating points and sha256."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = DEFAULT_WEIGHTS
    """name of bundled weights, or a .safetensors file."""
    verbose: bool = False
    """print the whole record and the configuration too."""


def show(options: ShowOptions) -> None:
    """Print the record of the weights, as far as there is one."""
    from cmb_jax.config_load import config_to_json
    from cmb_jax.inference.bundle import describe, key_statement, load_bundle
    from cmb_jax.io.outside import read_text

    bundle = load_bundle(options.weights)
    print(describe(bundle))
    card = bundle.path.with_suffix(".md")
    if card.is_file():
        print(f"\nmodel card {card.name}: {key_statement(read_text(card))}")
    if options.verbose:
        if bundle.record_path.is_file():
            print(f"\nrecord:\n{read_text(bundle.record_path).strip()}")
        print(f"\nconfiguration:\n{config_to_json(bundle.config)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Calibrate scores to probabilities and choose the operating point, on labeled validation scans."""

    pred: tuple[Path, ...]
    """folders that `cmb-jax bids` wrote with these weights."""
    truth: tuple[Path, ...]
    """folders of truth as `cmb-jax evaluate` reads them, in the same order."""
    out: Path
    """weights to write (.safetensors), with their record (.json) beside them."""
    weights: str = DEFAULT_WEIGHTS
    """name of bundled weights, or a .safetensors file."""
    max_fp: float = 0.5
    """operating point: the highest sensitivity at no more than so many false positives per scan."""
    max_fp_magnitude: float = 3.0
    """the same for scans without a phase, where there are enough of both kinds; without a phase,
    calcifications cannot be told from microbleeds."""
    overwrite: bool = False
    """replace the files if they exist."""


def calibrate(options: CalibrateOptions) -> None:
    """Calibrate; describe the new weights."""
    pred, truth, out = options.pred, options.truth, options.out
    if not pred or len(pred) != len(truth):
        raise UserError(
            f"{len(pred)} folders of predictions and {len(truth)} of truth: give as many --truth as --pred, "
            "in the same order"
        )
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: weights are a .safetensors file; give such a name")
    for option, limit in (("--max-fp", options.max_fp), ("--max-fp-magnitude", options.max_fp_magnitude)):
        if not limit > 0:
            raise UserError(f"{option} {limit}: give a number of false positives per scan above 0")
    record = out.with_suffix(".json")
    check_output(record, options.overwrite or (not out.exists() and _left_by_a_killed_run(record)))
    from cmb_jax.calibration import calibrate_weights
    from cmb_jax.inference.bundle import describe, load_bundle

    calibrate_weights(
        pred,
        truth,
        options.weights,
        out,
        max_fp=options.max_fp,
        max_fp_magnitude=options.max_fp_magnitude,
    )
    print(describe(load_bundle(out)))
    print(f"written: {out}, {record.name}")


def _left_by_a_killed_run(record: Path) -> bool:
    """Whether a record without weights is of a calibration that was killed: records are written first."""
    from cmb_jax.inference.bundle import read_weights_record

    try:
        return "calibrated_from" in (read_weights_record(record) or {})
    except UserError:
        return False
