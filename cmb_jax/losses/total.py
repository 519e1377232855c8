"""Loss of the whole detector on a batch of patches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.boxes.anchors import axis_centers
from cmb_jax.boxes.assignment import assign_lattice
from cmb_jax.boxes.coder import encode_boxes
from cmb_jax.boxes.geometry import boxes_from_centers
from cmb_jax.boxes.types import Truths
from cmb_jax.config import LossConfig
from cmb_jax.losses.detection import focal_loss, smooth_l1
from cmb_jax.losses.memory import SampleBank, Samples, with_remembered
from cmb_jax.losses.mining import MINERS, spread
from cmb_jax.losses.objectness import drawn_negatives, lesion_weights
from cmb_jax.losses.registry import NONE, prototype_loss
from cmb_jax.models.detector import STEM_STRIDE, Detector
from cmb_jax.models.types import ProposalMaps

# Positive anchors a patch in the box loss: a lesion has 1 to 50, a large one up to 280. Should there ever be
# more, an even choice of them is taken.
MAX_BOX_ANCHORS = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Terms of the loss before their weights, and counts; all scalars over the global batch."""

    objectness: jax.Array  # focal loss of all anchors, a positive one
    box: jax.Array  # smooth L1 of the six box targets, a positive anchor
    concentration: jax.Array  # the prototype loss that the configuration names, a sample; 0 without one
    total: jax.Array
    positives: jax.Array  # int32
    hard_negatives: jax.Array  # int32; 0 without prototype loss


def detection_loss(
    detector: Detector,
    maps: ProposalMaps,
    truths: Truths,
    mimics: jax.Array,
    sizes: jax.Array | np.ndarray,
    config: LossConfig,
    patch_valid: jax.Array | None = None,
    *,
    bank: SampleBank | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[LossTerms, Samples | None]]:
    """Objectness + weighted box + weighted prototype loss.

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
        bank: samples of earlier steps that join those of this batch in the prototype loss.
        key: for what draws random numbers: some prototype losses, and sampled negatives.

    Returns:
        The total (), and beside it its terms and the batch's samples, without gradient; no samples where
        there is no prototype loss.
    """
    batch, *grid, anchors = maps.objectness.shape
    # Padded boxes may hold anything; a unit box keeps their codes, which nothing uses, finite.
    boxes = jnp.where(truths.valid[..., None], truths.boxes, jnp.asarray([0, 0, 0, 1, 1, 1], jnp.float32))
    # Patches hold few lesions: the loop over them ends with the fullest patch of the batch.
    slots = jnp.arange(truths.valid.shape[1], dtype=jnp.int32)
    count = jnp.max(jnp.where(truths.valid, slots + 1, 0), initial=0)
    assignment = jax.vmap(
        lambda truth: assign_lattice(
            truth,
            (grid[0], grid[1], grid[2]),
            STEM_STRIDE,
            sizes,
            config.positive_iou,
            config.negative_iou,
            count,
        )
    )(Truths(boxes=boxes, valid=truths.valid))
    label = assignment.label
    if patch_valid is not None:
        label = jnp.where(patch_valid[:, None, None, None, None], label, jnp.int8(-1))

    positive = label == 1
    positives = positive.sum(dtype=jnp.int32)
    counted = label >= 0
    if config.sampled_negatives:
        counted = positive | drawn_negatives(_required_key(key), label == 0, config.sampled_negatives)
    elements = focal_loss(maps.objectness, positive, counted, config.focal_alpha, config.focal_gamma)
    objectness = elements.sum()

    label = label.reshape(batch, -1)
    chosen, chosen_valid = jax.vmap(lambda flags: spread(flags, MAX_BOX_ANCHORS))(label == 1)
    matched = jnp.take_along_axis(assignment.matched_index.reshape(batch, -1), chosen, axis=1)
    if config.lesion_balance:
        # The dense sum holds every positive with weight 1 already.
        more = lesion_weights(matched, chosen_valid, boxes.shape[1], config.lesion_balance) - 1.0
        logits = jnp.take_along_axis(maps.objectness.reshape(batch, -1), chosen, axis=1)
        found = focal_loss(logits, chosen_valid, chosen_valid, config.focal_alpha, config.focal_gamma)
        objectness += (more * found).sum()
    objectness /= jnp.maximum(positives, 1)
    own = jnp.take_along_axis(boxes, matched[..., None], axis=1)
    target = encode_boxes(_anchors_at(chosen, grid, sizes), own)

    concentration, hard_negatives, samples = jnp.float32(0), jnp.int32(0), None
    if not has_prototype_loss(detector, config):
        codes = detector.box_codes(_cells(maps, chosen), chosen % anchors)
    else:
        miner = MINERS[config.miner]
        on_mimic = jnp.broadcast_to((mimics != 0)[..., None], maps.objectness.shape)
        mined = jax.vmap(lambda o, c, m: miner(o, c, m, config.max_positives, config.max_hard_negatives))(
            maps.objectness.reshape(batch, -1), label, on_mimic.reshape(batch, -1)
        )
        # One gather for both losses: its gradient is a scatter into the largest map of the network.
        cells = _cells(maps, jnp.concatenate([chosen, mined.indices], axis=1))
        codes = detector.box_codes(cells[:, :MAX_BOX_ANCHORS], chosen % anchors)
        embeddings = detector.embed(cells[:, MAX_BOX_ANCHORS:], mined.indices % anchors)
        samples = Samples(
            embeddings=embeddings.reshape(-1, embeddings.shape[-1]),
            classes=mined.classes.reshape(-1),
            valid=mined.valid.reshape(-1),
        )
        concentration = _prototype_term(detector, with_remembered(samples, bank), config, key)
        hard_negatives = (mined.valid & (mined.classes == 1)).sum(dtype=jnp.int32)
    errors = jnp.where(chosen_valid[..., None], smooth_l1(codes, target), 0.0)
    box = errors.sum() / jnp.maximum(chosen_valid.sum(), 1)
    total = objectness + config.box_weight * box + config.concentration_weight * concentration
    terms = LossTerms(
        objectness=objectness,
        box=box,
        concentration=concentration,
        total=total,
        positives=positives,
        hard_negatives=hard_negatives,
    )
    return total, (terms, jax.lax.stop_gradient(samples))


def has_prototype_loss(detector: Detector, config: LossConfig) -> bool:
    """Whether anchors are mined and embedded at all."""
    return detector.config.use_prototypes and config.prototype_loss != NONE


def _prototype_term(
    detector: Detector, samples: Samples, config: LossConfig, key: jax.Array | None
) -> jax.Array:
    """Mean () of the configuration's prototype loss over the valid samples."""
    prototypes = detector.prototypes[...]
    if config.prototype_update == "moving_average":
        prototypes = jax.lax.stop_gradient(prototypes)
    losses = prototype_loss(config)(samples.embeddings, samples.classes, samples.valid, prototypes, key)
    return losses.sum() / jnp.maximum(samples.valid.sum(), 1)


def _required_key(key: jax.Array | None) -> jax.Array:
    """The key, which `loss.sampled_negatives` cannot do without."""
    if key is None:
        raise ValueError("loss.sampled_negatives draws random numbers: give a key")
    return key


def _cells(maps: ProposalMaps, anchor: jax.Array) -> jax.Array:
    """Features (B, S, C) of the cells of anchors (B, S)."""
    features = maps.features.reshape(anchor.shape[0], -1, maps.features.shape[-1])
    return jnp.take_along_axis(features, (anchor // maps.objectness.shape[-1])[..., None], axis=1)


def _anchors_at(anchor: jax.Array, grid: list[int], sizes: jax.Array | np.ndarray) -> jax.Array:
    """Anchor boxes (..., 6) of flat anchor numbers (...,) on a grid of cells."""
    size = jnp.asarray(sizes)
    cell = jnp.unravel_index(anchor // size.shape[0], tuple(grid))
    centers = [
        axis_centers(cells, stride)[index]
        for cells, stride, index in zip(grid, STEM_STRIDE, cell, strict=True)
    ]
    return boxes_from_centers(jnp.stack(centers, axis=-1), size[anchor % size.shape[0]])
