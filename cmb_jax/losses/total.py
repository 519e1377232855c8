"""Loss of the whole detector on a batch of patches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.boxes.anchors import lattice_anchors
from cmb_jax.boxes.assignment import Assignment, assign_lattice
from cmb_jax.boxes.coder import encode_boxes
from cmb_jax.boxes.types import Truths
from cmb_jax.config import LossConfig
from cmb_jax.losses.detection import focal_loss, smooth_l1
from cmb_jax.losses.mining import mine
from cmb_jax.losses.prototype import concentration_loss
from cmb_jax.models.detector import STEM_STRIDE, Detector
from cmb_jax.models.types import ProposalMaps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Terms of the loss before their weights, and counts; all scalars over the global batch."""

    objectness: jax.Array  # focal loss a positive anchor
    box: jax.Array  # smooth L1 of the six box targets a positive anchor
    concentration: jax.Array  # a mined anchor; 0 without prototypes
    total: jax.Array
    positives: jax.Array  # int32
    hard_negatives: jax.Array  # int32; 0 without prototypes


def detection_loss(
    detector: Detector,
    maps: ProposalMaps,
    truths: Truths,
    mimics: jax.Array,
    sizes: jax.Array | np.ndarray,
    config: LossConfig,
    patch_valid: jax.Array | None = None,
) -> tuple[jax.Array, LossTerms]:
    """Objectness + weighted box + weighted concentration loss.

    All sums are plain reductions over the batch and are divided by counts over the batch. Under `jax.jit` a
    batch that is sharded over a mesh is one global array, so 1 and N devices agree.

    Args:
        detector: gives embeddings and prototypes.
        maps: what it proposed, on the grid (B, Z, Y, X) of stride (1, 2, 2).
        truths: boxes (B, M, 6) in voxels of the working grid.
        mimics: (B, Z, Y, X) uint8 on the proposal grid, not 0 where a known mimic lies.
        sizes: (A, 3) edge lengths of the anchors in voxels of the working grid.
        config: assignment thresholds and weights.
        patch_valid: (B,) bool: patches that count; all where None.

    Returns:
        The total () and its terms.
    """
    grid = maps.objectness.shape[1:4]
    # Padded boxes may hold anything; a unit box keeps their codes, which nothing uses, finite.
    boxes = jnp.where(truths.valid[..., None], truths.boxes, jnp.asarray([0, 0, 0, 1, 1, 1], jnp.float32))
    assignment = jax.vmap(
        lambda truth: assign_lattice(
            truth, grid, STEM_STRIDE, sizes, config.positive_iou, config.negative_iou
        )
    )(Truths(boxes=boxes, valid=truths.valid))
    label = assignment.label
    if patch_valid is not None:
        label = jnp.where(patch_valid[:, None, None, None, None], label, jnp.int8(-1))

    positive = label == 1
    positives = positive.sum(dtype=jnp.int32)
    per_positive = 1.0 / jnp.maximum(positives, 1)
    elements = focal_loss(maps.objectness, positive, label >= 0, config.focal_alpha, config.focal_gamma)
    objectness = elements.sum() * per_positive
    box = _box_errors(maps, assignment, boxes, positive, sizes).sum() * per_positive
    total = objectness + config.box_weight * box
    concentration, hard_negatives = jnp.float32(0), jnp.int32(0)
    if detector.config.use_prototypes:
        concentration, hard_negatives = _concentration(detector, maps, label, mimics, config)
        total = total + config.concentration_weight * concentration
    return total, LossTerms(
        objectness=objectness,
        box=box,
        concentration=concentration,
        total=total,
        positives=positives,
        hard_negatives=hard_negatives,
    )


def _box_errors(
    maps: ProposalMaps,
    assignment: Assignment,
    boxes: jax.Array,
    positive: jax.Array,
    sizes: jax.Array | np.ndarray,
) -> jax.Array:
    """Smooth L1 of the box code of every anchor, 0 where it is not positive: (B, Z, Y, X, A, 6)."""
    batch, *grid, anchors_a_cell = positive.shape
    anchors = lattice_anchors((grid[0], grid[1], grid[2]), STEM_STRIDE, sizes)  # (Z, Y, X, A, 6)
    matched = assignment.matched_index.reshape(batch, -1, 1)
    own = jnp.take_along_axis(boxes, matched, axis=1).reshape(batch, *grid, anchors_a_cell, 6)
    target = encode_boxes(anchors[None], own)
    return jnp.where(positive[..., None], smooth_l1(maps.deltas, target), 0.0)


def _concentration(
    detector: Detector, maps: ProposalMaps, label: jax.Array, mimics: jax.Array, config: LossConfig
) -> tuple[jax.Array, jax.Array]:
    """Mean concentration loss over all mined anchors of the batch, and the number of hard negatives."""
    batch, anchors = label.shape[0], label.shape[-1]
    on_mimic = jnp.broadcast_to((mimics != 0)[..., None], label.shape)
    mined = jax.vmap(lambda o, c, m: mine(o, c, m, config.max_positives, config.max_hard_negatives))(
        maps.objectness.reshape(batch, -1), label.reshape(batch, -1), on_mimic.reshape(batch, -1)
    )
    features = maps.features.reshape(batch, -1, maps.features.shape[-1])
    cells = jnp.take_along_axis(features, (mined.indices // anchors)[..., None], axis=1)
    embeddings = detector.embed(cells, mined.indices % anchors)  # (B, S, E)
    samples = concentration_loss(
        embeddings.reshape(-1, embeddings.shape[-1]),
        mined.classes.reshape(-1),
        mined.valid.reshape(-1),
        detector.prototypes[...],
        config.prototype_gamma,
        config.prototype_pull,
    )
    mean = samples.sum() / jnp.maximum(mined.valid.sum(), 1)
    return mean, (mined.valid & (mined.classes == 1)).sum(dtype=jnp.int32)
