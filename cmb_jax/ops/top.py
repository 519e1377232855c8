"""The largest of very many numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_ROW = 64


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `jax.lax.top_k` along the only axis, but quick on CPU where few of many numbers are asked for.

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
