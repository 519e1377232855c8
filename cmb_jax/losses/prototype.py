"""Prototype losses, and the names that a configuration gives them (`loss.prototype_loss`).

Most draw embeddings to prototypes of their own class; two compare samples with each other, need no
prototypes, and take memory that grows with S squared. All have the signature of `PrototypeLoss`, and none
draws random numbers. S samples, K prototypes per class, E numbers; squared distances d to the prototypes m of
the classes c, and the sample's class y.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmb_jax.config import LossConfig


def concentration_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    gamma: float,
    pull: float,
) -> jax.Array:
    """Distance cross-entropy plus pull to the nearest own prototype (Yang et al. 2018, eqs. 7, 8 and 11).

    -log(sum_k exp(-gamma d(f, m_yk)) / sum_ck exp(-gamma d(f, m_ck))) + pull * min_k d(f, m_yk).

    Args:
        embeddings: (S, E) float32.
        labels: (S,) integer class.
        valid: (S,) bool; loss and gradient are 0 elsewhere.
        prototypes: (classes, K, E) float32.
        key: for losses that draw random numbers; this one does not.
        gamma: hardness, more than 0.
        pull: weight of the pull.

    Returns:
        (S,) float32.
    """
    distances = squared_distances(embeddings, valid, prototypes)
    by_class = jax.nn.logsumexp(-gamma * distances, axis=-1)
    loss = _cross_entropy(by_class, labels, valid) + pull * _own(distances.min(axis=-1), labels, valid)
    return jnp.where(valid, loss, 0.0)


def distance_cross_entropy(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    gamma: float,
) -> jax.Array:
    """Distance cross-entropy alone (DCE: Yang et al. 2018, eqs. 7 and 8): `concentration_loss` without pull.

    Args and result as of `concentration_loss`.
    """
    return concentration_loss(embeddings, labels, valid, prototypes, key, gamma=gamma, pull=0.0)


def nearest_prototype_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    gamma: float,
    pull: float,
) -> jax.Array:
    """Generalised convolutional prototype learning, hard form: classes by their nearest prototype alone.

    -log(exp(-gamma min_k d(f, m_yk)) / sum_c exp(-gamma min_k d(f, m_ck))) + pull * min_k d(f, m_yk).

    Yang et al. 2018 call GCPL any loss of classification plus the pull. With their DCE, where all prototypes
    of a class share in its probability, that is exactly `concentration_loss`; so this is the same family.
    Here a class counts by its nearest prototype alone, as in their rule of decision: a prototype that is
    no sample's nearest learns nothing. With one prototype a class both losses are equal.

    Args and result as of `concentration_loss`.
    """
    nearest = squared_distances(embeddings, valid, prototypes).min(axis=-1)
    loss = _cross_entropy(-gamma * nearest, labels, valid) + pull * _own(nearest, labels, valid)
    return jnp.where(valid, loss, 0.0)


def center_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """Half the squared distance to the nearest centre of the own class (Wen et al. 2016, eq. 2).

    One centre a class is the paper's. Nothing pushes the classes apart here: the paper's softmax on the same
    embedding does that, but our objectness is read from the features, not from the embedding.

    Args and result as of `concentration_loss`.
    """
    nearest = squared_distances(embeddings, valid, prototypes).min(axis=-1)
    return jnp.where(valid, 0.5 * _own(nearest, labels, valid), 0.0)


def proxy_anchor_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    key: jax.Array | None = None,
    *,
    scale: float,
    margin: float,
) -> jax.Array:
    """Proxy-anchor loss (Kim et al. 2020, eq. 4), with the prototypes as proxies.

    With cosine similarities s, the proxies P+ that have samples of their class X+, and all proxies P:
    mean over P+ of log(1 + sum over X+ of exp(-scale (s - margin)))
    + mean over P of log(1 + sum over X- of exp(scale (s + margin))).
    Of several prototypes per class, the most similar one speaks for it; one per class is the paper's.

    It is a loss of the whole set: every valid sample carries its value, so that their mean is the paper's.

    Args and result as of `concentration_loss`; `scale` (alpha) more than 0, `margin` (delta) a cosine.
    """
    samples = unit_length(jnp.where(valid[:, None], embeddings, 0.0))
    similarity = jnp.einsum("se,cke->sck", samples, unit_length(prototypes)).max(axis=-1)
    own = (jnp.arange(prototypes.shape[0]) == labels[:, None]) & valid[:, None]
    other = ~own & valid[:, None]
    near = _log_one_plus_sum(-scale * (similarity - margin), own)
    far = _log_one_plus_sum(scale * (similarity + margin), other)
    loss = near.sum() / jnp.maximum(own.any(axis=0).sum(), 1) + far.mean()
    return jnp.where(valid, loss, 0.0)


def squared_distances(embeddings: jax.Array, valid: jax.Array, prototypes: jax.Array) -> jax.Array:
    """(S, classes, K) squared distances of samples (S, E) to prototypes; of the origin where not valid."""
    samples = jnp.where(valid[:, None], embeddings, 0.0)
    return jnp.square(samples[:, None, None, :] - prototypes[None]).sum(axis=-1)


def unit_length(vectors: jax.Array) -> jax.Array:
    """Vectors (..., E) at length 1; those shorter than 1e-6 keep their direction and stay shorter."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(axis=-1, keepdims=True), 1e-12))


def _own(values: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """The entry (S,) of each sample's own class in (S, classes); class 0 where not valid."""
    return jnp.take_along_axis(values, jnp.where(valid, labels, 0)[:, None], axis=1)[:, 0]


def _cross_entropy(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits, axis=-1) - _own(logits, labels, valid)


def _log_one_plus_sum(exponents: jax.Array, counts: jax.Array) -> jax.Array:
    """log(1 + sum of exp) (classes,) over the counting samples of (S, classes); 0 where none counts."""
    # a finite floor: the gradient of a sum over nothing but -inf is not a number
    masked = jnp.where(counts, exponents, -1e30)
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros_like(masked[:1]), masked]), axis=0)


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


PrototypeLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""A loss of mined samples: pure, static shapes, 0 in value and gradient where a sample is not valid.

(embeddings (S, E), labels (S,), valid (S,), prototypes (classes, K, E), key) -> (S,). The detector's loss is
the mean over the valid samples. The key is another one every step.
"""

NONE = "none"
"""No prototype loss: samples are neither mined nor embedded."""

PROTOTYPE_LOSSES: dict[str, Callable[[LossConfig], PrototypeLoss]] = {
    "concentration": lambda config: functools.partial(
        concentration_loss, gamma=config.prototype_gamma, pull=config.prototype_pull
    ),
    "dce": lambda config: functools.partial(distance_cross_entropy, gamma=config.prototype_gamma),
    "gcpl": lambda config: functools.partial(
        nearest_prototype_loss, gamma=config.prototype_gamma, pull=config.prototype_pull
    ),
    "center": lambda config: center_loss,
    "supcon": lambda config: functools.partial(
        supervised_contrastive_loss, temperature=config.supcon_temperature
    ),
    "proxy_anchor": lambda config: functools.partial(
        proxy_anchor_loss, scale=config.proxy_scale, margin=config.proxy_margin
    ),
    "triplet_hard": lambda config: functools.partial(hardest_triplet_loss, margin=config.triplet_margin),
}


def prototype_loss(config: LossConfig) -> PrototypeLoss:
    """The loss that a configuration names, with its settings; `NONE` has no function."""
    return PROTOTYPE_LOSSES[config.prototype_loss](config)
