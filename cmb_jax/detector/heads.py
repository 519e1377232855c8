"""The heads on the fused features: region proposals (Ren et al. 2015) and the embedding of anchors.

The embedding, one linear map per anchor, and the prototypes of the two classes serve hard sample prototype
learning.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.detector.unet import Conv, ConvBlock, at_least_float32
from cmb_jax.ops.conv import conv3d

# Objectness of an untrained network (Lin et al. 2017): the many negatives then do not dominate the first
# steps.
PRIOR = 0.01


class ProposalHead(nnx.Module):
    """3x3x3 blocks for scores and boxes, then objectness and box code of every anchor by 1x1x1 convolutions.

    Both share one block, or boxes have their own. Training and inference look at the boxes of few anchors, so
    the boxes' block is run at those alone (`box_codes_at`): it costs next to nothing, whatever its width.

    Args:
        inputs: channels in.
        width: channels of the block of the scores.
        anchors: anchors per cell.
        box_width: channels of the block of the boxes; 0: they share that of the scores.
        remat: compute the block again in the backward pass.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        anchors: int,
        *,
        box_width: int = 0,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.block = ConvBlock(inputs, width, use_norm=False, remat=remat, rngs=rngs)
        self.objectness = Conv(width, anchors, bias=-math.log((1 - PRIOR) / PRIOR), rngs=rngs)
        self.deltas = Conv(box_width or width, 6 * anchors, rngs=rngs)
        self.box_block = ConvBlock(inputs, box_width, use_norm=False, rngs=rngs) if box_width else None
        # Small, so that the first boxes are the anchors and the first scores the prior.
        for layer in (self.objectness, self.deltas):
            layer.kernel[...] = layer.kernel[...] * 0.1

    def scores(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features (B, Z, Y, X, C) of the scores and objectness (B, Z, Y, X, A) float32 logits."""
        features = self.block(x)
        return features, at_least_float32(self.objectness(features))

    def box_input(self, x: jax.Array, features: jax.Array) -> jax.Array:
        """What `box_codes` takes, of the head's input and the features of its scores."""
        return features if self.box_block is None else x

    def box_codes(self, box_input: jax.Array) -> jax.Array:
        """Box codes (B, Z, Y, X, A, 6) float32 of all anchors."""
        cells = box_input if self.box_block is None else self.box_block(box_input)
        return self._codes(cells)

    def box_codes_at(self, box_input: jax.Array, cells: jax.Array) -> jax.Array:
        """The same at some cells alone: (B, S, A, 6) at flat cells (B, S) of the grid of `box_input`."""
        if self.box_block is None:
            rows = box_input.reshape(box_input.shape[0], -1, box_input.shape[-1])
            found = jnp.take_along_axis(rows, cells[..., None], axis=1)
        else:
            around = _neighborhoods(box_input, cells)
            kernel = self.box_block.conv.kernel[...]
            # as a 1x1x1 convolution of what the 3x3x3 one sees
            bias = None if self.box_block.conv.bias is None else self.box_block.conv.bias[...]
            found = conv3d(
                around[:, None, None],
                kernel.reshape(1, 1, 1, -1, kernel.shape[-1]),
                bias,
                relu=True,
                products=self.box_block.conv.products,
            )[:, 0, 0]
        return self._codes(found[:, None, None])[:, 0, 0]

    def _codes(self, cells: jax.Array) -> jax.Array:
        deltas = at_least_float32(self.deltas(cells))
        return deltas.reshape(*deltas.shape[:-1], -1, 6)


def _neighborhoods(x: jax.Array, cells: jax.Array) -> jax.Array:
    """What a 3x3x3 kernel sees, 0 beyond the rim: (B, S, 27 C) of (B, Z, Y, X, C) at flat cells (B, S)."""
    batch, *shape, channels = x.shape
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    # Gathered cell by cell: anchors of a few cells are looked at, and a convolution would compute them all.
    center = jnp.stack(jnp.unravel_index(cells, tuple(shape)), axis=-1)
    place = center[:, :, None] + offsets  # (B, S, 27, 3)
    inside = jnp.all((place >= 0) & (place < jnp.array(shape)), axis=-1)
    flat = (place[..., 0] * shape[1] + place[..., 1]) * shape[2] + place[..., 2]
    rows = x.reshape(batch, -1, channels)
    index = jnp.where(inside, flat, 0).reshape(batch, -1, 1)
    found = jnp.take_along_axis(rows, index, axis=1).reshape(*inside.shape, channels)
    return jnp.where(inside[..., None], found, 0).reshape(*cells.shape, -1)


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
        # all anchors of the cell, then the one that is asked for: a gather of kernels would take far more
        # memory
        all_anchors = (
            jnp.einsum("...c,ace->...ae", at_least_float32(features), self.kernel[...]) + self.bias[...]
        )
        return jnp.take_along_axis(all_anchors, anchor_index[..., None, None], axis=-2)[..., 0, :]


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
