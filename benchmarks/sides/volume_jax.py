"""From a prepared volume to detections, our way."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_jax import convolution_note, device_peak_mb
from cmb_jax.detector.anchors import Detections
from cmb_jax.detector.network import forward_gflop
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.inference.proposals import ProposalFinder

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The bundled weights `small`: tiles, network, decoding, suppression."""
    bundle = load_bundle("small")
    precision = inputs.precision(options)
    inference = dataclasses.replace(bundle.config.inference, precision=precision)
    finder = ProposalFinder(dataclasses.replace(bundle.config, inference=inference), bundle.params)
    image = inputs.head(inputs.triple(options["shape"]))
    plan = finder.plan(image.shape[:3])

    def run() -> Detections:
        return jax.block_until_ready(finder.find(image))

    windows = f"{len(plan.windows)} window(s) of {' x '.join(map(str, plan.window_shape))}"
    return Prepared(
        run=run,
        result=lambda found: float(found.valid.sum()),
        gflop=forward_gflop(bundle.params, inputs.triple(options["shape"])),
        note="; ".join(filter(None, [windows, convolution_note(device, precision)])),
    )
