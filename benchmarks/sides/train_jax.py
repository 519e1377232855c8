"""A training step of ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_jax import convolution_note, device_peak_mb
from cmb_jax.detector.network import training_gflop
from cmb_jax.training.detector import init_state, make_step, put_batch
from cmb_jax.training.distributed import make_mesh, replicated
from cmb_jax.training.state import StepMetrics

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The jitted step on one device; the state goes on from run to run."""
    config = inputs.train_config(options)
    mesh = make_mesh()
    state = init_state(config, mesh)
    # as the step leaves them, so that it is compiled once
    params = jax.device_put(inputs.parameters(config.model), replicated(mesh))
    state = dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))
    batch = put_batch(inputs.patches(config), mesh)
    step = make_step(config, mesh)

    def run() -> StepMetrics:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return metrics

    return Prepared(
        run=run,
        result=lambda metrics: float(metrics.terms.total),
        gflop=training_gflop(params, config.data.patch_shape, config.data.batch_size),
        note=convolution_note(device, config.train.precision),
    )
