"""Concentration loss: embeddings gather around prototypes of their own class."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def concentration_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    prototypes: jax.Array,
    gamma: float,
    pull: float,
) -> jax.Array:
    """Distance cross-entropy plus pull to the nearest own prototype (Yang et al. 2018, eqs. 7, 8 and 11).

    With squared distances d to the prototypes m of classes c and the sample's class y:
    -log(sum_k exp(-gamma d(f, m_yk)) / sum_ck exp(-gamma d(f, m_ck))) + pull * min_k d(f, m_yk).

    Args:
        embeddings: (S, E) float32.
        labels: (S,) integer class.
        valid: (S,) bool; loss and gradient are 0 elsewhere.
        prototypes: (classes, K, E) float32.
        gamma: hardness, more than 0.
        pull: weight of the pull.

    Returns:
        (S,) float32.
    """
    samples = jnp.where(valid[:, None], embeddings, 0.0)
    distances = jnp.square(samples[:, None, None, :] - prototypes[None]).sum(axis=-1)  # (S, classes, K)
    by_class = jax.nn.logsumexp(-gamma * distances, axis=-1)  # (S, classes)
    own = jnp.where(valid, labels, 0)[:, None]
    own_log_sum = jnp.take_along_axis(by_class, own, axis=1)[:, 0]
    own_nearest = jnp.take_along_axis(distances.min(axis=-1), own, axis=1)[:, 0]
    loss = jax.nn.logsumexp(by_class, axis=-1) - own_log_sum + pull * own_nearest
    return jnp.where(valid, loss, 0.0)
