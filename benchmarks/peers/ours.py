"""Our own detectors under a CPU budget, from nothing or from a pre-training on images without labels."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.peers.contest import Budget, Finder, Found
from cmb_jax.config import Config
from cmb_jax.config_load import config_from_file
from cmb_jax.data.patches import patch_batches
from cmb_jax.data.subjects import StoredSubject, subjects_in
from cmb_jax.detector.anchors import box_centers
from cmb_jax.detector.network import Detector, Template, params_of
from cmb_jax.devices import keep_freed_memory, use_compilation_cache
from cmb_jax.inference.bundle import load_bundle, save_bundle
from cmb_jax.inference.proposals import ProposalFinder
from cmb_jax.io.atomic import atomic_write_text, make_folder
from cmb_jax.ops.cpu.library import usable_precision
from cmb_jax.training.detector import init_state, make_step, put_batch, template_of, train_detector
from cmb_jax.training.distributed import make_mesh

TRIAL_STEPS = 12  # that tell what a step costs
FEWEST_STEPS = 20
CHECKPOINT_STEPS = 200
MASKED_SHARE = 0.6
MASK_CELLS = 4  # edge of a masked cube in cells, 4 mm
MASKED_RATE = 1e-3


def named_config(name: str, seed: int) -> Config:
    """A configuration of the checkout with a seed, in the precision of this device."""
    config = config_from_file(name)
    precision = usable_precision(config.train.precision, "train.precision")
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, seed=seed, precision=precision)
    )


def train(
    subjects: Sequence[StoredSubject],
    folder: Path,
    budget: Budget,
    seed: int,
    config_name: str,
    masked: bool = False,
) -> dict[str, Any]:
    """`cmb-jax train` without validation, for as many steps as the budget holds."""
    keep_freed_memory()
    use_compilation_cache()
    config = named_config(config_name, seed)
    start: Any = None
    more: dict[str, Any] = {}
    if masked:
        start, more = pretrained(config, subjects, folder.parent, budget.seconds)
        budget = Budget(folder, budget.seconds)  # the pre-training's time is not in it
    plan = folder / "steps.json"
    if not plan.exists():
        steps = steps_within(config, subjects, budget)
        atomic_write_text(plan, json.dumps({"steps": steps}) + "\n")
    steps = json.loads(plan.read_text())["steps"]
    settings = dataclasses.replace(
        config.train, steps=steps, checkpoint_every=CHECKPOINT_STEPS, evaluate_every=CHECKPOINT_STEPS
    )
    config = dataclasses.replace(config, train=settings)

    def record(params: Any) -> dict[str, float]:
        budget.save()  # what is spent, whenever a checkpoint follows
        return {}

    state = train_detector(config, folder, subjects, record, start_from=start)
    params = jax.device_get(state.ema)
    save_bundle(folder / "weights.safetensors", params, config)
    budget.save(steps=int(state.step))
    return {"parameters": count(params), **budget.facts, **more}


def load(folder: Path, config_name: str = "", masked: bool = False) -> Finder:
    """The network with the candidates that it lists, without localization."""
    use_compilation_cache()
    bundle = load_bundle(folder / "weights.safetensors")
    finder = ProposalFinder(bundle.config, bundle.params)
    spacing = bundle.config.data.spacing_mm

    def find(image: np.ndarray) -> Found:
        found = finder.find(image)
        keep = np.asarray(found.valid)
        boxes = np.asarray(found.boxes)[keep]
        return Found(
            centers=np.asarray(box_centers(found.boxes))[keep],
            diameters_mm=(boxes[:, 3] - boxes[:, 0]) * spacing[0],
            scores=np.asarray(found.scores)[keep],
        )

    return find


def count(params: Any) -> int:
    """Numbers in a pure dict of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def steps_within(config: Config, subjects: Sequence[StoredSubject], budget: Budget) -> int:
    """How many steps the rest of the budget holds, from the CPU time of a few after compilation.

    The schedule needs their number beforehand. What is spent in the end is recorded.
    """
    mesh = make_mesh(1, 1)
    step, state = make_step(config, mesh), init_state(config, mesh)
    batches = patch_batches(subjects, config.data, seed=config.train.seed)
    state, metrics = step(state, put_batch(next(batches), mesh))
    jax.block_until_ready(metrics)
    tick = time.process_time()
    for _ in range(TRIAL_STEPS):
        state, metrics = step(state, put_batch(next(batches), mesh))
    jax.block_until_ready(metrics)
    each = (time.process_time() - tick) / TRIAL_STEPS
    return max(FEWEST_STEPS, int(budget.left / each))


def hide(cells: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cells (B, Z, Y, X, C) with cubes set to 0, and where: (B, Z, Y, X, 1) float32, 1 where hidden."""
    batch, *grid, _ = cells.shape
    coarse = [-(-size // MASK_CELLS) for size in grid]
    drawn = jax.random.bernoulli(key, MASKED_SHARE, (batch, *coarse, 1)).astype(jnp.float32)
    for axis, size in enumerate(grid, start=1):
        drawn = jax.lax.slice_in_dim(jnp.repeat(drawn, MASK_CELLS, axis), 0, size, axis=axis)
    return cells * (1 - drawn), drawn


def restoration_loss(
    params: Any, image: jax.Array, key: jax.Array, template: Template[Detector]
) -> jax.Array:
    """Mean squared error of the hidden cells, restored from the decoder's finest level by a linear map."""
    detector = template.bind(params["network"])
    cells = detector.cells(image)
    seen, hidden = hide(cells, key)
    restored = detector.unet(seen)[0] @ params["restore"]
    return jnp.sum(hidden * (restored - cells) ** 2) / jnp.maximum(jnp.sum(hidden) * cells.shape[-1], 1.0)


def pretrained(
    config: Config, subjects: Sequence[StoredSubject], root: Path, seconds: float
) -> tuple[Any, dict[str, Any]]:
    """Parameters whose backbone restores masked cells of the training images, shared by the runs in `root`.

    Images of all prepared subjects beside `subjects` serve, for no label is looked at. A start that was
    killed goes on from the last weights with a fresh optimizer.
    """
    folder = root / f"pretraining-{config.name}-{seconds:g}s-s{config.train.seed}"
    make_folder(folder)
    budget, weights = Budget(folder, seconds), folder / "weights.safetensors"
    images = subjects_in(subjects[0].folder.parent)
    network = (
        load_bundle(weights).params
        if weights.exists()
        else params_of(Detector(config.model, rngs=nnx.Rngs(config.train.seed)))
    )
    cells = 2 * 4  # channels after space to depth
    params = {"network": network, "restore": jnp.zeros((config.model.widths[0], cells))}
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=MASKED_RATE)
    state, template = optimizer.init(params), template_of(config)

    @jax.jit
    def step(params: Any, state: Any, image: jax.Array, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(restoration_loss)(params, image, key, template)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    number = int(budget.facts.get("steps", 0))
    batches = patch_batches(images, config.data, seed=config.train.seed + 1, first_step=number)
    first: float | None = budget.facts.get("first_loss")

    def save(loss: jax.Array) -> None:
        save_bundle(weights, jax.device_get(params["network"]), config)
        budget.save(steps=number, first_loss=first, last_loss=float(loss))

    saved = number
    while budget.left > 0 or number == 0:
        rate = MASKED_RATE * 0.5 * (1 + math.cos(math.pi * budget.share))
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        key = jax.random.fold_in(jax.random.key(config.train.seed), number)
        params, state, loss = step(params, state, jnp.asarray(next(batches).image), key)
        number += 1
        first = float(loss) if first is None else first
        if budget.due:
            save(loss)
            saved = number
    if number > saved:
        save(loss)
    network = load_bundle(weights).params
    facts = {f"pretraining_{name}": value for name, value in budget.facts.items()}
    return network, facts
