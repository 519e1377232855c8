"""The log of all processes but the one that writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmb_jax.training.logs import TrainLog
from cmb_jax.training.processes import is_primary


class SilentLog(TrainLog):
    """A `TrainLog` that writes nothing."""

    def __init__(self) -> None:
        """Open nothing."""

    def __exit__(self, *error) -> None:
        """Nothing to close."""

    def advance(self) -> None:
        """One step done."""

    def message(self, text: str) -> None:
        """Said by process 0."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Written by process 0."""


def train_log(folder: Path, total_steps: int, first_step: int) -> TrainLog:
    """The log of this process: process 0 writes for all."""
    return TrainLog(folder, total_steps, first_step) if is_primary() else SilentLog()
