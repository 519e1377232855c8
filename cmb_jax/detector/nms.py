"""Greedy suppression of candidate boxes, exact, with fixed shapes.

The textbook loop takes the best remaining candidate, keeps it and drops all that it overlaps. Here candidates
go through in blocks, best first: a block is thinned by all that is kept so far, then within itself, so the
result is the loop's for every threshold, and memory is O(N + block * (block + max_output)).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

from cmb_jax.detector.anchors import Detections, pairwise_iou

BLOCK = 512

# Rows of `a` (N, D) against rows of `b` (M, D): (N, M) bool, whether keeping one drops the other.
_Conflict = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NmsResult(Detections):
    """The kept candidates, best first; rows without `valid` hold zeros."""

    indices: jax.Array  # (..., K) int32: where in the input each stood


@functools.partial(jax.jit, static_argnames=("max_output",))
def nms_3d(
    boxes: jax.Array,
    scores: jax.Array,
    iou_threshold: float | jax.Array,
    max_output: int,
    valid: jax.Array | None = None,
) -> NmsResult:
    """Greedy non-maximum suppression. Map it over a batch with `jax.vmap`.

    A candidate is dropped when its IoU with a better kept one is greater than (not equal to) `iou_threshold`.
    Of equal scores the lower index is the better. Candidates without `valid`, or whose score is NaN, neither
    come out nor suppress. Any coordinates do; an empty box overlaps nothing.

    Args:
      boxes: (N, 6) candidates (z0, y0, x0, z1, y1, x1).
      scores: (N,) float.
      iou_threshold: any number; from 1 on nothing is suppressed.
      max_output: K, the most candidates to keep.
      valid: (N,) bool; default all.
    """

    def conflict(a: jax.Array, b: jax.Array) -> jax.Array:
        return pairwise_iou(a, b) > iou_threshold

    chex.assert_shape(boxes, (None, 6))
    return _gather(boxes, scores, *_greedy(boxes, scores, valid, max_output, conflict))


def _usable(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    usable = ~jnp.isnan(scores)
    return usable if valid is None else usable & valid


def _gather(boxes: jax.Array, scores: jax.Array, indices: jax.Array, valid: jax.Array) -> NmsResult:
    if boxes.shape[0] == 0:
        boxes, scores = jnp.zeros((1, 6), boxes.dtype), jnp.zeros((1,), scores.dtype)
    return NmsResult(
        indices=indices,
        boxes=jnp.where(valid[:, None], boxes[indices], 0),
        scores=jnp.where(valid, scores[indices], 0),
        valid=valid,
    )


def _greedy(
    items: jax.Array, scores: jax.Array, valid: jax.Array | None, max_output: int, conflict: _Conflict
) -> tuple[jax.Array, jax.Array]:
    """Indices (K,) int32 of the kept of N `items` (N, D), best first, and which of the K rows hold one."""
    count = items.shape[0]
    chex.assert_shape(scores, (count,))
    if valid is not None:
        chex.assert_shape(valid, (count,))
    usable = _usable(scores, valid)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True).astype(jnp.int32)
    block = min(BLOCK, max(count, 1))
    padding = -count % block
    order = jnp.pad(order, (0, padding))
    alive = jnp.pad(usable[order[:count]], (0, padding))
    # Usable ones with a score of -inf tie with the others, so the last one is looked for, not counted.
    end = jnp.max(jnp.where(alive, jnp.arange(count + padding) + 1, 0), initial=0)

    def unfinished(state):
        start, _, kept = state
        return (start < end) & (kept < max_output)

    def step(state):
        start, indices, kept = state
        rows = lax.dynamic_slice_in_dim(order, start, block)
        candidates = items[rows]
        filled = jnp.arange(max_output) < kept
        dropped = jnp.any(conflict(candidates, items[indices]) & filled, axis=1)
        keep = _fixpoint(candidates, lax.dynamic_slice_in_dim(alive, start, block) & ~dropped, conflict)
        place = jnp.where(keep, kept + jnp.cumsum(keep) - 1, max_output)
        return start + block, indices.at[place].set(rows, mode="drop"), kept + jnp.sum(keep, dtype=jnp.int32)

    # Derived from the data, so that the loop also runs inside a shard_map.
    zero = 0 * end.astype(jnp.int32)
    state = (zero, jnp.zeros((max_output,), jnp.int32) + zero, zero)
    if count == 0:
        return state[1], jnp.zeros((max_output,), bool)
    _, indices, kept = lax.while_loop(unfinished, step, state)
    return indices, jnp.arange(max_output) < kept


def _fixpoint(items: jax.Array, alive: jax.Array, conflict: _Conflict) -> jax.Array:
    """Greedy choice (N,) bool among sorted items (N, D): each is kept unless a kept one before it objects.

    Starting from "all kept", item i is settled for good after at most i + 1 rounds, by induction; typical
    inputs settle after two or three.
    """
    drops = jnp.triu(conflict(items, items), k=1) & alive[:, None]

    def body(state):
        keep, _ = state
        new = alive & ~jnp.any(drops & keep[:, None], axis=0)
        return new, jnp.any(new != keep)

    keep, _ = lax.while_loop(lambda state: state[1], body, (alive, jnp.any(alive)))
    return keep
