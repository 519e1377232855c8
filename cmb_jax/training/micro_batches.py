"""Large batches in little memory: the network runs on some patches of the batch after the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Propose = Callable[[Any, jax.Array], Any]
"""Parameters and images (B, ...) -> maps, a pytree of arrays (B, ...)."""


def in_micro_batches(propose: Propose, count: int) -> Propose:
    """The same function, computed on `count` parts of the batch in turn; B must be a multiple of `count`.

    Value and gradient are those of the whole batch, whatever loss follows: only the network is cut, while a
    loss that divides by counts over the batch, or chooses among its samples, sees all of it. Between the
    forward and the backward pass the maps alone are kept; each part's forward pass is run again for its
    gradient, and gradients of the parameters add up in the parameters' type.
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
