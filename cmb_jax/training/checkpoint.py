"""Orbax checkpoints of the train state: asynchronous, atomic, the newest few and the best.

Each carries the SHA-256 of its arrays, so that training never resumes from one that was damaged later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from cmb_jax.errors import UserError
from cmb_jax.io.outside import a_number, read_json_object, reading
from cmb_jax.training.distributed import is_primary, replicated, wait_for_all
from cmb_jax.training.state import TrainState

QUALITY = "quality"  # the metric that decides which checkpoint is best; larger is better
_FINGERPRINT = "sha256"


def _parts(state: TrainState) -> dict[str, Any]:
    """The fields of the state that are not None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics[QUALITY]


def fingerprint(state: TrainState) -> str:
    """SHA-256 of all arrays with their places in the tree, as hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """Saves and restores `TrainState`; use as a context manager, so that pending saves finish.

    With `read_only` nothing in the folder is changed, moved or removed, whoever else writes into it. With
    several processes all of them make the same calls, and the folder is one that all of them see.
    """

    def __init__(self, folder: Path, keep: int = 1, *, read_only: bool = False):
        self._folder = folder.resolve()
        if read_only:
            # Orbax's own `read_only` says so three times for every folder; without a save nothing is written
            options = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._leave_out_unreadable_records()
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of a run that was killed while it saved
            best_fn=_quality,  # without it metrics are not stored
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # a pending save would wait for the processes that are gone
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Return when what is being saved is on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> tuple[int, ...]:
        """Steps of all checkpoints, rising."""
        return tuple(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best quality so far, or None."""
        return self._manager.best_step()

    def save(self, state: TrainState, quality: float | None) -> None:
        """Start saving; returns once the arrays are copied. `quality` is of the validation, if it ran."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if quality is None else {QUALITY: quality}
        self._manager.save(
            step,
            args=ocp.args.StandardSave(_parts(state)),
            metrics=metrics,
            custom_metadata={_FINGERPRINT: fingerprint(state)},
        )

    def restore(self, abstract: TrainState, mesh: Mesh, step: int | None = None) -> TrainState:
        """The state of `step` (default: the newest) on this mesh, whatever mesh it was saved from.

        Raises:
          ValueError: the arrays are not those that were saved. Files that cannot be read raise what Orbax
            raises.
        """
        where = replicated(mesh)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), _parts(abstract)
        )
        chosen = self._manager.latest_step() if step is None else step
        state = TrainState(**self._manager.restore(chosen, args=ocp.args.StandardRestore(target)))
        saved = (self._manager.metadata(chosen).custom_metadata or {}).get(_FINGERPRINT)
        if saved not in (None, fingerprint(state)):  # None: of a version that did not keep it
            raise ValueError("its arrays are not those that were saved")
        return state

    def restore_newest_whole(self, abstract: TrainState, mesh: Mesh) -> TrainState | None:
        """The newest checkpoint that can be read; damaged ones are named on stderr and set aside.

        Returns:
          The state on this mesh; None where there is no checkpoint at all.

        Raises:
          UserError: there are checkpoints, but none can be read; nothing is moved then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(abstract, mesh, step)
            # what a damaged file raises depends on the file, so that nothing narrower can be caught
            except Exception as error:
                damaged[step] = (str(error).splitlines() or [type(error).__name__])[0][:200]
                continue
            self._set_aside(damaged)
            self._manager.reload()
            return state
        if damaged:
            raise self._nothing_whole(damaged)
        return None

    def _leave_out_unreadable_records(self) -> None:
        """Set aside checkpoints with damaged metrics, which would keep Orbax from opening the folder."""
        steps = sorted(
            (int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit()), reverse=True
        )
        damaged = {}
        for step in steps:
            record = self._folder / str(step) / "metrics" / "metrics"
            try:
                if record.exists():
                    with reading(record):
                        a_number(read_json_object(record)[QUALITY], QUALITY)
            except UserError:
                damaged[step] = "its metrics cannot be read"
        if damaged and len(damaged) == len(steps):
            raise self._nothing_whole(damaged)
        # no process may move a folder that another one is still reading
        wait_for_all("checkpoints are looked at")
        self._set_aside(damaged)

    def _nothing_whole(self, damaged: Mapping[int, str]) -> UserError:
        step, reason = next(iter(damaged.items()))
        return UserError(
            f"{self._folder}: no checkpoint can be read (the newest, {step}: {reason}); bring one back "
            "from a copy, or begin anew in another folder"
        )

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Move damaged checkpoints away, because the run saves these steps again; kept for inspection."""
        if is_primary():
            for step, reason in damaged.items():
                aside = self._folder.parent / "damaged_checkpoints" / str(step)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)
                print(
                    f"checkpoint {step} is damaged ({reason}) and is left out: moved to "
                    f"{aside.parent.name}/{aside.name}",
                    file=sys.stderr,
                )
        wait_for_all("damaged checkpoints are set aside")
