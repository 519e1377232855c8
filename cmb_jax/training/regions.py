"""Training of the region network: `python -m cmb_jax.training.regions --steps N --out FILE`.

State, loop and checkpoints are those of the detector's training; the samples and the loss are its own. The
jitted step makes the samples (`cmb_jax.regions.samples`), so that nothing is read or sent while it runs. The
same command resumes a run that was stopped. Research use only.
"""

import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from absl import logging as absl_logging
from flax import nnx
from jax.sharding import Mesh

import cmb_jax
from cmb_jax.anatomy.assets import PACK_NAMES, load_pack
from cmb_jax.anatomy.regions import NUM_REGIONS, Region, Side
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.config import TrainConfig
from cmb_jax.detector.network import Template, params_of
from cmb_jax.devices import keep_freed_memory
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text, locked, make_folder, sha256_file
from cmb_jax.io.outside import reading
from cmb_jax.io.tables import read_rows
from cmb_jax.io.weights import load_weights, save_weights
from cmb_jax.regions import samples
from cmb_jax.regions.grid import GRID_SHAPE
from cmb_jax.regions.network import RegionNet
from cmb_jax.regions.phantoms import phantom_views
from cmb_jax.training.distributed import exit_without_barrier, make_mesh
from cmb_jax.training.loop import Stage, Step, train_loop
from cmb_jax.training.monitor import LOG_FILE
from cmb_jax.training.state import StepMetrics, TrainState, apply_gradients, fresh_state, make_optimizer

Material = samples.RegionSource | samples.PhantomViews
"""What a step draws its samples from: an anatomy pack, or simulated subjects."""


@dataclasses.dataclass(frozen=True)
class RegionTraining:
    """Train the region network on samples drawn from anatomy packs and phantoms. Research use only."""

    out: Path
    """Weights file (safetensors), written at the end with its record (.json); checkpoints and log lie in the
    folder of the same name with .run."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 1
    """Samples per step."""
    learning_rate: float = 3e-3
    """Peak of the warm-up and cosine schedule."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 1e-4
    """AdamW's weight decay; biases and norms are not decayed."""
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
    """Steps between two checkpoints."""
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

    @property
    def run(self) -> Path:
        """Folder of the checkpoints and the log."""
        return self.out.with_suffix(".run")

    @property
    def schedule(self) -> TrainConfig:
        """What these settings are for the optimizer, the loop and the checkpoints."""
        return TrainConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            seed=self.seed,
            checkpoint_every=self.save_every,
            keep_checkpoints=1,
            log_every=min(self.save_every, 20),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionLoss:
    """Terms of the loss, each a mean over the batch."""

    total: jax.Array
    cross_entropy: jax.Array
    dice: jax.Array
    side: jax.Array


def region_loss(
    logits: jax.Array,
    batch: samples.RegionSample,
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
    # divided by the sum of weights and not by the number of voxels: its size does not depend on the brain's
    picked = jnp.sum(log_probability * target, axis=-1)
    cross_entropy = -jnp.sum(weight * picked) / jnp.sum(weight)
    probability = jnp.exp(log_probability)
    space = (0, 1, 2, 3)
    overlap = 2 * jnp.sum(probability * target, axis=space)
    size = jnp.sum(probability, axis=space) + jnp.sum(target, axis=space)
    # 1 voxel on either side: a region that is neither there nor predicted scores 1, not 0 / 0
    dice = 1 - jnp.mean((overlap + 1.0) / (size + 1.0))
    sided = batch.side != Side.NONE
    side_each = optax.sigmoid_binary_cross_entropy(side_logit, (batch.side == Side.RIGHT).astype(jnp.float32))
    # only where the truth has a side
    side = jnp.sum(side_each * sided) / jnp.maximum(jnp.sum(sided), 1)
    total = cross_entropy + dice_weight * dice + side_weight * side
    return RegionLoss(total=total, cross_entropy=cross_entropy, dice=dice, side=side)


def make_region_step(config: RegionTraining) -> Step:
    """Jitted `(state, material) -> (state, metrics)`: draws a batch, one optimizer step, one average."""
    template = Template.of(lambda: RegionNet(nnx.Rngs(0)))
    optimizer = make_optimizer(config.schedule)
    variety = samples.ContrastVariety(arbitrary=config.arbitrary_contrast, bright_csf=config.bright_csf)

    def draw(material: Material, key: jax.Array) -> samples.RegionSample:
        if isinstance(material, samples.PhantomViews):
            return samples.make_view_sample(material, key)
        return samples.make_sample(material, key, variety)

    def step(state: TrainState, material: Material) -> tuple[TrainState, StepMetrics]:
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

        gradients, loss = jax.grad(loss_of, has_aux=True)(state.params)
        return apply_gradients(state, gradients, loss, optimizer, config.ema_decay)

    return jax.jit(step, donate_argnums=0)


def init_region_state(config: RegionTraining, mesh: Mesh) -> TrainState:
    """Fresh weights, or those of `config.resume`; raises UserError when they do not fit."""

    def make() -> Any:
        return params_of(RegionNet(nnx.Rngs(config.seed)))

    start = None
    if config.resume is not None:
        start, _ = load_weights(config.resume, expected=jax.eval_shape(make))
    return fresh_state(config.schedule, mesh, make, start)


def load_materials(
    config: RegionTraining,
) -> tuple[tuple[samples.RegionSource, ...], samples.PhantomViews | None]:
    """The anatomy packs, and the simulated subjects where they are asked for."""
    packs = [synthetic_pack() if name == "synthetic" else load_pack(name) for name in config.packs]
    sources = tuple(samples.build_source(pack) for pack in packs)
    if not config.phantoms:
        return sources, None
    if config.phantom_folder is None:
        raise UserError("--phantoms needs --phantom-folder: where the simulated subjects are kept")
    return sources, phantom_views(config.phantoms, config.phantom_folder)


def train_regions(config: RegionTraining) -> TrainState:
    """Train, then write the averaged weights and their record; a run that was stopped is continued.

    Raises:
        UserError: the folder of `out` is missing, phantoms have no folder, or as `train_loop`.
        RunStopped: SIGTERM came; the state is saved.
    """
    if not config.out.parent.is_dir():
        raise UserError(f"{config.out.parent}: no such folder; make it, or give another --out")
    old = config.out.with_suffix(".state.npz")
    if old.exists():
        raise UserError(
            f"{old}: left by a trainer that is gone; remove it, and give --resume {config.out} to start from "
            "the weights that lie beside it"
        )
    sources, views = load_materials(config)

    def materials(first: int) -> Iterator[Material]:
        """Which material a step draws from is a function of the seed and the step."""
        for number in range(first, config.steps):
            rng = np.random.default_rng((config.seed, number))
            if views is not None and rng.random() < config.phantom_share:
                yield views
            else:
                yield sources[rng.integers(len(sources))]

    stage = Stage(
        steps=range(config.steps),
        step=make_region_step(config),
        batches=materials,
        voxels=config.batch_size * int(np.prod(GRID_SHAPE)),
        gflop=None,
    )
    mesh = make_mesh()
    make_folder(config.run)
    with locked(config.run, "wait until it is done, or choose another --out"):
        tick = time.perf_counter()
        state = train_loop(config.schedule, config.run, init_region_state(config, mesh), mesh, [stage])
        _write(config, state, hours=(time.perf_counter() - tick) / 3600)
    return state


def _write(config: RegionTraining, state: TrainState, hours: float) -> None:
    steps = int(state.step)
    metadata = {"model": "RegionNet", "step": str(steps), "use": "research use only"}
    save_weights(config.out, jax.device_get(state.ema), metadata, dtype="float16")
    settings = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if key not in ("out", "resume", "phantom_folder")
    }
    options = (
        f"--{key.replace('_', '-')} {' '.join(value) if isinstance(value, tuple) else value}"
        for key, value in settings.items()
    )
    record = {
        "use": "research use only",
        "command": f"python -m cmb_jax.training.regions {' '.join(options)}",
        "resumed_from": config.resume.name if config.resume else None,
        "data": f"samples drawn from the anatomy packs {', '.join(config.packs)}, random contrast and shape"
        + (f", and from {config.phantoms} simulated subjects" if config.phantoms else ""),
        "step": steps,
        "samples": steps * config.batch_size,
        "hours": round(hours, 3),
        "date": datetime.date.today().isoformat(),
        "version": cmb_jax.__version__,
        "settings": settings,
        "loss": _last_losses(config.run / LOG_FILE),
        "sha256": sha256_file(config.out),
    }
    atomic_write_text(config.out.with_suffix(".json"), json.dumps(record, indent=2) + "\n", overwrite=True)


def _last_losses(log: Path) -> dict[str, float]:
    """Mean of each term of the loss over the last ten rows of the log."""
    columns, *rows = read_rows(log, ",") if log.exists() else [[]]
    names = {"total": "loss", "cross_entropy": "cross_entropy", "dice": "dice", "side": "side"}
    with reading(log, "remove it: it is a log alone"):
        last = [dict(zip(columns, row, strict=True)) for row in rows[-10:]]
        if not last:
            return {}
        return {name: round(float(np.mean([float(row[c]) for row in last])), 4) for name, c in names.items()}


def main() -> int:
    """Command line; errors for people end with exit code 2."""
    keep_freed_memory()
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns that nothing is validated
    try:
        with exit_without_barrier():
            train_regions(tyro.cli(RegionTraining))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
