"""Losses that compare samples with each other and need no prototypes. S samples, E numbers.

Both have the signature of `losses.registry.PrototypeLoss`. Their memory grows with S squared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmb_jax.losses.prototype import unit_length


def supervised_contrastive_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    temperature: float,
) -> jax.Array:
    """Supervised contrastive loss, the sum outside the logarithm (SupCon: Khosla et al. 2020, eq. 2).

    With embeddings z at length 1, the other samples A of a sample i, and those P of its class:
    -mean over p in P of log(exp(z_i z_p / temperature) / sum over a in A of exp(z_i z_a / temperature)).

    Args:
        embeddings: (S, E) float32.
        labels: (S,) integer class.
        valid: (S,) bool; loss and gradient are 0 elsewhere, and there is no one to compare with.
        prototypes: not used.
        key: not used.
        temperature: more than 0.

    Returns:
        (S,) float32; 0 for a sample that is alone in its class.
    """
    samples = unit_length(jnp.where(valid[:, None], embeddings, 0.0))
    others, same = _pairs(labels, valid)
    # a finite floor: the gradient of a sum over nothing but -inf is not a number
    logits = jnp.where(others, samples @ samples.T / temperature, -1e30)
    log_share = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    positives = same.sum(axis=1)
    loss = -jnp.where(same, log_share, 0.0).sum(axis=1) / jnp.maximum(positives, 1)
    return jnp.where(valid & (positives > 0), loss, 0.0)


def hardest_triplet_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    margin: float,
) -> jax.Array:
    """Triplet loss with the hardest partners of the batch (Hermans et al. 2017, eq. 5).

    max(0, margin + largest distance to a sample of the own class - smallest distance to one of another), with
    distances that are not squared.

    Args and result as of `supervised_contrastive_loss`, `margin` in the embedding's unit; 0 for a sample that
    is alone in its class or has no sample of another.
    """
    samples = jnp.where(valid[:, None], embeddings, 0.0)
    others, same = _pairs(labels, valid)
    different = others & ~same
    length = jnp.square(samples).sum(axis=1)
    squared = length[:, None] + length[None] - 2.0 * samples @ samples.T
    apart = squared > 1e-12  # the root has no gradient at 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    farthest = jnp.where(same, distance, -jnp.inf).max(axis=1)
    nearest = jnp.where(different, distance, jnp.inf).min(axis=1)
    complete = valid & same.any(axis=1) & different.any(axis=1)
    gap = jnp.where(complete, farthest, 0.0) - jnp.where(complete, nearest, 0.0)
    return jnp.where(complete, jnp.maximum(margin + gap, 0.0), 0.0)


def _pairs(labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pairs (S, S) of two different valid samples, and those of them that are of one class."""
    others = valid[:, None] & valid[None] & ~jnp.eye(labels.shape[0], dtype=bool)
    return others, others & (labels[:, None] == labels[None])
