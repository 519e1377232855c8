"""Which anchors are positive, which negative, and which are left out of the loss.

Anchors lie on a lattice, so an overlap with a truth is a product of three one-dimensional overlaps, and no
list of anchor boxes is ever made: memory is one float and one index per anchor for any number of truths.
Two rules choose the positives: overlap (`assign_lattice`) or the nearest anchors (`assign_nearest`).
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmb_jax.detector.anchors import (
    Triple,
    Truths,
    axis_centers,
    box_centers,
    product_of_axes,
    safe_iou,
    volume,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """Label and truth of every anchor of one patch; A anchors per cell."""

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
    that every truth that overlaps the lattice has a positive of its own. Padded and ignored truths change
    nothing.

    Args:
      truths: boxes (M, 6) in voxels of the working grid and `valid` (M,).
      grid_shape: cells (Z, Y, X) of the patch.
      stride: working-grid voxels per cell along (z, y, x).
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
    # First every anchor gets its best truth, by a loop over truths with one map in memory: lesions are few
    # and anchors are many. Then every truth claims an anchor of its own, since small lesions reach no
    # threshold anywhere. A claim is found among some candidates per truth (`_forced_anchors`), not by a
    # second pass over all anchors, and written last, because it wins over the thresholds and over other
    # truths.
    # Padding may hold anything, so its boxes are emptied: an empty box overlaps nothing.
    boxes = jnp.where(truths.counted[:, None], truths.boxes.astype(jnp.float32), 0)
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


@functools.partial(jax.jit, static_argnames=("grid_shape", "stride", "spacing_mm", "candidates"))
def assign_nearest(
    truths: Truths,
    grid_shape: Triple,
    stride: Triple,
    sizes: jax.Array | np.ndarray,
    spacing_mm: tuple[float, float, float],
    candidates: int = 4,
) -> Assignment:
    """Labels every anchor of one patch by adaptive training sample selection (ATSS: Zhang et al. 2020).

    As in nnDetection: of each anchor size the `candidates` anchors whose centers are nearest to the truth's
    (ties: the lower cell) are its candidates, whether or not their centers lie in it. Those whose IoU is at
    least the mean plus the standard deviation (n - 1) of its candidates' are positive; so is the best one,
    always. An anchor that several truths want goes to the one of the highest IoU (ties: the lower index). All
    other anchors are negative. A lesion thus has one to a few positives, whatever its size.

    Args:
      truths: boxes (M, 6) in voxels of the working grid, of which `counted` ones count.
      grid_shape: cells (Z, Y, X) of the patch.
      stride: working-grid voxels per cell along (z, y, x).
      sizes: (A, 3) edge lengths of the anchors, voxels.
      spacing_mm: edge lengths of a working-grid voxel, for distances.
      candidates: of each anchor size.
    """
    chex.assert_shape(truths.boxes, (None, 6))
    chex.assert_shape(sizes, (None, 3))
    sizes = jnp.asarray(sizes, jnp.float32)
    # Everything is computed at K candidate cells of each truth, (M, A, K), and scattered to the patch's
    # anchors at the end: twice, because scattering has no order. The first time the highest IoU of each
    # anchor wins, the second time the lowest index among the truths that have it.
    count, anchors = truths.boxes.shape[0], sizes.shape[0]
    boxes = jnp.where(truths.valid[:, None], truths.boxes.astype(jnp.float32), 0)
    cells = _nearest_cells(box_centers(boxes), grid_shape, stride, spacing_mm, candidates)  # (M, K)
    index = jnp.unravel_index(cells, grid_shape)
    overlaps = []
    for axis in range(3):
        center = axis_centers(grid_shape[axis], stride[axis])[index[axis]][:, None]  # (M, 1, K)
        half = 0.5 * sizes[None, :, axis, None]
        near, far = boxes[:, axis, None, None], boxes[:, axis + 3, None, None]
        overlaps.append(jnp.maximum(jnp.minimum(far, center + half) - jnp.maximum(near, center - half), 0))
    intersection = overlaps[0] * overlaps[1] * overlaps[2]
    iou = safe_iou(intersection, product_of_axes(sizes)[:, None], volume(boxes)[:, None, None])  # (M, A, K)
    spread = jnp.std(iou, axis=(1, 2), keepdims=True, ddof=1)
    best = jnp.max(iou, axis=(1, 2), keepdims=True)
    # A single candidate that fits far better than the others can lie below mean plus deviation; it is
    # positive all the same, so that no truth is left without one.
    threshold = jnp.minimum(jnp.mean(iou, axis=(1, 2), keepdims=True) + spread, best)
    positive = (iou >= threshold) & (iou > 0) & truths.counted[:, None, None]
    # Scattered twice over all anchors: the highest IoU that any truth has there, then the lowest number among
    # the truths that have it. A scatter of maxima, unlike one of values, does not depend on its order.
    flat = cells[:, None] * anchors + jnp.arange(anchors, dtype=cells.dtype)[:, None]
    highest = jnp.zeros((*grid_shape, anchors), jnp.float32).reshape(-1)
    highest = highest.at[flat].max(jnp.where(positive, iou, 0))
    wins = positive & (iou == highest[flat])
    number = jnp.arange(count, dtype=jnp.int32)[:, None, None]
    matched = jnp.full(highest.shape, count, jnp.int32).at[flat].min(jnp.where(wins, number, count))
    shape = (*grid_shape, anchors)
    return Assignment(
        label=(matched < count).astype(jnp.int8).reshape(shape),
        matched_index=jnp.where(matched < count, matched, 0).reshape(shape),
    )


def near_truths(
    boxes: jax.Array,
    radius_mm: jax.Array,
    grid_shape: Triple,
    stride: Triple,
    spacing_mm: tuple[float, float, float],
    count: jax.Array,
) -> jax.Array:
    """Cells (Z, Y, X) bool whose centers lie within a box or at most its radius (M,) away from it.

    A negative radius has no cells; only the first `count` boxes (M, 6) are looked at.
    """
    parts = []
    for axis in range(3):
        centers = axis_centers(grid_shape[axis], stride[axis])
        outside = jnp.maximum(boxes[:, axis, None] - centers, centers - boxes[:, axis + 3, None])
        parts.append(jnp.square(jnp.maximum(outside, 0) * spacing_mm[axis]))
    return _any_below(parts, jnp.where(radius_mm < 0, -1.0, jnp.square(radius_mm)), count)


def inside_truths(
    boxes: jax.Array, counts: jax.Array, grid_shape: Triple, stride: Triple, count: jax.Array
) -> jax.Array:
    """Cells (Z, Y, X) bool whose centers lie in the ellipsoid of one of the boxes (M, 6) that count (M,)."""
    parts = []
    for axis in range(3):
        near, far = boxes[:, axis, None], boxes[:, axis + 3, None]
        centers = axis_centers(grid_shape[axis], stride[axis])
        parts.append(jnp.square((centers - (near + far) / 2) / jnp.maximum((far - near) / 2, 1e-6)))
    return _any_below(parts, jnp.where(counts, 1.0, -1.0), count)


def _any_below(parts: list[jax.Array], limit: jax.Array, count: jax.Array) -> jax.Array:
    """Where the sum of three terms (M, Z), (M, Y), (M, X) is at most the limit (M,), for any m < count."""
    start = jnp.zeros(tuple(part.shape[1] for part in parts), bool)

    def step(number: jax.Array, found: jax.Array) -> jax.Array:
        z, y, x = (lax.dynamic_index_in_dim(part, number, keepdims=False) for part in parts)
        return found | (z[:, None, None] + y[:, None] + x <= limit[number])

    return lax.fori_loop(0, count, step, start)


def _nearest_cells(
    centers: jax.Array,
    grid_shape: Triple,
    stride: Triple,
    spacing_mm: tuple[float, float, float],
    wanted: int,
) -> jax.Array:
    """Flat cells (M, K) nearest to points (M, 3), the nearest first; ties: the lower cell.

    With cells ranked by their distance along each axis, the nearest K have ranks whose product is at most K
    (`_rank_triples`): a cell of ranks (i, j, k) has i*j*k - 1 cells that are no farther.
    """
    ranks = _rank_triples(wanted, grid_shape)  # (R, 3)
    # Squared distances add up over the axes, so that each axis is ranked by itself and the sums are taken for
    # the few triples of ranks alone. Sorting by (distance, cell) settles ties.
    distance, cell = jnp.float32(0), jnp.int32(0)
    for axis, cells in enumerate(grid_shape):
        away = (axis_centers(cells, stride[axis]) - centers[:, axis, None]) * spacing_mm[axis]
        value, where = lax.top_k(-jnp.square(away), min(wanted, cells))  # ties: the lower index first
        distance = distance - value[:, ranks[:, axis]]
        cell = cell * cells + where[:, ranks[:, axis]].astype(jnp.int32)
    _, nearest = lax.sort((distance, cell), num_keys=2)
    return nearest[:, :wanted]


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
