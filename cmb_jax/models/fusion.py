"""Feature fusion module: the head sees fine position and coarse context together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.models.blocks import Conv
from cmb_jax.ops.resample import upsample_nearest


class FeatureFusion(nnx.Module):
    """Reduce each pyramid level to a common width, bring all to the finest grid, sum or concatenate them.

    Args:
        widths: channels of the levels, finest first; level l has 2^l times coarser cells than the first.
        width: channels that each level is reduced to.
        mode: "sum" gives `width` channels, "concat" gives `len(widths) * width`.
        rngs: source of the initial parameters.
    """

    def __init__(
        self, widths: Sequence[int], width: int, mode: Literal["sum", "concat"], *, rngs: nnx.Rngs
    ) -> None:
        self.reduce = nnx.List([Conv(channels, width, rngs=rngs) for channels in widths])
        self.mode = mode
        self.outputs = width if mode == "sum" else width * len(widths)

    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        """Map one (B, Z / 2^l, Y / 2^l, X / 2^l, widths[l]) a level to (B, Z, Y, X, outputs)."""
        if self.mode == "sum":
            # From coarse to fine, so that only one map of the finest grid is made.
            fused = self.reduce[-1](levels[-1])
            for reduce, level in zip(self.reduce[-2::-1], levels[-2::-1], strict=True):
                fused = reduce(level, fused)
            return fused
        reduced = [reduce(level) for reduce, level in zip(self.reduce, levels, strict=True)]
        return jnp.concatenate(
            [reduced[0]]
            + [upsample_nearest(level, (2**i, 2**i, 2**i)) for i, level in enumerate(reduced[1:], start=1)],
            axis=-1,
        )
