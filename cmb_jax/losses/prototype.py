"""Losses that draw embeddings to prototypes of their own class. S samples, K prototypes per class, E numbers.

All have the signature of `losses.registry.PrototypeLoss`; none of them draws random numbers. With squared
distances d to the prototypes m of the classes c and the sample's class y.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
