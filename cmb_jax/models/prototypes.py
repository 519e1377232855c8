"""Embedding of single anchors and the prototypes of the two classes (hard sample prototype learning)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.models.blocks import at_least_float32

CLASSES = 2  # 0 = CMB, 1 = mimic


class AnchorEmbedding(nnx.Module):
    """A linear map, one per anchor, from a cell's features to the embedding of that anchor.

    Args:
        inputs: channels of the head's features.
        anchors: anchors per cell.
        outputs: length of an embedding.
        rngs: source of the initial parameters.
    """

    def __init__(self, inputs: int, anchors: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        # Embeddings and prototypes both start with lengths near 1, so that no distance swamps the others.
        scale = (3.0 / (inputs * outputs)) ** 0.5
        shape = (anchors, inputs, outputs)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -scale, scale))
        self.bias = nnx.Param(jnp.zeros((anchors, outputs), jnp.float32))

    def __call__(self, features: jax.Array, anchor_index: jax.Array) -> jax.Array:
        """Embed anchors one by one.

        Args:
            features: (..., C) head features at the anchors' cells.
            anchor_index: (...,) integer, which anchor of the cell.

        Returns:
            (..., E) float32.
        """
        everyone = (
            jnp.einsum("...c,ace->...ae", at_least_float32(features), self.kernel[...]) + self.bias[...]
        )
        return jnp.take_along_axis(everyone, anchor_index[..., None, None], axis=-2)[..., 0, :]


def initial_prototypes(per_class: int, dim: int, key: jax.Array) -> jax.Array:
    """Random points on the unit sphere, far apart: (2, K, E) float32.

    Random rows are made orthogonal one after another while the dimension allows it; beyond that they stay
    random, which in high dimensions is nearly as good.
    """
    count = CLASSES * per_class
    points = jax.random.uniform(key, (count, dim), jnp.float32, -1.0, 1.0)
    rows: list[jax.Array] = []
    for i in range(count):
        row = points[i]
        for other in rows[: dim - 1]:
            row = row - jnp.dot(row, other) * other
        rows.append(row / jnp.linalg.norm(row))
    return jnp.stack(rows).reshape(CLASSES, per_class, dim)
