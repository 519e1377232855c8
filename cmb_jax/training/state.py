"""What a training run carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from cmb_jax.config import Config, TrainConfig
from cmb_jax.detector.functional import params_of
from cmb_jax.detector.mining import SampleBank, empty_bank
from cmb_jax.detector.network import Detector
from cmb_jax.training.sharding import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a checkpoint holds; the position in the data is the step's number."""

    step: jax.Array  # () int32, steps done
    params: Any  # pure dict of float32 arrays
    ema: Any  # exponential moving average of params, used for evaluation
    opt_state: Any
    skipped_in_a_row: jax.Array  # () int32, steps left out because the loss or a gradient was not finite
    skipped: jax.Array  # () int32, all of those
    bank: SampleBank | None = None  # samples of earlier steps, where `loss.memory_bank` asks for them


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = min(config.warmup_steps, max(1, config.steps // 2))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), config.learning_rate / 100
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW on clipped gradients; biases, norms and prototypes are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 5, params),
        ),
    )


def init_state(config: Config, mesh: Mesh, params: Any = None) -> TrainState:
    """A fresh state on the mesh, at step 0.

    Args:
      config: network, optimizer, seed.
      mesh: where it lies.
      params: pure dict of float32 arrays to start from; None: random ones.
    """
    optimizer = make_optimizer(config.train)

    def begin(params: Any) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            skipped_in_a_row=zero,
            skipped=zero,
            bank=empty_bank(config.loss.memory_bank, config.model.embedding_dim),
        )

    def create() -> TrainState:
        return begin(params_of(Detector(config.model, rngs=nnx.Rngs(config.train.seed))))

    where = replicated(mesh)
    if params is None:
        return jax.jit(create, out_shardings=where)()
    # copied, because the step donates what it is given; on the host, because several processes cannot share
    # what lies on one device
    return jax.jit(begin, out_shardings=where)(jax.tree.map(np.array, params))
