"""Weights of a wider detector from trained ones, as a start of its training.

    python tools/widen_detector.py small base.safetensors

Every hidden channel twice (`cmb_jax.models.widen`): the same outputs, four times the work. Train them on with

    python train.py --config configs/base.py --train.init-from base.safetensors --workdir runs/base
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax
from flax import nnx

from cmb_jax.commands.common import run_for_people
from cmb_jax.errors import UserError
from cmb_jax.inference.bundle import load_bundle, save_bundle
from cmb_jax.models.detector import Detector
from cmb_jax.models.functional import Template
from cmb_jax.models.widen import widen


def main() -> None:
    """Read, widen, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="name of bundled weights, or a .safetensors file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the shares of weights (default: 0)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: exists already; choose another file")
    bundle = load_bundle(arguments.weights)
    narrow = bundle.config.model
    model = dataclasses.replace(
        narrow,
        widths=tuple(2 * width for width in narrow.widths),
        fusion_width=2 * narrow.fusion_width,
        head_width=2 * narrow.head_width,
        embedding_dim=2 * narrow.embedding_dim,
    )
    shapes = Template.of(lambda: Detector(model, rngs=nnx.Rngs(0))).shapes()
    params = widen(bundle.params, shapes, jax.random.key(arguments.seed))
    save_bundle(arguments.out, params, dataclasses.replace(bundle.config, model=model))
    print(f"{arguments.out}: widths {model.widths}, the function of {arguments.weights}")


if __name__ == "__main__":
    run_for_people(main)
