"""A forward pass of our detector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_jax import convolution_note, device_peak_mb
from cmb_jax.detector.network import Detector, Template, forward_gflop

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Jitted; the image lies on the device."""
    model, shape = inputs.MODELS[options["model"]], inputs.triple(options["shape"])
    precision = inputs.precision(options)
    template = Template.of(lambda: Detector(model, precision=precision, rngs=nnx.Rngs(0)))
    params = jax.tree.map(jnp.asarray, inputs.parameters(model))
    image = jnp.asarray(inputs.image(shape)[None])
    forward = jax.jit(lambda params, image: template.bind(params)(image))
    return Prepared(
        run=lambda: jax.block_until_ready(forward(params, image)),
        result=lambda maps: float(jnp.abs(maps.deltas).mean()),
        gflop=forward_gflop(params, shape),
        note=convolution_note(device, precision),
    )
