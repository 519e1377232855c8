"""Weights of a larger detector from trained ones, as a start of its training.

    python tools/grow_detector.py small configs/base.py base.safetensors

The same outputs with every hidden channel twice, more blocks on the finest level, or both
(`cmb_jax.detector.grow`), as the configuration has it. Train them on with

    cmb-jax train --config base --train.init-from base.safetensors --workdir runs/base
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax
from flax import nnx

from cmb_jax.cli.common import run_cli
from cmb_jax.config import ModelConfig
from cmb_jax.config_load import config_from_file
from cmb_jax.detector.functional import Template
from cmb_jax.detector.grow import deepen, widen
from cmb_jax.detector.network import Detector
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle, save_bundle


def main() -> None:
    """Read, grow, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="name of bundled weights, or a .safetensors file")
    parser.add_argument("config", type=Path, help="experiment whose detector is wanted")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the shares of weights (default: 0)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: exists already; choose another file")
    bundle = load_bundle(arguments.weights)
    model = config_from_file(arguments.config).model
    try:
        params = grow(bundle.params, bundle.config.model, model, arguments.seed)
    except ValueError as error:
        raise UserError(f"{arguments.config}: does not enlarge {arguments.weights}: {error}") from None
    save_bundle(arguments.out, params, dataclasses.replace(bundle.config, model=model))
    print(f"{arguments.out}: the function of {arguments.weights} in the detector of {arguments.config}")


def grow(params: object, old: ModelConfig, new: ModelConfig, seed: int) -> object:
    """Channels first, then blocks."""
    if new.widths != old.widths:
        wide = dataclasses.replace(new, encoder_convs=old.encoder_convs, decoder_convs=old.decoder_convs)
        params = widen(params, _shapes(wide), jax.random.key(seed))
    return deepen(params, _shapes(new))


def _shapes(model: ModelConfig) -> object:
    return Template.of(lambda: Detector(model, rngs=nnx.Rngs(0))).shapes()


if __name__ == "__main__":
    run_cli(main)
