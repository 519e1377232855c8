"""Training of the region network: `python -m cmb_jax.regions.train --steps N --out FILE`.

Samples are made by the jitted step itself (`cmb_jax.regions.samples`), so that nothing is read or sent
while it runs. The file holds the averaged weights and is rewritten every few minutes; the record beside it
says how they came about. Research use only.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from cmb_jax.anatomy.assets import PACK_NAMES, load_pack
from cmb_jax.anatomy.regions import NUM_REGIONS, Region, Side
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.detector.functional import Template, params_of
from cmb_jax.devices import keep_freed_memory
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_bytes, atomic_write_text, sha256_file
from cmb_jax.io.outside import read_arrays
from cmb_jax.io.weights import load_weights, save_weights
from cmb_jax.progress import Bar
from cmb_jax.regions.network import RegionNet
from cmb_jax.regions.phantoms import phantom_views
from cmb_jax.regions.samples import (
    ContrastVariety,
    PhantomViews,
    RegionSample,
    RegionSource,
    build_source,
    make_sample,
    make_view_sample,
)


@dataclasses.dataclass(frozen=True)
class RegionTraining:
    """Train the region network on samples drawn from anatomy packs and phantoms. Research use only."""

    out: Path
    """Weights file (safetensors); a training record is written beside it as .json."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 1
    """Samples per step."""
    learning_rate: float = 3e-3
    """Peak of the warm-up and cosine schedule."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.99
    """Decay of the averaged weights, which are the ones that are saved."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss beside the cross-entropy."""
    side_weight: float = 0.3
    """Weight of the side loss."""
    outside_weight: float = 0.25
    """Weight of a voxel outside the brain in the cross-entropy; those inside weigh 1."""
    arbitrary_contrast: float = 0.25
    """Share of samples of arbitrary contrast; the others are about T2*-weighted."""
    bright_csf: float = 0.5
    """Share of the T2*-weighted samples whose fluid is bright."""
    seed: int = 0
    """Seed of the initial weights; samples use a key folded from it and the step."""
    save_every: int = 50
    """Steps between two savings of the weights."""
    resume: Path | None = None
    """Weights to start from instead of random ones."""
    packs: tuple[str, ...] = PACK_NAMES
    """Anatomies to draw from in turn; "synthetic" needs no files and is for tests."""
    phantoms: int = 0
    """Simulated subjects to draw from as well: the first of CMB-Phantom's train split."""
    phantom_folder: Path | None = None
    """Where the simulated subjects are kept; needed with --phantoms."""
    phantom_share: float = 0.5
    """Share of the steps that draw from the simulated subjects."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionTrainState:
    """What a training step hands on."""

    params: Any  # pure dict
    ema: Any  # pure dict, averaged over steps
    optimizer: Any
    step: jax.Array  # () int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionLoss:
    """Terms of the loss, each a mean over the batch."""

    total: jax.Array
    cross_entropy: jax.Array
    dice: jax.Array
    side: jax.Array


RegionStep = Callable[[RegionTrainState, Any], tuple[RegionTrainState, RegionLoss]]


def region_loss(
    logits: jax.Array,
    batch: RegionSample,
    dice_weight: float,
    side_weight: float,
    outside_weight: float = 1.0,
) -> RegionLoss:
    """Cross-entropy and soft Dice over regions, binary cross-entropy of the side where there is one.

    The Dice loss (Milletari et al. 2016, V-Net) is 1 - the mean over regions of
    2 sum(p t) / (sum(p) + sum(t)), summed over the whole batch, so that a region that is missing from one
    sample does not count as a failure.

    Args:
        logits: (B, Z, Y, X, 17): 16 regions, then the side (positive = right).
        batch: sample arrays with a leading batch axis.
        dice_weight: of the Dice term in the total.
        side_weight: of the side term in the total.
        outside_weight: of a voxel outside the brain in the cross-entropy's mean; most voxels are.
    """
    regions, side_logit = logits[..., :NUM_REGIONS], logits[..., NUM_REGIONS]
    log_probability = jax.nn.log_softmax(regions)
    target = jax.nn.one_hot(batch.region, NUM_REGIONS)
    weight = jnp.where(batch.region == Region.OUTSIDE, outside_weight, 1.0)
    picked = jnp.sum(log_probability * target, axis=-1)
    cross_entropy = -jnp.sum(weight * picked) / jnp.sum(weight)
    probability = jnp.exp(log_probability)
    space = (0, 1, 2, 3)
    overlap = 2 * jnp.sum(probability * target, axis=space)
    size = jnp.sum(probability, axis=space) + jnp.sum(target, axis=space)
    dice = 1 - jnp.mean((overlap + 1.0) / (size + 1.0))
    sided = batch.side != Side.NONE
    side_each = optax.sigmoid_binary_cross_entropy(side_logit, (batch.side == Side.RIGHT).astype(jnp.float32))
    side = jnp.sum(side_each * sided) / jnp.maximum(jnp.sum(sided), 1)
    total = cross_entropy + dice_weight * dice + side_weight * side
    return RegionLoss(total=total, cross_entropy=cross_entropy, dice=dice, side=side)


def make_optimizer(config: RegionTraining) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to a hundredth of the peak."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup_steps, max(config.steps - 1, 1)),
        max(config.steps, 2),
        config.learning_rate / 100,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )


def init_region_state(config: RegionTraining) -> RegionTrainState:
    """Fresh weights, or those of `config.resume`; raises UserError when they do not fit."""
    params = params_of(RegionNet(nnx.Rngs(config.seed)))
    if config.resume is not None:
        params = jax.tree.map(jnp.asarray, load_weights(config.resume, expected=params)[0])
    return RegionTrainState(
        params=params,
        ema=params,
        optimizer=make_optimizer(config).init(params),
        step=jnp.zeros((), jnp.int32),
    )


def make_region_step(config: RegionTraining, draw: Callable[[Any, jax.Array], RegionSample]):
    """Jitted `(state, material) -> (state, RegionLoss)`: draws a batch, one optimizer step, one average.

    `draw(material, key)` makes one sample.
    """
    template = Template.of(lambda: RegionNet(nnx.Rngs(0)))
    optimizer = make_optimizer(config)

    def step(state: RegionTrainState, material: Any) -> tuple[RegionTrainState, RegionLoss]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        # lax.map, not vmap: one sample at a time keeps the memory of the warps small.
        batch = jax.lax.map(lambda k: draw(material, k), jax.random.split(key, config.batch_size))

        # Neighbors teach nearly the same: the loss looks at a quarter of the voxels, other ones each step.
        offset = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, 2)

        def thin(array: jax.Array) -> jax.Array:
            for axis in (1, 2):
                pairs = array.reshape(*array.shape[:axis], -1, 2, *array.shape[axis + 1 :])
                array = jax.lax.dynamic_index_in_dim(pairs, offset[axis - 1], axis + 1, keepdims=False)
            return array

        targets = jax.tree.map(thin, batch)

        def loss_of(params: Any) -> tuple[jax.Array, RegionLoss]:
            logits = thin(template.bind(params)(batch.image[..., None]))
            loss = region_loss(logits, targets, config.dice_weight, config.side_weight, config.outside_weight)
            return loss.total, loss

        gradient, loss = jax.grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the plain mean: an average that remembers the random start would be of no use.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        new = RegionTrainState(params=params, ema=ema, optimizer=optimizer_state, step=state.step + 1)
        return new, loss

    return jax.jit(step, donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class _Materials:
    """What samples are drawn from, and the step of each kind."""

    sources: tuple[RegionSource, ...]
    source_step: RegionStep
    views: PhantomViews | None
    view_step: RegionStep

    @classmethod
    def of(cls, config: RegionTraining) -> _Materials:
        packs = [synthetic_pack() if name == "synthetic" else load_pack(name) for name in config.packs]
        variety = ContrastVariety(arbitrary=config.arbitrary_contrast, bright_csf=config.bright_csf)
        views = None
        if config.phantoms:
            if config.phantom_folder is None:
                raise UserError("--phantoms needs --phantom-folder: where the simulated subjects are kept")
            views = phantom_views(config.phantoms, config.phantom_folder)
        return cls(
            sources=tuple(build_source(pack) for pack in packs),
            source_step=make_region_step(config, lambda source, key: make_sample(source, key, variety)),
            views=views,
            view_step=make_region_step(config, make_view_sample),
        )

    def take_step(
        self, state: RegionTrainState, config: RegionTraining, number: int
    ) -> tuple[RegionTrainState, RegionLoss]:
        """Step `number` from 0: from which material is a function of the seed and the number."""
        rng = np.random.default_rng((config.seed, number))
        if self.views is not None and rng.random() < config.phantom_share:
            return self.view_step(state, self.views)
        return self.source_step(state, self.sources[rng.integers(len(self.sources))])


def train_regions(config: RegionTraining, stop_after: int | None = None) -> RegionTrainState:
    """Train and save; weights, record and state are rewritten every `save_every` steps.

    A run whose state lies beside `out` goes on where it stopped. `stop_after` ends it at that step.

    Raises:
        UserError: the folder of `out` is missing, or the loss is not finite.
    """
    if not config.out.parent.is_dir():
        raise UserError(f"{config.out.parent}: no such folder; make it, or give another --out")
    materials = _Materials.of(config)
    # Donation needs buffers of their own: `ema` starts as the very arrays of `params`.
    state = jax.tree.map(jnp.copy, _restore(config.out, init_region_state(config)))
    start, first = time.monotonic(), int(state.step)
    mean: dict[str, float] = {}
    with Bar("region network", config.steps, done=first) as bar:
        for step in range(first + 1, (stop_after or config.steps) + 1):
            state, loss = materials.take_step(state, config, step - 1)
            for field in dataclasses.fields(loss):
                value = float(getattr(loss, field.name))
                mean[field.name] = 0.98 * mean.get(field.name, value) + 0.02 * value
            if not mean["total"] < float("inf"):
                raise UserError(
                    f"training stopped at step {step}: the loss is not finite; lower --learning-rate"
                )
            bar.update(note=", ".join(f"{name} {value:.3f}" for name, value in mean.items()))
            if step % config.save_every == 0 or step == config.steps:
                _save(config, state, mean, time.monotonic() - start)
    return state


def _state_file(out: Path) -> Path:
    return out.with_suffix(".state.npz")


def _restore(out: Path, fresh: RegionTrainState) -> RegionTrainState:
    """The state that a run left beside `out`, or the fresh one; raises UserError when it does not fit."""
    path = _state_file(out)
    if not path.exists():
        return fresh
    leaves, structure = jax.tree.flatten(fresh)
    stored = read_arrays(path, "remove it, or give another --out")
    found = [stored[f"arr_{i}"] for i in range(len(stored)) if f"arr_{i}" in stored]
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in leaves]:
        raise UserError(f"{path}: the state of another network; remove it, or give another --out")
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in found])


def _save(config: RegionTraining, state: RegionTrainState, loss: dict[str, float], seconds: float) -> None:
    metadata = {"model": "RegionNet", "step": str(int(state.step)), "use": "research use only"}
    save_weights(config.out, state.ema, metadata, dtype="float16")
    buffer = io.BytesIO()
    np.savez(buffer, *(np.asarray(leaf) for leaf in jax.tree.leaves(state)))
    atomic_write_bytes(_state_file(config.out), buffer.getvalue(), overwrite=True)
    settings = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
        if key not in ("out", "resume", "phantom_folder")
    }
    record = {
        "use": "research use only",
        "command": "python -m cmb_jax.regions.train "
        + " ".join(
            f"--{key.replace('_', '-')} {' '.join(value) if isinstance(value, tuple) else value}"
            for key, value in settings.items()
        ),
        "resumed_from": config.resume.name if config.resume else None,
        "data": f"samples drawn from the anatomy packs {', '.join(config.packs)}, random contrast and shape"
        + (f", and from {config.phantoms} simulated subjects" if config.phantoms else ""),
        "step": int(state.step),
        "samples": int(state.step) * config.batch_size,
        "hours": round(seconds / 3600, 3),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "git_commit": _git_commit(),
        "settings": settings,
        "loss": {name: round(value, 4) for name, value in loss.items()},
        "sha256": sha256_file(config.out),
    }
    atomic_write_text(config.out.with_suffix(".json"), json.dumps(record, indent=2) + "\n", overwrite=True)


def _git_commit() -> str | None:
    """Commit of the checkout that holds the package, or None outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def main() -> int:
    """Command line; errors for people end with exit code 2."""
    keep_freed_memory()
    try:
        train_regions(tyro.cli(RegionTraining))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
