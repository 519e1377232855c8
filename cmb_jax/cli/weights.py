"""cmb-jax weights: what weights are and what they were trained on."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from cmb_jax.inference.options import DEFAULT_WEIGHTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What weights are: training, operating points, calibration, sha256."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = DEFAULT_WEIGHTS
    """name of bundled weights, or a .safetensors file."""
    verbose: bool = False
    """print the whole record and the configuration too."""


def show(options: ShowOptions) -> None:
    """Print it.

    Raises:
      UserError: no such weights, or a damaged record.
    """
    from cmb_jax.config_io import config_to_json
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
