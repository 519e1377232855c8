"""cmb-jax weights: what weights are and what they were trained on."""

from __future__ import annotations

from cmb_jax.commands.weights_record import describe, key_statement
from cmb_jax.config_io import config_to_json
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.io.outside import read_text


def show(weights: str = "small", verbose: bool = False) -> None:
    """What weights are: training, operating points, calibration, sha256.

    Raises:
      UserError: something wrong with the arguments or the files.
    """
    bundle = load_bundle(weights)
    print(describe(bundle))
    card = bundle.path.with_suffix(".md")
    if card.is_file():
        print(f"\nmodel card {card.name}: {key_statement(read_text(card))}")
    if verbose:
        if bundle.record_path.is_file():
            print(f"\nrecord:\n{read_text(bundle.record_path).strip()}")
        print(f"\nconfiguration:\n{config_to_json(bundle.config)}")
