"""Normalisation that looks at one voxel only."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def channel_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Layer normalisation (Ba et al. 2016) over the channels of each voxel by itself.

    No statistic is taken over space or over the batch: a tile gives the same values as the whole volume, and
    a result does not depend on what else is in the batch.

    Args:
        x: (..., C); statistics are computed in float32.
        scale: (C,).
        bias: (C,).
        epsilon: added to the variance.

    Returns:
        (..., C), of x's type.
    """
    values = x.astype(jnp.float32)
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)
