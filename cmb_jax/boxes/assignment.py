"""Which anchors stand for a lesion, which for background, and which are left out of the loss.

Anchors lie on a lattice, so an overlap with a truth is a product of three one-dimensional overlaps, and no
list of anchor boxes is ever made: memory is one float and one index an anchor, whatever the number of truths.
"""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmb_jax.boxes.anchors import Triple, axis_centers
from cmb_jax.boxes.geometry import product_of_axes, safe_iou, volume
from cmb_jax.boxes.types import Truths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """The part every anchor of one patch plays; A anchors a cell."""

    label: jax.Array  # (Z, Y, X, A) int8: 1 positive, 0 negative, -1 ignored
    matched_index: jax.Array  # (Z, Y, X, A) int32 index of the truth; meaningful where label is 1, else safe


@functools.partial(jax.jit, static_argnames=("grid_shape", "stride"))
def assign_lattice(
    truths: Truths,
    grid_shape: Triple,
    stride: Triple,
    sizes: jax.Array | np.ndarray,
    positive_iou: float | jax.Array,
    negative_iou: float | jax.Array,
    count: jax.Array | None = None,
) -> Assignment:
    """Labels every anchor of one patch. Map it over a batch with `jax.vmap`.

    An anchor is positive when its IoU with its best truth (ties: the lower index) is at least `positive_iou`,
    negative when it is below `negative_iou`, and ignored between them. Besides, every valid truth, in the
    order of its index, makes its best anchor positive, however small the IoU; ties go to the lower index in
    (z, y, x, anchor) order. Where an earlier truth has taken that anchor already, the next best is taken, so
    that every truth that overlaps the lattice has a positive of its own. Padded truths change nothing.

    Args:
      truths: boxes (M, 6) in voxels of the working grid and `valid` (M,).
      grid_shape: cells (Z, Y, X) of the patch.
      stride: working-grid voxels a cell along (z, y, x).
      sizes: (A, 3) edge lengths of the anchors, voxels.
      positive_iou: an IoU at or above it makes a positive.
      negative_iou: an IoU below it with every truth makes a negative.
      count: () int32: truths from this index on are all padding, and no time is spent on them; all are looked
        at where None. Under `jax.vmap` let one count serve the whole batch.
    """
    chex.assert_shape(truths.boxes, (None, 6))
    chex.assert_shape(truths.valid, (truths.boxes.shape[0],))
    chex.assert_shape(sizes, (None, 3))
    sizes = jnp.asarray(sizes, jnp.float32)
    boxes = jnp.where(truths.valid[:, None], truths.boxes.astype(jnp.float32), 0)  # padding may hold anything
    anchor_volume = product_of_axes(sizes)
    overlaps = [  # each (M, A, cells)
        _axis_overlap(boxes[:, axis], boxes[:, axis + 3], sizes[:, axis], grid_shape[axis], stride[axis])
        for axis in range(3)
    ]
    count = jnp.int32(boxes.shape[0]) if count is None else count
    best_iou, matched = _best_truth(overlaps, volume(boxes), anchor_volume, count)
    label = jnp.where(best_iou >= positive_iou, 1, jnp.where(best_iou < negative_iou, 0, -1)).astype(jnp.int8)
    forced = _forced_anchors(overlaps, volume(boxes), anchor_volume)  # (M,) flat index, or the anchor count
    label = label.reshape(-1).at[forced].set(1, mode="drop")
    matched = matched.reshape(-1).at[forced].set(jnp.arange(forced.shape[0], dtype=jnp.int32), mode="drop")
    shape = (*grid_shape, sizes.shape[0])
    return Assignment(label=label.reshape(shape), matched_index=matched.reshape(shape))


def _axis_overlap(near: jax.Array, far: jax.Array, sizes: jax.Array, cells: int, stride: int) -> jax.Array:
    """Overlap (M, A, cells) along one axis of truths near..far (M,) with anchors of sizes (A,)."""
    centers = axis_centers(cells, stride)[None, None, :]
    half = 0.5 * sizes[None, :, None]
    return jnp.maximum(
        jnp.minimum(far[:, None, None], centers + half) - jnp.maximum(near[:, None, None], centers - half), 0
    )


def _best_truth(
    overlaps: list[jax.Array], truth_volume: jax.Array, anchor_volume: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Highest IoU of every anchor over the first truths and the truth's index, both (Z, Y, X, A)."""
    z, y, x = (overlap.shape[-1] for overlap in overlaps)
    anchors = anchor_volume.shape[0]

    def step(number, carry):
        best, index = carry
        oz, oy, ox = (lax.dynamic_index_in_dim(overlap, number, keepdims=False) for overlap in overlaps)
        # Anchors lead and x is innermost here, so that the processor's vector units run along x.
        inter = oz[:, :, None, None] * oy[:, None, :, None] * ox[:, None, None, :]
        iou = safe_iou(inter, anchor_volume[:, None, None, None], truth_volume[number])
        better = iou > best
        return (jnp.where(better, iou, best), jnp.where(better, number, index))

    start = (jnp.zeros((anchors, z, y, x), jnp.float32), jnp.zeros((anchors, z, y, x), jnp.int32))
    best, index = lax.fori_loop(0, count, step, start)
    return jnp.moveaxis(best, 0, -1), jnp.moveaxis(index, 0, -1)


def _forced_anchors(
    overlaps: list[jax.Array], truth_volume: jax.Array, anchor_volume: jax.Array
) -> jax.Array:
    """The flat anchor index that each truth claims (M,); the number of anchors where it claims none.

    For one anchor size the IoU grows with each axis' overlap. So with cells ranked along each axis, a cell of
    ranks (i, j, k), counted from 1, has i*j*k - 1 cells that are no worse, and the best M anchors of a truth
    are all among those with i*j*k <= M. At most M - 1 are taken by others: the next best free one is there.
    """
    truths, anchors = truth_volume.shape[0], anchor_volume.shape[0]
    z, y, x = (overlap.shape[-1] for overlap in overlaps)
    ranks = _rank_triples(truths, (z, y, x))  # (R, 3)
    values, cells = [], []
    for axis, overlap in enumerate(overlaps):
        depth = min(truths, overlap.shape[-1])
        top, where = lax.top_k(overlap, depth)  # ties: the lower index first
        values.append(top[..., ranks[:, axis]])
        cells.append(where[..., ranks[:, axis]])
    iou = safe_iou(values[0] * values[1] * values[2], anchor_volume[:, None], truth_volume[:, None, None])
    cell = (cells[0] * y + cells[1]) * x + cells[2]
    flat = cell * anchors + jnp.arange(anchors, dtype=cell.dtype)[:, None]  # (M, A, R)
    none = z * y * x * anchors

    def step(taken, truth):
        number, iou_of, flat_of = truth
        free = (iou_of > 0) & ~jnp.any(flat_of[:, None] == taken, axis=-1)
        best = jnp.max(jnp.where(free, iou_of, 0))
        claim = jnp.min(jnp.where(free & (iou_of == best), flat_of, none))
        return taken.at[number].set(claim), None

    start = jnp.full((truths,), none, flat.dtype)
    taken, _ = lax.scan(step, start, (jnp.arange(truths), iou.reshape(truths, -1), flat.reshape(truths, -1)))
    return taken


def _rank_triples(count: int, shape: Triple) -> np.ndarray:
    """All (i, j, k) counted from 0 within `shape` with (i+1)(j+1)(k+1) <= count, (R, 3) int32."""
    depth = [np.arange(1, min(count, cells) + 1) for cells in shape]
    product = depth[0][:, None, None] * depth[1][:, None] * depth[2]
    return np.argwhere(product <= count).astype(np.int32)
