"""A matrix product in JAX: what the processor can do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Prepared


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Square, float32."""
    n = options["size"]
    a = jnp.asarray(np.random.default_rng(8).standard_normal((n, n), np.float32))
    product = jax.jit(jnp.dot)
    return Prepared(
        run=lambda: jax.block_until_ready(product(a, a)),
        result=lambda c: float(jnp.abs(c).mean()),
        gflop=2e-9 * n**3,
    )
