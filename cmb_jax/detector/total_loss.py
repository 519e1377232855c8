"""Loss of the whole detector on a batch of patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.config import PROPOSAL_STRIDE, LossConfig
from cmb_jax.detector.anchor_losses import (
    UNKNOWN,
    cell_classes,
    drawn_negatives,
    focal_loss,
    hardest,
    lesion_weights,
    semantic_loss,
    smooth_l1,
)
from cmb_jax.detector.anchors import Truths, anchor_sizes, axis_centers, boxes_from_centers, encode_boxes
from cmb_jax.detector.assignment import Assignment, assign_lattice, assign_nearest, near_truths
from cmb_jax.detector.heads import CLASSES
from cmb_jax.detector.mining import MINERS, Mined, SampleBank, Samples, peaks, spread, with_remembered
from cmb_jax.detector.network import Detector, ProposalMaps

# Positive anchors per patch in the box loss: a lesion has 1 to 50, a large one up to 280. If there are ever
# more, an even choice of them is taken.
MAX_BOX_ANCHORS = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Terms of the loss before their weights, and counts; all scalars over the global batch."""

    objectness: jax.Array  # focal loss of the anchors, per positive one or per expected lesion
    box: jax.Array  # smooth L1 of the six box targets, per positive anchor
    concentration: jax.Array  # the configuration's prototype loss, per sample; 0 without one
    semantic: jax.Array  # cross-entropy of the cells' classes; 0 without a semantic head
    total: jax.Array
    positives: jax.Array  # int32
    hard_negatives: jax.Array  # int32; 0 without prototype loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What the anchors of a batch should say. B patches, M truths, S places for positives."""

    label: jax.Array  # (B, Z, Y, X, A) int8: 1 positive, 0 negative, -1 ignored
    matched: jax.Array  # (B, Z, Y, X, A) int32 truth of each positive anchor
    boxes: jax.Array  # (B, M, 6) float32, a unit box where there is padding
    chosen: jax.Array  # (B, S) int32 flat positive anchors
    chosen_valid: jax.Array  # (B, S) bool
    chosen_truth: jax.Array  # (B, S) int32
    patches: jax.Array  # () int32, those that count


def detection_loss(
    detector: Detector,
    maps: ProposalMaps,
    truths: Truths,
    mimics: jax.Array,
    spacing_mm: tuple[float, float, float],
    config: LossConfig,
    patch_valid: jax.Array | None = None,
    *,
    bank: SampleBank | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[LossTerms, Samples | None]]:
    """Objectness + weighted box + weighted prototype loss + weighted semantic loss.

    All sums run over the batch and are divided by counts over the batch. Under `jax.jit` a batch that is
    sharded over a mesh is one global array, so 1 and N devices agree.

    Args:
        detector: gives box codes, embeddings and prototypes.
        maps: what it proposed, on the grid (B, Z, Y, X) of stride (1, 2, 2).
        truths: boxes (B, M, 6) in voxels of the working grid.
        mimics: (B, Z, Y, X) uint8 on the proposal grid, not 0 where a known mimic lies.
        spacing_mm: edge lengths (z, y, x) of a voxel of the working grid.
        config: assignment thresholds and weights.
        patch_valid: (B,) bool: patches that count; all where None.
        bank: samples of earlier steps that join those of this batch in the prototype loss.
        key: for what draws random numbers: some prototype losses, and sampled negatives.

    Returns:
        The total (), and beside it its terms and the batch's samples, without gradient; no samples where
        there is no prototype loss.
    """
    # A patch has hundreds of thousands of anchors, of which lesions take a few dozen. Only the objectness
    # term looks at all of them; boxes and embeddings are computed at anchors chosen into arrays of a fixed
    # length, so that shapes stay static and a wide box head or a long embedding costs next to nothing.
    sizes = anchor_sizes(detector.config.anchor_diameters_mm, spacing_mm)
    targets = match_anchors(maps, truths, sizes, spacing_mm, config, patch_valid)
    objectness = _objectness_term(maps.objectness, targets, config, key)
    box = _box_term(detector, maps, targets, sizes)
    concentration, samples = _prototype_term(detector, maps, targets, mimics, config, bank, key)
    semantic = _semantic_term(maps.semantic, truths, mimics, patch_valid)
    total = (
        objectness
        + config.box_weight * box
        + config.concentration_weight * concentration
        + config.semantic_weight * semantic
    )
    mined = jnp.int32(0) if samples is None else (samples.valid & (samples.classes == 1)).sum(dtype=jnp.int32)
    terms = LossTerms(
        objectness=objectness,
        box=box,
        concentration=concentration,
        semantic=semantic,
        total=total,
        positives=(targets.label == 1).sum(dtype=jnp.int32),
        hard_negatives=mined,
    )
    return total, (terms, jax.lax.stop_gradient(samples))


def match_anchors(
    maps: ProposalMaps,
    truths: Truths,
    sizes: np.ndarray,
    spacing_mm: tuple[float, float, float],
    config: LossConfig,
    patch_valid: jax.Array | None,
) -> Targets:
    """First step: the label of every anchor, and the positive ones by number."""
    batch, *grid = maps.objectness.shape[:-1]
    # Padded boxes may hold anything; a unit box keeps their codes, which nothing uses, finite.
    boxes = jnp.where(truths.valid[..., None], truths.boxes, jnp.asarray([0, 0, 0, 1, 1, 1], jnp.float32))
    truths = dataclasses.replace(truths, boxes=boxes)
    # Patches hold few lesions: the loops over them end with the fullest patch of the batch.
    slots = jnp.arange(truths.valid.shape[1], dtype=jnp.int32)
    count = jnp.max(jnp.where(truths.valid, slots + 1, 0), initial=0)
    shape = (grid[0], grid[1], grid[2])
    assignment = jax.vmap(lambda truth: _matched_patch(truth, shape, sizes, spacing_mm, config, count))(
        truths
    )
    label, matched = assignment.label, assignment.matched_index
    patches = jnp.int32(batch)
    if patch_valid is not None:
        label = jnp.where(patch_valid[:, None, None, None, None], label, jnp.int8(-1))
        patches = patch_valid.sum(dtype=jnp.int32)
    # Boxes are read at positive anchors only, a few of hundreds of thousands. Shapes are static, so these are
    # gathered into a fixed number of places; what is left over is masked by `chosen_valid`.
    places = MAX_BOX_ANCHORS
    if config.assignment == "atss":  # there cannot be more positives than candidates
        places = min(places, truths.valid.shape[1] * sizes.shape[0] * config.atss_candidates)
    chosen, chosen_valid = jax.vmap(lambda flags: spread(flags, places))((label == 1).reshape(batch, -1))
    return Targets(
        label=label,
        matched=matched,
        boxes=boxes,
        chosen=chosen,
        chosen_valid=chosen_valid,
        chosen_truth=jnp.take_along_axis(matched.reshape(batch, -1), chosen, axis=1),
        patches=patches,
    )


def _matched_patch(
    truth: Truths,
    grid: tuple[int, int, int],
    sizes: np.ndarray,
    spacing_mm: tuple[float, float, float],
    config: LossConfig,
    count: jax.Array,
) -> Assignment:
    """Of one patch: positive, negative and ignored anchors, with the truth of each positive one."""
    if config.assignment == "atss":
        found = assign_nearest(truth, grid, PROPOSAL_STRIDE, sizes, spacing_mm, config.atss_candidates)
    else:
        found = assign_lattice(
            truth, grid, PROPOSAL_STRIDE, sizes, config.positive_iou, config.negative_iou, count
        )
    if not config.ignore_mm and truth.ignored is None:
        return found
    # An evaluation counts a hit some millimeters off, so an anchor that near is not background: with
    # `ignore_mm` it is left out instead of being pushed down. About truths that do not count (too faint, or
    # centered outside the patch) the anchors are left out in any case, at least where their boxes are: a
    # radius of 0 means the box itself, and one below 0 nothing at all.
    around = jnp.where(truth.counted & (config.ignore_mm == 0), -1.0, config.ignore_mm)
    around = jnp.where(truth.valid, around, -1.0)
    near = near_truths(truth.boxes, around, grid, PROPOSAL_STRIDE, spacing_mm, count)
    label = jnp.where(near[..., None] & (found.label == 0), jnp.int8(-1), found.label)
    return dataclasses.replace(found, label=label)


def _objectness_term(
    logits: jax.Array, targets: Targets, config: LossConfig, key: jax.Array | None
) -> jax.Array:
    """Second step: focal loss (), of all anchors or of the positives and some negatives."""
    batch = logits.shape[0]
    positive, negative = targets.label == 1, targets.label == 0
    if config.sampled_negatives:
        if key is None:
            raise ValueError("loss.sampled_negatives draws random numbers: give a key")
        if config.negative_pool:
            negative = hardest(negative, logits, config.negative_pool * config.sampled_negatives)
        negative = drawn_negatives(key, negative, config.sampled_negatives)
    elements = focal_loss(logits, positive, positive | negative, config.focal_alpha, config.focal_gamma)
    total = elements.sum()
    if config.lesion_balance:
        # The dense sum holds every positive with weight 1 already: added is how far its weight is from that.
        # Only the few positives are weighed; weights of all anchors would be one more map to write.
        weights = lesion_weights(
            targets.chosen_truth,
            targets.chosen_valid,
            targets.boxes.shape[1],
            config.lesion_balance,
            mean_one=not config.expected_lesions,
        )
        own = jnp.take_along_axis(logits.reshape(batch, -1), targets.chosen, axis=1)
        valid = targets.chosen_valid
        total += (
            (weights - 1.0) * focal_loss(own, valid, valid, config.focal_alpha, config.focal_gamma)
        ).sum()
    # Divided by the batch's positives, the weight of a negative changes tenfold from batch to batch: one
    # large lesion makes all of them count little. With `expected_lesions` it is always the same, and a lesion
    # of n anchors weighs n^(1 - lesion_balance) whatever the others are.
    if config.expected_lesions:
        return total / (config.expected_lesions * jnp.maximum(targets.patches, 1))
    return total / jnp.maximum(positive.sum(dtype=jnp.int32), 1)


def _box_term(detector: Detector, maps: ProposalMaps, targets: Targets, sizes: np.ndarray) -> jax.Array:
    """Third step: smooth L1 () of the positive anchors' box codes."""
    # The box head is run at these anchors alone (`detector.box_codes`), not over the whole grid: that is what
    # makes a wide one affordable. Codes are relative to the anchor's size, so that errors of small and large
    # lesions compare.
    own = jnp.take_along_axis(targets.boxes, targets.chosen_truth[..., None], axis=1)
    target = encode_boxes(anchors_at(targets.chosen, maps.objectness.shape[1:4], sizes), own)
    codes = detector.box_codes(maps.box_input, targets.chosen)
    errors = jnp.where(targets.chosen_valid[..., None], smooth_l1(codes, target), 0.0)
    return errors.sum() / jnp.maximum(targets.chosen_valid.sum(), 1)


def _prototype_term(
    detector: Detector,
    maps: ProposalMaps,
    targets: Targets,
    mimics: jax.Array,
    config: LossConfig,
    bank: SampleBank | None,
    key: jax.Array | None,
) -> tuple[jax.Array, Samples | None]:
    """Fourth step: the configuration's prototype loss () of mined samples; 0 and None without one."""
    if config.prototype is None or not detector.config.use_prototypes:
        return jnp.float32(0), None
    samples = _mined_samples(detector, maps, targets, mimics, config)
    joined = with_remembered(samples, bank)
    prototypes = detector.prototypes[...]
    if config.prototype_update == "moving_average":
        prototypes = jax.lax.stop_gradient(prototypes)
    losses = config.prototype(joined.embeddings, joined.classes, joined.valid, prototypes, key)
    # Most terms of a plain mean are negatives, and most positives belong to the largest lesions. Balanced,
    # each class that is present has the same weight, and so has each lesion of a patch among the microbleeds.
    if not config.prototype_balance:
        return losses.sum() / jnp.maximum(joined.valid.sum(), 1), samples
    share = jax.nn.one_hot(joined.classes, CLASSES) * (joined.weights * joined.valid)[:, None]  # (S, classes)
    whole = share.sum(axis=0)
    means = (share * losses[:, None]).sum(axis=0) / jnp.maximum(whole, 1e-9)
    return means.sum() / jnp.maximum((whole > 0).sum(), 1), samples


def _mined_samples(
    detector: Detector, maps: ProposalMaps, targets: Targets, mimics: jax.Array, config: LossConfig
) -> Samples:
    """Positives and hard negatives of each patch, embedded; a positive weighs 1 / (those of its lesion)."""
    batch = maps.objectness.shape[0]
    mined = mine_anchors(maps, targets, mimics, config)
    embeddings = embed_anchors(detector, maps, mined.indices)
    truth = jnp.take_along_axis(targets.matched.reshape(batch, -1), mined.indices, axis=1)
    found = mined.valid & (mined.classes == 0)
    of_lesion = lesion_weights(truth, found, targets.boxes.shape[1], 1.0, mean_one=False)
    return Samples(
        embeddings=embeddings.reshape(-1, embeddings.shape[-1]),
        classes=mined.classes.reshape(-1),
        valid=mined.valid.reshape(-1),
        weights=jnp.where(found, of_lesion, 1.0).reshape(-1),
    )


def mine_anchors(maps: ProposalMaps, targets: Targets, mimics: jax.Array, config: LossConfig) -> Mined:
    """The anchors (B, S) that the configuration's miner takes from each patch."""
    batch = maps.objectness.shape[0]
    label = targets.label
    if config.mine_peaks:
        negative = label == 0
        label = jnp.where(negative & ~peaks(negative, maps.objectness), jnp.int8(-1), label)
    # Embeddings are made at the mined anchors alone, a static number per patch, so that prototype learning
    # costs next to nothing. The choice itself carries no gradient; the embeddings that are read there do.
    miner = MINERS[config.miner]
    on_mimic = jnp.broadcast_to((mimics != 0)[..., None], maps.objectness.shape)
    return jax.vmap(lambda o, c, m: miner(o, c, m, config.max_positives, config.max_hard_negatives))(
        maps.objectness.reshape(batch, -1), label.reshape(batch, -1), on_mimic.reshape(batch, -1)
    )


def embed_anchors(detector: Detector, maps: ProposalMaps, indices: jax.Array) -> jax.Array:
    """Embeddings (B, S, E) of flat anchors (B, S)."""
    batch, *_, anchors = maps.objectness.shape
    rows = maps.features.reshape(batch, -1, maps.features.shape[-1])
    cells = jnp.take_along_axis(rows, (indices // anchors)[..., None], axis=1)
    return detector.embed(cells, indices % anchors)


def _semantic_term(
    logits: jax.Array | None, truths: Truths, mimics: jax.Array, patch_valid: jax.Array | None
) -> jax.Array:
    """Fifth step: cross-entropy () of the cells' classes; 0 without a semantic head."""
    if logits is None:
        return jnp.float32(0)
    classes = cell_classes(truths, mimics, PROPOSAL_STRIDE)
    if patch_valid is not None:
        classes = jnp.where(patch_valid[:, None, None, None], classes, jnp.int8(UNKNOWN))
    return semantic_loss(logits, classes)


def anchors_at(anchor: jax.Array, grid: tuple[int, ...], sizes: np.ndarray) -> jax.Array:
    """Anchor boxes (..., 6) of flat anchor numbers (...,) on a grid of cells."""
    size = jnp.asarray(sizes)
    cell = jnp.unravel_index(anchor // size.shape[0], grid)
    centers = [
        axis_centers(cells, stride)[index]
        for cells, stride, index in zip(grid, PROPOSAL_STRIDE, cell, strict=True)
    ]
    return boxes_from_centers(jnp.stack(centers, axis=-1), size[anchor % size.shape[0]])
