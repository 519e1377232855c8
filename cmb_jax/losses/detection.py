"""Losses of single anchors: objectness and box code."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def focal_loss(
    logits: jax.Array, targets: jax.Array, valid: jax.Array, alpha: float, gamma: float
) -> jax.Array:
    """Binary focal loss (Lin et al. 2017, eq. 5), element by element.

    Args:
        logits: (...,) float32 of the positive class.
        targets: (...,) bool or 0/1: the anchor is positive.
        valid: (...,) bool: the anchor counts; elsewhere loss and gradient are 0.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent, 0 or more; 0 gives weighted cross-entropy.

    Returns:
        (...,) float32, 0 or more.
    """
    positive = targets.astype(bool)
    margin = jnp.where(positive, logits, -logits)  # log-odds of the right answer
    cross_entropy = jax.nn.softplus(-margin)
    # log(1 - p(right)) = -(margin + cross_entropy): no power of a number that may round to 0.
    focus = jnp.exp(-gamma * (margin + cross_entropy))
    return jnp.where(valid, jnp.where(positive, alpha, 1.0 - alpha) * focus * cross_entropy, 0.0)


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float = 1 / 9) -> jax.Array:
    """Smooth L1 loss (Girshick 2015) element by element: quadratic within beta, linear beyond.

    The default beta fits box codes, whose errors are fractions of an anchor: 1 would leave nearly all of them
    in the flat middle.
    """
    error = jnp.abs(prediction - target)
    inside = jnp.minimum(error, beta)
    return inside * (0.5 * inside / beta) + (error - inside)
