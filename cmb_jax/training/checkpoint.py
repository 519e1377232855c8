"""Orbax checkpoints of the train state: asynchronous, atomic, the newest few and the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from cmb_jax.training.sharding import replicated
from cmb_jax.training.state import TrainState

QUALITY = "quality"  # the metric that decides which checkpoint is best; larger is better


def _parts(state: TrainState) -> dict[str, Any]:
    """The state by its fields; those that a run does without are left out of its checkpoints."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics[QUALITY]


class Checkpoints:
    """Saves and restores `TrainState`; use as a context manager, so that pending saves finish."""

    def __init__(self, folder: Path, keep: int):
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            best_fn=_quality,  # without it metrics are not stored
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best quality so far, or None."""
        return self._manager.best_step()

    def save(self, state: TrainState, quality: float | None) -> None:
        """Start saving; returns once the arrays are copied. `quality` is what validation found, if it ran."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if quality is None else {QUALITY: quality}
        self._manager.save(step, args=ocp.args.StandardSave(_parts(state)), metrics=metrics)

    def restore(self, abstract: TrainState, mesh: Mesh, step: int | None = None) -> TrainState:
        """The state of `step` (default: the newest) on this mesh, whatever mesh it was saved from."""
        where = replicated(mesh)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), _parts(abstract)
        )
        chosen = self._manager.latest_step() if step is None else step
        return TrainState(**self._manager.restore(chosen, args=ocp.args.StandardRestore(target)))
