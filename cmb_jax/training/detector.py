"""Training of the detector: its batches, its step, its stages of patch sizes.

The step is pure, jitted once per stage, and the same on one device and on a mesh.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from cmb_jax.config import Config, LossConfig
from cmb_jax.data.patches import PatchBatch, patch_batches
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.mining import SampleBank, Samples, empty_bank, moved_prototypes, remember
from cmb_jax.detector.network import Detector, ProposalMaps, Template, params_of, training_gflop
from cmb_jax.detector.total_loss import LossTerms, detection_loss
from cmb_jax.training.distributed import (
    check_fit,
    make_mesh,
    over_batch,
    over_batch_and_depth,
    replicated,
    share_of_process,
)
from cmb_jax.training.loop import Evaluate, Stage, Step, train_loop
from cmb_jax.training.state import StepMetrics, TrainState, apply_gradients, fresh_state, make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A batch on the mesh. B patches, Z Y X voxels, M truths."""

    image: jax.Array  # (B, Z, Y, X, 2) float32
    truths: Truths  # (B, M, 6)
    mimics: jax.Array  # (B, Z, Y // 2, X // 2) uint8


Propose = Callable[[Any, jax.Array], Any]
"""Parameters and images (B, ...) -> maps, a pytree of arrays (B, ...)."""


def in_micro_batches(propose: Propose, count: int) -> Propose:
    """The same function, computed on `count` parts of the batch in turn, which takes less memory.

    B must be a multiple of `count`. Value and gradient are those of the whole batch, whatever loss follows:
    only the network runs on parts, while a loss that divides by counts over the batch, or chooses among its
    samples, sees all of it. Between the forward and the backward pass the maps alone are kept; each part's
    forward pass is run again for its gradient, and gradients of the parameters add up in the parameters'
    type.
    """
    if count == 1:
        return propose

    def run(params: Any, images: jax.Array) -> Any:
        # A part takes every count-th patch, so that one that is spread over devices stays spread.
        parts = images.reshape(-1, count, *images.shape[1:]).swapaxes(0, 1)
        again = jax.checkpoint(propose)
        maps = lax.map(lambda part: again(params, part), parts)
        return jax.tree.map(lambda m: m.swapaxes(0, 1).reshape(-1, *m.shape[2:]), maps)

    return run


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
    """One step; a loss or gradient that is not finite changes only the counters."""
    gradient = jax.grad(loss_function, has_aux=True)
    key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    grads, (terms, samples) = gradient(state.params, batch, template, config, mesh, bank=state.bank, key=key)
    return apply_gradients(
        state,
        grads,
        terms,
        optimizer,
        config.train.ema_decay,
        adjust=lambda params: follow_samples(params, samples, config.loss),
        bank=state.bank if samples is None else remember(state.bank, samples),
    )


def init_state(config: Config, mesh: Mesh, params: Any = None) -> TrainState:
    """A fresh state of the detector on the mesh, with the given parameters or random ones."""
    return fresh_state(
        config.train,
        mesh,
        lambda: params_of(Detector(config.model, rngs=nnx.Rngs(config.train.seed))),
        params,
        lambda: empty_bank(config.loss.memory_bank, config.model.embedding_dim),
    )


def template_of(config: Config) -> Template[Detector]:
    """The detector without weights, in the precision of training."""
    return Template.of(lambda: Detector(config.model, precision=config.train.precision, rngs=nnx.Rngs(0)))


def make_step(config: Config, mesh: Mesh) -> Step:
    """The jitted step: state replicated and donated, batch over "data", depth over "space".

    Raises:
      UserError: the mesh cannot share the patches evenly, see `check_fit`.
    """
    check_fit(config, mesh)
    template, optimizer = template_of(config), make_optimizer(config.train)

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


def stage_configs(config: Config) -> tuple[tuple[range, Config], ...]:
    """The steps of each stage and its configuration; the last one may have patches of another shape.

    Which patches a step sees follows from its number alone, so that a run can be resumed. Stages without a
    step are left out.
    """
    train = config.train
    if train.final_patch_shape is None:
        return ((range(train.steps), config),)
    switch = train.steps - round(train.steps * train.final_share)
    data = dataclasses.replace(config.data, patch_shape=train.final_patch_shape)
    both = (
        (range(switch), config),
        (range(switch, train.steps), dataclasses.replace(config, data=data)),
    )
    return tuple(stage for stage in both if stage[0])


def train_detector(
    config: Config,
    workdir: Path,
    subjects: Sequence[StoredSubject],
    evaluate: Evaluate | None = None,
    *,
    phantoms: Sequence[StoredSubject] = (),
    start_from: Any = None,
) -> TrainState:
    """Train from the newest checkpoint in `workdir`, else from given parameters, else from nothing.

    Args:
      config: the experiment.
      workdir: checkpoints and logs go here.
      subjects: prepared training subjects.
      evaluate: called with the averaged parameters every `train.evaluate_every` steps and at the end.
      phantoms: prepared subjects that `data.phantom_share` of the patches come from.
      start_from: pure dict of parameters of this network.

    Raises:
      UserError: the mesh needs more devices than there are or cannot share the patches evenly, and as
        `train_loop`.
      RunStopped: SIGTERM came; the state is saved.
    """
    mesh = make_mesh(config.train.mesh_data, config.train.mesh_space)
    # all at once, so that a later stage whose patches do not fit is refused before the first step
    stages = [_stage(steps, part, mesh, subjects, phantoms) for steps, part in stage_configs(config)]
    return train_loop(config.train, workdir, init_state(config, mesh, start_from), mesh, stages, evaluate)


def _stage(
    steps: range,
    config: Config,
    mesh: Mesh,
    subjects: Sequence[StoredSubject],
    phantoms: Sequence[StoredSubject],
) -> Stage:
    def batches(first: int) -> Iterator[DeviceBatch]:
        stream = patch_batches(
            subjects,
            config.data,
            seed=config.train.seed,
            phantoms=phantoms,
            first_step=first,
            share=share_of_process(config, mesh),
        )
        return (put_batch(batch, mesh) for batch in stream)

    shape, size = config.data.patch_shape, config.data.batch_size
    return Stage(
        steps=steps,
        step=make_step(config, mesh),
        batches=batches,
        voxels=size * math.prod(shape),
        gflop=training_gflop(template_of(config).shapes(), shape, size),
    )
