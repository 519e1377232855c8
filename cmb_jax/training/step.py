"""One optimization step: pure, jitted once, the same on one device and on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from cmb_jax.config import Config, LossConfig
from cmb_jax.data.patches import PatchBatch
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.functional import ProposalMaps, Template
from cmb_jax.detector.mining import SampleBank, Samples, moved_prototypes, remember
from cmb_jax.detector.network import Detector
from cmb_jax.detector.total_loss import LossTerms, detection_loss
from cmb_jax.training.micro_batches import in_micro_batches
from cmb_jax.training.sharding import check_fit, over_batch, over_batch_and_depth, replicated
from cmb_jax.training.state import TrainState, make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A batch on the mesh. B patches, Z Y X voxels, M truths."""

    image: jax.Array  # (B, Z, Y, X, 2) float32
    truths: Truths  # (B, M, 6)
    mimics: jax.Array  # (B, Z, Y // 2, X // 2) uint8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one step reports; all scalars, global over the mesh."""

    terms: LossTerms
    gradient_norm: jax.Array
    finite: jax.Array  # () bool: the step was taken


Step = jax.stages.Wrapped
"""Jitted (TrainState, DeviceBatch) -> (TrainState, StepMetrics); it can be lowered and exported."""


def loss_function(
    params,
    batch: DeviceBatch,
    template: Template[Detector],
    config: Config,
    mesh: Mesh | None = None,
    *,
    bank: SampleBank | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[LossTerms, Samples | None]]:
    """Total loss of a batch; its terms and samples, see `detection_loss`.

    On a mesh every device runs the network on its own part.
    """

    def on_all(params, image: jax.Array) -> ProposalMaps:
        return template.bind(params)(image)

    propose = in_micro_batches(on_all, config.train.accumulate)
    if mesh is not None:
        deep = over_batch_and_depth(mesh).spec
        propose = jax.shard_map(propose, mesh=mesh, in_specs=(replicated(mesh).spec, deep), out_specs=deep)
    detector = template.bind(params)
    maps = propose(params, batch.image)
    spacing = config.data.spacing_mm
    return detection_loss(
        detector, maps, batch.truths, batch.mimics, spacing, config.loss, bank=bank, key=key
    )


def follow_samples(params: Any, samples: Samples | None, config: LossConfig) -> Any:
    """The parameters with prototypes moved to the batch's samples, where the configuration says so."""
    if samples is None or config.prototype_update != "moving_average":
        return params
    moved = moved_prototypes(params["prototypes"], samples, config.prototype_decay)
    return {**params, "prototypes": moved}


def train_step(
    state: TrainState,
    batch: DeviceBatch,
    *,
    template: Template[Detector],
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Gradient, update, moving average; what is not finite changes only the counters."""
    gradient = jax.value_and_grad(loss_function, has_aux=True)
    key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    (loss, (terms, samples)), grads = gradient(
        state.params, batch, template, config, mesh, bank=state.bank, key=key
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    safe = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), grads)
    updates, opt_state = optimizer.update(safe, state.opt_state, state.params)
    params = follow_samples(optax.apply_updates(state.params, updates), samples, config.loss)
    bank = state.bank if samples is None else remember(state.bank, samples)
    # the average follows quickly at first, so that it is never dominated by the random start
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
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


def make_step(config: Config, mesh: Mesh) -> Step:
    """The jitted step: state replicated and donated, batch over "data", depth over "space".

    Raises:
      UserError: the mesh cannot share the patches evenly, see `check_fit`.
    """
    check_fit(config, mesh)
    template = Template.of(lambda: Detector(config.model, precision=config.train.precision, rngs=nnx.Rngs(0)))
    optimizer = make_optimizer(config.train)

    def step(state: TrainState, batch: DeviceBatch):
        return train_step(state, batch, template=template, optimizer=optimizer, config=config, mesh=mesh)

    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, batch_shardings(mesh)),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def batch_shardings(mesh: Mesh) -> Any:
    """Where each part of a batch lies: a `DeviceBatch` of shardings."""
    deep = over_batch_and_depth(mesh)
    flat = over_batch(mesh)
    structure = jax.tree.structure(
        DeviceBatch(image=0, truths=Truths(boxes=0, valid=0, ignored=0), mimics=0)  # type: ignore[arg-type]
    )
    return jax.tree.unflatten(structure, (deep, flat, flat, flat, deep))


def put_batch(batch: PatchBatch, mesh: Mesh) -> DeviceBatch:
    """This process's share of the global batch onto the mesh."""
    where = batch_shardings(mesh)
    place = jax.make_array_from_process_local_data
    return DeviceBatch(
        image=place(where.image, batch.image),
        truths=Truths(
            boxes=place(where.truths.boxes, batch.boxes),
            valid=place(where.truths.valid, batch.boxes_valid),
            ignored=place(where.truths.ignored, batch.boxes_ignored),
        ),
        mimics=place(where.mimics, batch.mimics),
    )
