"""Greedy suppression of candidate boxes, exact, with fixed shapes.

The textbook loop takes the best remaining candidate, keeps it and drops all that it overlaps. Here candidates
go through in blocks, best first: a block is thinned by all that is kept so far, then within itself, so the
result is the loop's for every threshold, and memory is O(N + block * (block + max_output)).
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from cmb_jax.detector.anchors import Detections, pairwise_iou

BLOCK = 512


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

    chex.assert_shape(boxes, (None, 6))
    chex.assert_shape(scores, (boxes.shape[0],))
    usable = ~jnp.isnan(scores)
    if valid is not None:
        chex.assert_shape(valid, scores.shape)
        usable &= valid
    if boxes.shape[0] == 0:
        boxes, scores, usable = jnp.zeros((1, 6), boxes.dtype), jnp.zeros(1, scores.dtype), jnp.zeros(1, bool)
    indices, kept = _greedy(boxes, scores, usable, iou_threshold, max_output)
    return NmsResult(
        indices=indices,
        boxes=jnp.where(kept[:, None], boxes[indices], 0),
        scores=jnp.where(kept, scores[indices], 0),
        valid=kept,
    )


def _greedy(
    boxes: jax.Array,
    scores: jax.Array,
    usable: jax.Array,
    iou_threshold: float | jax.Array,
    max_output: int,
) -> tuple[jax.Array, jax.Array]:
    """Indices (K,) int32 of the kept of N boxes, best first, and which of the K rows hold one."""
    count = boxes.shape[0]
    # Best first. What is not usable comes last and is never alive: it neither comes out nor suppresses.
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True).astype(jnp.int32)
    block = min(BLOCK, count)
    room = block * max(1, -(-max_output // block))
    padding = -count % block
    alive = jnp.pad(usable[order], (0, padding))
    order = jnp.pad(order, (0, padding))
    # Usable ones with a score of -inf tie with the others, so the last one is looked for, not counted.
    end = jnp.max(jnp.where(alive, jnp.arange(count + padding) + 1, 0), initial=0)

    def unfinished(state):
        start, _, kept = state
        return (start < end) & (kept < max_output)

    def step(state):
        start, indices, kept = state
        rows = lax.dynamic_slice_in_dim(order, start, block)
        candidates = boxes[rows]
        # First against all that earlier blocks kept (rows of `indices` that are not filled yet name box 0 and
        # must drop nothing), then the survivors among themselves.

        def thin(turn, left):  # by some of the kept at a time: there may be far fewer than room for them
            earlier = boxes[lax.dynamic_slice_in_dim(indices, turn * block, block)]
            filled = turn * block + jnp.arange(block) < kept
            return left & ~jnp.any((pairwise_iou(candidates, earlier) > iou_threshold) & filled, axis=1)

        candidate = lax.dynamic_slice_in_dim(alive, start, block)
        candidate = lax.fori_loop(0, (kept + block - 1) // block, thin, candidate)
        keep = _fixpoint(pairwise_iou(candidates, candidates) > iou_threshold, candidate)
        # The kept ones are appended in their order. All others, and those beyond the room, are written to
        # rows that do not exist, which drops them.
        place = jnp.where(keep, kept + jnp.cumsum(keep) - 1, room)
        return start + block, indices.at[place].set(rows, mode="drop"), kept + jnp.sum(keep, dtype=jnp.int32)

    # Derived from the data, so that the loop also runs inside a shard_map.
    zero = 0 * end.astype(jnp.int32)
    state = (zero, jnp.zeros((room,), jnp.int32) + zero, zero)
    _, indices, kept = lax.while_loop(unfinished, step, state)
    return indices[:max_output], jnp.arange(max_output) < kept


def _fixpoint(overlap: jax.Array, alive: jax.Array) -> jax.Array:
    """Greedy choice (N,) bool among sorted boxes: each is kept unless a kept one before it overlaps it.

    Starting from "all kept", box i is settled for good after at most i + 1 rounds, by induction; typical
    inputs settle after two or three.
    """
    # Row i may drop column j: only a better box can, so all on and below the diagonal is left out.
    drops = jnp.triu(overlap, k=1) & alive[:, None]

    def body(state):
        keep, _ = state
        new = alive & ~jnp.any(drops & keep[:, None], axis=0)
        return new, jnp.any(new != keep)

    keep, _ = lax.while_loop(lambda state: state[1], body, (alive, jnp.any(alive)))
    return keep
