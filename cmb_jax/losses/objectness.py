"""Which anchors count in the objectness loss, and how much."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmb_jax.ops.top import kth_largest


def lesion_weights(
    truth: jax.Array, valid: jax.Array, truths: int, balance: float, *, mean_one: bool
) -> jax.Array:
    """Weights of positive anchors by the number of anchors that their lesion has.

    A lesion of 2 mm has one or two positive anchors, one of 10 mm has hundreds, so that a plain sum over
    anchors hardly sees the small one. With `balance` b an anchor of a lesion of n anchors weighs n^-b: 0
    leaves all anchors alike, 1 makes all lesions alike.

    Args:
        truth: (B, S) int32 index of each anchor's lesion in its patch.
        valid: (B, S) bool: the anchor counts; elsewhere the weight is 0.
        truths: number of lesion slots per patch.
        balance: exponent b, 0 to 1.
        mean_one: scale the weights so that their mean over the batch is 1. What a lesion weighs then depends
            on the others of the batch.

    Returns:
        (B, S) float32.
    """
    own = jax.nn.one_hot(truth, truths, dtype=jnp.float32) * valid[..., None]  # (B, S, M)
    anchors = jnp.einsum("bsm,bm->bs", own, own.sum(axis=1))
    weight = jnp.where(valid, jnp.maximum(anchors, 1.0) ** -balance, 0.0)
    return weight * (valid.sum() / jnp.maximum(weight.sum(), 1e-9)) if mean_one else weight


def hardest(negative: jax.Array, objectness: jax.Array, count: int) -> jax.Array:
    """The negatives of the highest objectness, `count` of them per patch; all that tie with the last are in.

    Drawn from, they are the sampler of nnDetection (Baumgartner et al. 2021): hard negatives, but not always
    the very hardest, among which are lesions that nobody has marked.

    Args:
        negative: (B, ...) bool: the anchor is negative.
        objectness: (B, ...) logits.
        count: wanted per patch.

    Returns:
        (B, ...) bool, a subset of `negative`.
    """
    score = jnp.where(negative, jax.lax.stop_gradient(objectness), -jnp.inf).reshape(negative.shape[0], -1)
    last = kth_largest(score, min(count, score.shape[1]))
    return negative & (score >= last[:, None]).reshape(negative.shape)


def drawn_negatives(key: jax.Array, negative: jax.Array, count: int) -> jax.Array:
    """An unbiased choice of negatives, as in the mini-batches of Faster R-CNN (Ren et al. 2015).

    Each is drawn by itself: `count` is the mean number per patch. Where there are fewer, all are taken.

    Args:
        key: of the draw.
        negative: (B, ...) bool: the anchor is negative.
        count: wanted per patch.

    Returns:
        (B, ...) bool, a subset of `negative`.
    """
    there = negative.sum(axis=tuple(range(1, negative.ndim)), keepdims=True)
    return negative & (jax.random.uniform(key, negative.shape) * there < count)
