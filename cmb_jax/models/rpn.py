"""Region proposal network (Ren et al. 2015) on one dense 3-D grid."""

from __future__ import annotations

import math

import jax
from flax import nnx

from cmb_jax.models.blocks import Conv, ConvBlock, at_least_float32
from cmb_jax.models.types import ProposalMaps

# Objectness of an untrained network (Lin et al. 2017): the many negatives then do not drown the first steps.
PRIOR = 0.01


class ProposalHead(nnx.Module):
    """One 3x3x3 block, then objectness and box code of every anchor by 1x1x1 convolutions.

    Args:
        inputs: channels in.
        width: channels of the block.
        anchors: anchors a cell.
        remat: compute the block again in the backward pass.
        rngs: source of the initial parameters.
    """

    def __init__(self, inputs: int, width: int, anchors: int, *, remat: bool = False, rngs: nnx.Rngs) -> None:
        self.block = ConvBlock(inputs, width, use_norm=False, remat=remat, rngs=rngs)
        self.objectness = Conv(width, anchors, bias=-math.log((1 - PRIOR) / PRIOR), rngs=rngs)
        self.deltas = Conv(width, 6 * anchors, rngs=rngs)
        # Small, so that the first boxes are the anchors and the first scores the prior.
        for layer in (self.objectness, self.deltas):
            layer.kernel[...] = layer.kernel[...] * 0.1

    def __call__(self, x: jax.Array) -> ProposalMaps:
        """Map (B, Z, Y, X, inputs) to the maps of `ProposalMaps`; logits and box codes are float32."""
        features = self.block(x)
        return ProposalMaps(
            features=features,
            objectness=at_least_float32(self.objectness(features)),
            deltas=self.box_codes(features),
        )

    def box_codes(self, features: jax.Array) -> jax.Array:
        """Box codes (B, Z, Y, X, A, 6) float32 of cells with features (B, Z, Y, X, C)."""
        deltas = at_least_float32(self.deltas(features))
        return deltas.reshape(*deltas.shape[:-1], -1, 6)
