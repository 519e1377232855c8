"""Selecting the largest of very many numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_ROW = 64


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `jax.lax.top_k` of a vector, but quick on CPU where k is small compared with N.

    The k largest numbers lie in the k rows of the largest maxima, whatever the length of a row; in a tie the
    lower index wins among rows as among numbers. So only the rows' maxima and k rows are sorted.

    Args:
        x: (N,) without NaN.
        k: how many, at most N.

    Returns:
        values: (k,) in falling order.
        indices: (k,) int32; of equal values the lower index comes first.
    """
    rows = -(-x.shape[0] // _ROW)
    if rows <= k:
        return lax.top_k(x, k)
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    table = jnp.pad(x, (0, rows * _ROW - x.shape[0]), constant_values=lowest).reshape(rows, _ROW)
    _, best_rows = lax.top_k(table.max(axis=1), k)
    best_rows = jnp.sort(best_rows)  # in the order of the numbers, so that ties are broken as they should be
    values, place = lax.top_k(table[best_rows].reshape(-1), k)
    indices = best_rows[place // _ROW] * _ROW + place % _ROW
    return values, jnp.minimum(indices, x.shape[0] - 1)  # padding is chosen only among numbers of -inf


def kth_largest(x: jax.Array, k: int) -> jax.Array:
    """The k-th largest number (B,) of each row of (B, N) float32 without NaN; k from 1 to N.

    By bisection over the numbers' bits, which takes 32 passes however large k is; a sort takes far longer.
    """
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # one zero instead of two
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the numbers

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # at least k numbers are >= low, fewer than k are > high
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # their mean, rounded up, without overflow
        enough = (order >= middle[:, None]).sum(axis=1) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    low, _ = lax.fori_loop(0, 32, halve, (order.min(axis=1), order.max(axis=1)))
    return lax.bitcast_convert_type(jnp.where(low < 0, low ^ 0x7FFFFFFF, low), jnp.float32)
