"""Which anchors enter the box and prototype losses, and what the latter carries from step to step.

Carried are moving prototypes and a bank of earlier samples. Both are updated after the gradient, from the
samples of the global batch, and are plain functions of arrays, so that a sharded step gives what one device
gives. All shapes are static.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from cmb_jax.detector.prototype_losses import squared_distances
from cmb_jax.ops.top import top_k

# Flags are counted in rows: a running sum over rows is far cheaper than one over all flags.
_ROW = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mined:
    """Chosen anchors of one patch: positives, then hard negatives; S = both maxima together."""

    indices: jax.Array  # (S,) int32 into the patch's anchors
    classes: jax.Array  # (S,) int32: 0 = CMB, 1 = mimic
    valid: jax.Array  # (S,) bool


Miner = Callable[[jax.Array, jax.Array, jax.Array, int, int], Mined]
"""Chooses the samples of one patch; pure, static shapes. Map it over a batch with `jax.vmap`.

(objectness (N,) logits, label (N,) 1 positive, 0 negative, -1 ignored, mimic (N,) bool: the anchor's cell
holds a known mimic, max_positives, max_negatives) -> `Mined`. No gradient flows through the choice.
"""


def mimics_first(
    objectness: jax.Array, label: jax.Array, mimic: jax.Array, max_positives: int, max_negatives: int
) -> Mined:
    """Negatives on known mimics come first, then all others; within both the highest objectness wins.

    Ties go to the lower index. If there are more positives than fit, an even choice of them is taken; so it
    is in the other miners.
    """
    score = _scores(objectness)  # in 0..1, so that + 1 puts all mimics first
    return _choose(score + mimic, label, max_positives, max_negatives)


def top_objectness(
    objectness: jax.Array, label: jax.Array, mimic: jax.Array, max_positives: int, max_negatives: int
) -> Mined:
    """The negatives of the highest objectness, whatever they lie on: needs no labels of mimics."""
    return _choose(_scores(objectness), label, max_positives, max_negatives)


def semi_hard(
    objectness: jax.Array, label: jax.Array, mimic: jax.Array, max_positives: int, max_negatives: int
) -> Mined:
    """Negatives that score below the patch's positives, the hardest first; then those above, easiest first.

    After the semi-hard negatives of Schroff et al. 2015, with objectness in place of distance: the limit is
    the mean score of the patch's positives. Negatives above it may be lesions that nobody has marked. A patch
    without positives has no limit.
    """
    score = _scores(objectness)
    positive = label == 1
    count = positive.sum()
    limit = jnp.where(count > 0, jnp.where(positive, score, 0.0).sum() / jnp.maximum(count, 1), 1.0)
    # Two bands of rank: 1 to 2 below the limit, rising with the score, and 0 to 1 above it, falling.
    rank = jnp.where(score < limit, 1.0 + score, 1.0 - score)
    return _choose(rank, label, max_positives, max_negatives)


MINERS: dict[str, Miner] = {
    "mimics_first": mimics_first,
    "top_objectness": top_objectness,
    "semi_hard": semi_hard,
}
"""Miners by the name that a configuration gives them (`loss.miner`)."""


def _scores(objectness: jax.Array) -> jax.Array:
    score = jax.nn.sigmoid(lax.stop_gradient(objectness))
    return jnp.where(jnp.isfinite(score), score, 0.0)


def _choose(rank: jax.Array, label: jax.Array, max_positives: int, max_negatives: int) -> Mined:
    """An even choice of the positives and the negatives of the highest rank (N,), 0 or more."""
    positive, positive_valid = spread(label == 1, max_positives)
    negative, negative_valid = _top(jnp.where(label == 0, rank, -1.0), max_negatives)
    return Mined(
        indices=jnp.concatenate([positive, negative]),
        classes=jnp.concatenate([jnp.zeros_like(positive), jnp.ones_like(negative)]),
        valid=jnp.concatenate([positive_valid, negative_valid]),
    )


def peaks(negative: jax.Array, objectness: jax.Array) -> jax.Array:
    """The negatives that score highest among all of their own and of the 26 cells around.

    One anchor is left of each dark spot, so that the mined negatives lie on different spots.

    Args:
        negative: (B, Z, Y, X, A) bool: the anchor is negative.
        objectness: (B, Z, Y, X, A) logits.

    Returns:
        (B, Z, Y, X, A) bool, a subset of `negative`; several where they tie.
    """
    score = jnp.where(negative, lax.stop_gradient(objectness), -jnp.inf)
    # the maximum over a cube of 27 cells is that over three lines of 3, one axis after the other
    around = score.max(axis=-1, keepdims=True)
    for axis in (1, 2, 3):
        window = tuple(3 if other == axis else 1 for other in range(5))
        around = lax.reduce_window(around, -jnp.inf, lax.max, window, (1,) * 5, "SAME")
    return negative & (score == around)


def spread(flags: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Indices of the set flags in rising order; if they are more than the slots, an even choice of them.

    Args:
        flags: (N,) bool.
        slots: length of the result.

    Returns:
        indices: (slots,) int32, 0 where not valid.
        valid: (slots,) bool.
    """
    # The n-th set flag is looked for in two stages: by the running count of set flags per row of the padded
    # array, then within the row that it falls into. A running count over all anchors, half a million of
    # them, would be one long chain of additions for each patch.
    padded = jnp.pad(flags, (0, -flags.shape[0] % _ROW)).reshape(-1, _ROW)
    counts = padded.sum(axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(counts)
    found = ends[-1]
    slot = jnp.arange(slots, dtype=jnp.int32)
    # slot * found / slots without leaving 32 bits
    even = slot * (found // slots) + slot * (found % slots) // slots
    rank = jnp.where(found > slots, even, slot)
    row = jnp.minimum(jnp.searchsorted(ends, rank, side="right"), ends.shape[0] - 1)
    before = rank - (ends[row] - counts[row])
    place = jnp.argmax(jnp.cumsum(padded[row], axis=1) == before[:, None] + 1, axis=1)
    valid = slot < found
    return jnp.where(valid, row * _ROW + place, 0).astype(jnp.int32), valid


def _top(score: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Indices (slots,) of the largest scores and whether they are 0 or more; slots beyond N stay invalid."""
    count = min(slots, score.shape[0])
    best, indices = top_k(score, count)
    rest = (0, slots - count)
    return jnp.pad(indices, rest), jnp.pad(best >= 0, rest)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Embedded anchors with their classes. S samples, E numbers."""

    embeddings: jax.Array  # (S, E) float32
    classes: jax.Array  # (S,) int32: 0 = CMB, 1 = mimic
    valid: jax.Array  # (S,) bool
    weights: jax.Array  # (S,) float32, what a sample counts in the mean of its class


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBank:
    """The newest samples of earlier steps in a ring (as in cross-batch memory, Wang et al. 2020)."""

    samples: Samples  # R of them
    next: jax.Array  # () int32, where the next sample goes


def empty_bank(size: int, dim: int) -> SampleBank | None:
    """A bank for `size` samples of `dim` numbers; None for size 0."""
    if not size:
        return None
    return SampleBank(
        samples=Samples(
            embeddings=jnp.zeros((size, dim), jnp.float32),
            classes=jnp.zeros(size, jnp.int32),
            valid=jnp.zeros(size, bool),
            weights=jnp.zeros(size, jnp.float32),
        ),
        next=jnp.zeros((), jnp.int32),
    )


def remember(bank: SampleBank | None, samples: Samples) -> SampleBank | None:
    """The bank with the valid ones of `samples` in the place of its oldest; of too many, the last ones."""
    if bank is None:
        return None
    size = bank.samples.valid.shape[0]
    count = samples.valid.sum(dtype=jnp.int32)
    # Ranks number the valid samples alone. Where these are more than the ring holds, only the last `size` of
    # them go in: two writes to one place have no order on an accelerator.
    rank = jnp.cumsum(samples.valid, dtype=jnp.int32) - 1
    goes_in = samples.valid & (rank >= count - size)
    place = jnp.where(goes_in, (bank.next + rank) % size, size)  # beyond the end: dropped
    return SampleBank(
        samples=jax.tree.map(
            lambda stored, new: stored.at[place].set(new.astype(stored.dtype), mode="drop"),
            bank.samples,
            samples,
        ),
        next=(bank.next + count) % size,
    )


def with_remembered(samples: Samples, bank: SampleBank | None) -> Samples:
    """Samples followed by those of the bank, which carry no gradient."""
    if bank is None:
        return samples
    stored = jax.lax.stop_gradient(bank.samples)
    return jax.tree.map(lambda new, old: jnp.concatenate([new, old]), samples, stored)


def moved_prototypes(prototypes: jax.Array, samples: Samples, decay: float) -> jax.Array:
    """Prototypes (classes, K, E) moved toward the mean of the samples of their class nearest to each.

    A step of online k-means with a constant rate: m <- decay * m + (1 - decay) * mean. A prototype that no
    sample is nearest to stays where it is.
    """
    classes, per_class, _ = prototypes.shape
    embeddings = jnp.where(samples.valid[:, None], samples.embeddings, 0.0)
    nearest = squared_distances(embeddings, prototypes).argmin(axis=-1)
    own = jax.nn.one_hot(samples.classes, classes) * samples.valid[:, None]  # (S, classes)
    belongs = own[..., None] * jax.nn.one_hot(nearest, per_class)  # (S, classes, K)
    count = belongs.sum(axis=0)
    mean = jnp.einsum("sck,se->cke", belongs, embeddings) / jnp.maximum(count, 1.0)[..., None]
    return jnp.where(count[..., None] > 0, decay * prototypes + (1.0 - decay) * mean, prototypes)
