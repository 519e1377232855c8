"""The variants of an ablation, each trained from several seeds.

Finished runs are used as they are, interrupted ones are continued, and missing ones are trained.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cmb_jax.config import Config
from cmb_jax.config_load import config_values, made_by_file, read_config
from cmb_jax.detector.network import Detector, Template, forward_gflop
from cmb_jax.errors import UserError
from cmb_jax.io.outside import a_number, read_json_object, reading
from cmb_jax.io.tables import read_rows
from cmb_jax.io.weights import named_leaves
from cmb_jax.progress import Say
from cmb_jax.training.run import incompatible_changes, train_run

_NAME = re.compile(r"[a-z0-9_.]+(-[a-z0-9_.]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One configuration of the comparison; its seed is set by the grid."""

    name: str  # its runs are in folders NAME-seed0, NAME-seed1, ...
    config: Config
    seeds: tuple[int, ...] | None = None  # None: those of the grid

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"variant {self.name!r}: a name has small letters, digits and _ . - only")

    def but(self, suffix: str, **loss: Any) -> Variant:
        """This variant with other settings of the loss, named NAME-SUFFIX."""
        config = dataclasses.replace(self.config, loss=dataclasses.replace(self.config.loss, **loss))
        return dataclasses.replace(self, name=f"{self.name}-{suffix}", config=config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Judges a claimed reduction of false positives by the interval of their ratio."""

    claimed_below: float  # the upper end of the interval is below this: as in the paper
    absent_above: float  # the lower end is above this: absent

    def of(self, low: float, high: float) -> str:
        """The judgment, in words, for the interval from `low` to `high`."""
        if high < self.claimed_below:
            return "as in the paper"
        return "absent" if low > self.absent_above else "undecided"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Variants x seeds, and which are compared."""

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = "rpn"  # name of the variant that the others are compared with
    # sensitivity for the comparison of false positives; None: that of the reference at its operating point
    matched_sensitivity: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()  # further (variant, reference) whose false positives are compared
    contrast: tuple[str, str] | None = None  # variants whose differing false positives are shown
    # fixed in the plan of a study before the first run; None: not fixed
    verdict: Verdict | None = None  # on ratios of false positives
    longest_rise: float | None = None  # of validation AP over 1000 steps; beyond it training continues

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"two variants have the same name among {names}")
        if self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is not one of the variants {names}")
        compared = (*self.pairs, *([self.contrast] if self.contrast else []))
        if not {name for pair in compared for name in pair} <= set(names):
            raise ValueError(f"the pairs {compared} name a variant that is not one of {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("give one seed or more, all different")
        if self.matched_sensitivity is not None and not 0 < self.matched_sensitivity <= 1:
            raise ValueError("matched_sensitivity must be above 0 and at most 1")
        if len({variant.config.data.spacing_mm for variant in self.variants}) > 1:
            raise ValueError("all variants must have one working grid, data.spacing_mm")


def four_configurations(base: Config) -> tuple[Variant, ...]:
    """rpn, rpn_ffm, rpn_hspl and rpn_ffm_hspl: without and with feature fusion and prototypes."""
    return tuple(
        Variant(
            name="rpn" + "_ffm" * fusion + "_hspl" * prototypes,
            config=dataclasses.replace(
                base,
                model=dataclasses.replace(base.model, use_fusion=fusion, use_prototypes=prototypes),
            ),
        )
        for prototypes in (False, True)
        for fusion in (False, True)
    )


def grid_from_file(path: Path) -> Grid:
    """The result of `get_grid()` in a Python file.

    Raises:
        UserError: no such file, or no `get_grid` in it that returns a Grid.
    """
    return made_by_file(path, "get_grid", Grid)


TRAINING_ONLY = ("embedding.", "prototypes")  # parameters that inference does not use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One variant from one seed."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def config(self) -> Config:
        """The configuration that it is trained with."""
        config = self.variant.config
        return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=self.seed))

    @property
    def weights(self) -> Path:
        """The file that `train_run` writes."""
        return self.folder / "weights.safetensors"


def runs_of(grid: Grid, workdir: Path) -> tuple[Run, ...]:
    """All runs, ordered by seed, so that a study that is cut short still has every variant."""
    seeds_of = {variant.name: variant.seeds or grid.seeds for variant in grid.variants}
    seeds = dict.fromkeys(seed for each in (grid.seeds, *seeds_of.values()) for seed in each)
    return tuple(
        Run(variant=variant, seed=seed, folder=workdir / f"{variant.name}-seed{seed}")
        for seed in seeds
        for variant in grid.variants
        if seed in seeds_of[variant.name]
    )


def stored_config(run: Run) -> Config | None:
    """The configuration that the run was started with; None if it was not started.

    Raises:
        UserError: it is not a configuration, or belongs to another variant or seed.
    """
    path = run.folder / "config.json"
    if not path.exists():
        return None
    stored = read_config(path, "move the folder away, or use the version that wrote it")
    wanted = run.config
    differs = incompatible_changes(stored, wanted)
    # a user's own loss is stored as values, not as an object, so values are compared
    theirs, ours = (config_values(config)["loss"] for config in (stored, wanted))
    differs += ["another loss"] * (theirs != ours)
    differs += ["another seed"] * (stored.train.seed != wanted.train.seed)
    if differs:
        raise UserError(
            f"{run.folder}: this run was begun with {' and '.join(differs)} than the grid says for "
            f"{run.variant.name}; change the grid or move the folder away"
        )
    return stored


def is_finished(run: Run) -> bool:
    """Whether the weights have all the steps that the run was started with.

    Raises:
        UserError: see `stored_config`.
    """
    stored = stored_config(run)
    return stored is not None and _record(run) is not None and _steps(run) >= stored.train.steps


def other_settings(run: Run) -> tuple[str, ...]:
    """Dotted names of the settings in which a run differs from the grid, apart from paths and inference."""
    stored = stored_config(run)
    if stored is None:
        return ()
    ours, theirs = (dict(named_leaves(config_values(config))) for config in (run.config, stored))
    aside = ("name", "phantom.cache_dir", "data.split_file", "inference.")
    return tuple(name for name in ours if ours[name] != theirs[name] and not name.startswith(aside))


def complete(runs: tuple[Run, ...], say: Say, *, training: bool) -> tuple[Run, ...]:
    """Train the unfinished runs; returns all finished ones.

    Args:
        training: False: leave unfinished runs out.

    Raises:
        UserError: a folder holds another run, or training cannot continue.
    """
    # Check all before spending hours on the first. If the grid asks for more steps than a finished run has,
    # the run continues: a study may turn out to be too short.
    states = [
        (run, is_finished(run) and not (training and _steps(run) < run.config.train.steps)) for run in runs
    ]
    finished = []
    for run, done in states:
        if done:
            others = other_settings(run)
            note = f", trained with other settings than the grid's: {', '.join(others)}" if others else ""
            say(f"{run.name}: finished{note}")
        elif not training:
            say(f"{run.name}: not finished, left out")
            continue
        else:
            say(f"{run.name}: {'continuing' if stored_config(run) else 'training'}")
            train_run(run.config, run.folder)
            jax.clear_caches()  # the next variant compiles another program
        finished.append(run)
    return tuple(finished)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a run."""

    parameters: int
    parameters_at_inference: int
    gflop: float  # convolutions of the forward pass of one training patch, a multiply-add being two
    steps: int
    seconds_per_step: float  # median of the run's log; NaN without a log
    hours: float  # all steps of the log, validation left out


def cost_of(run: Run) -> Cost:
    """Cost of a finished run, from its network and its log."""
    config = run.config
    template = Template.of(lambda: Detector(config.model, rngs=nnx.Rngs(0)))
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in named_leaves(template.shapes())}
    seconds, hours = _times(run.folder / "metrics.csv")
    return Cost(
        parameters=sum(sizes.values()),
        parameters_at_inference=sum(n for name, n in sizes.items() if not name.startswith(TRAINING_ONLY)),
        gflop=forward_gflop(template.shapes(), config.data.patch_shape),
        steps=_steps(run),
        seconds_per_step=seconds,
        hours=hours,
    )


def _times(path: Path) -> tuple[float, float]:
    """Median seconds per step and total hours, from a run's log; a resumed run repeats some steps."""
    if not path.exists():
        return float("nan"), 0.0
    rates: dict[int, float] = {}  # by step, so that a repeated step counts once, with its last rate
    with reading(path, "the run's log is damaged: move it away"):
        names, *lines = read_rows(path, ",") or [[]]
        for line in lines:
            row = dict(zip(names, line, strict=False))
            if row.get("steps/s"):
                rates[int(float(row["step"]))] = float(row["steps/s"])
    if not rates:
        return float("nan"), 0.0
    steps = np.array(sorted(rates))
    seconds = 1.0 / np.array([rates[int(step)] for step in steps])
    return float(np.median(seconds)), float((np.diff(steps, prepend=0) * seconds).sum() / 3600)


def _steps(run: Run) -> int:
    """Steps of the weights; 0 without weights."""
    return int((_record(run) or {}).get("steps", 0))


def _record(run: Run) -> dict[str, Any] | None:
    """The training record of a run that has weights, else None."""
    path = run.folder / "weights.json"
    if not (path.exists() and run.weights.exists()):
        return None
    record = read_json_object(path, "is not a training record; train again")
    with reading(path, "train again"):
        a_number(record.get("steps", 0), "steps", 0)
    return record
