"""Normalization over the channels of each voxel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmb_jax.ops.cpu import library
from cmb_jax.ops.cpu.library import like, vary_together

LEAST_CHANNELS = 4  # that the compiled kernel takes


def channel_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-5, relu: bool = False
) -> jax.Array:
    """Layer normalization (Ba et al. 2016) over the channels of each voxel by itself.

    No statistic is taken over space or over the batch: a tile gives the same values as the whole volume, and
    a result does not depend on what else is in the batch.

    Args:
        x: (..., C); statistics are computed in float32, or x's type where that is wider.
        scale: (C,) float32.
        bias: (C,) float32.
        epsilon: added to the variance.
        relu: apply ReLU, in the same pass.

    Returns:
        (..., C), of x's type.
    """
    x, scale, bias = vary_together(x, scale, bias)
    if x.dtype != np.float32 or x.shape[-1] < LEAST_CHANNELS or x.size == 0:
        return _plain(x, scale, bias, epsilon=epsilon, relu=relu)
    return _norm(x, scale, bias, epsilon, relu)


def _plain(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, relu: bool) -> jax.Array:
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # centered first: the mean of squares less the squared mean would lose digits where the mean is large
    centered = values - values.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    y = centered * lax.rsqrt(variance + epsilon) * scale + bias
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool) -> jax.Array:
    plain = functools.partial(_plain, epsilon=epsilon, relu=relu)
    return lax.platform_dependent(x, scale, bias, cpu=_on_cpu(plain, epsilon, relu), default=plain)


def _on_cpu(plain, epsilon: float, relu: bool):
    def run(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if not library.available():
            return plain(x, scale, bias)
        call = jax.ffi.ffi_call(library.CHANNEL_NORM, like(x, x.shape), vmap_method="sequential")
        return call(x, scale, bias, epsilon=np.float32(epsilon), relu=relu)

    return run


def _norm_saved(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool):
    return _norm(x, scale, bias, epsilon, relu), (x, scale, bias)


def _norm_backward(epsilon: float, relu: bool, saved: tuple[jax.Array, ...], g: jax.Array):
    def plain(x, scale, bias, g):
        return jax.vjp(functools.partial(_plain, epsilon=epsilon, relu=relu), x, scale, bias)[1](g)

    def on_cpu(x, scale, bias, g):
        if not library.available():
            return plain(x, scale, bias, g)
        results = tuple(like(x, array.shape) for array in (x, scale, bias))
        call = jax.ffi.ffi_call(library.CHANNEL_NORM_GRADIENT, results, vmap_method="sequential")
        return tuple(call(x, g, scale, bias, epsilon=np.float32(epsilon), relu=relu))

    return lax.platform_dependent(*saved, g, cpu=on_cpu, default=plain)


_norm.defvjp(_norm_saved, _norm_backward)
