"""What a training run carries from step to step, and how a gradient changes it, whatever the network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cmb_jax.config import TrainConfig
from cmb_jax.detector.mining import SampleBank
from cmb_jax.training.distributed import replicated


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one step reports; all scalars, global over the mesh."""

    terms: Any  # dataclass of the loss' terms, `total` among them
    gradient_norm: jax.Array
    finite: jax.Array  # () bool: the step was taken


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


def fresh_state(
    config: TrainConfig,
    mesh: Mesh,
    make_params: Callable[[], Any],
    start_from: Any = None,
    make_bank: Callable[[], SampleBank | None] = lambda: None,
) -> TrainState:
    """A state on the mesh, at step 0.

    Args:
      config: optimizer.
      mesh: where it lies.
      make_params: makes random parameters, a pure dict of float32 arrays.
      start_from: parameters to take instead of random ones.
      make_bank: makes the empty bank of samples.
    """
    optimizer = make_optimizer(config)

    def begin(params: Any) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            skipped_in_a_row=zero,
            skipped=zero,
            bank=make_bank(),
        )

    where = replicated(mesh)
    if start_from is None:
        return jax.jit(lambda: begin(make_params()), out_shardings=where)()
    # copied, because the step donates what it is given; on the host, because several processes cannot share
    # what lies on one device
    return jax.jit(begin, out_shardings=where)(jax.tree.map(np.array, start_from))


def apply_gradients(
    state: TrainState,
    grads: Any,
    terms: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    *,
    adjust: Callable[[Any], Any] = lambda params: params,
    bank: SampleBank | None = None,
) -> tuple[TrainState, StepMetrics]:
    """The state after a step. One whose loss or gradient is not finite changes only the counters.

    Args:
      state: before the step.
      grads: of the loss, like `state.params`.
      terms: of the loss, see `StepMetrics`.
      optimizer: of `make_optimizer`.
      ema_decay: share of the old average that stays.
      adjust: changes the updated parameters, for what follows the data and not the gradient.
      bank: of samples, after the step.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(terms.total) & jnp.isfinite(norm)
    # One bad batch among thousands must not end a run of days, nor leave a trace in the optimizer's moments:
    # everything is computed from harmless gradients, and the old state chosen where they were not finite.
    safe = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), grads)
    updates, opt_state = optimizer.update(safe, state.opt_state, state.params)
    params = adjust(optax.apply_updates(state.params, updates))
    # the average follows quickly at first, so that it is never dominated by the random start
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)

    def choose(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=choose(params, state.params),
        ema=choose(ema, state.ema),
        opt_state=choose(opt_state, state.opt_state),
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        skipped=state.skipped + jnp.where(finite, 0, 1),
        bank=choose(bank, state.bank),
    )
    return new_state, StepMetrics(terms=terms, gradient_norm=norm, finite=finite)
