"""The training loop of the contestants in PyTorch: steps until the budget is spent, resumable."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import cores
from benchmarks.peers.contest import Budget

Parts = Mapping[str, Any]
"""What makes the state: objects with `state_dict` and `load_state_dict`, by name."""


def start(seed: int) -> None:
    """Seeds and threads."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  nnU-Net draws from it
    torch.manual_seed(seed)
    torch.set_num_threads(cores())


def train_loop(folder: Path, budget: Budget, parts: Parts, take_step: Callable[[float], float]) -> int:
    """Take steps until the budget is spent, one at least.

    Args:
        folder: state.pt lies there.
        budget: of the run.
        parts: are saved and restored.
        take_step: takes the spent share of the budget, trains, returns the loss.

    Returns:
        The number of steps of all starts.
    """
    path = folder / "state.pt"
    step = restore(path, parts)

    def save(loss: float) -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"step": step, **states}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        budget.save(steps=step, last_loss=round(loss, 4))

    saved = step
    while budget.left > 0 or step == 0:
        loss = take_step(budget.share)
        step += 1
        if budget.due:
            save(loss)
            saved = step
    if step > saved:
        save(loss)
    return step


def restore(path: Path, parts: Parts) -> int:
    """Give the parts their saved states; the number of steps, 0 if nothing was saved."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=False)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def count(model: torch.nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters())
