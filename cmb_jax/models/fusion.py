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
        return self.fine(levels[0], self.below(levels[1:]))

    def below(self, levels: Sequence[jax.Array]) -> jax.Array | None:
        """What the levels below the finest give, on the grid of the first of them; None without any."""
        fused = None
        for reduce, level in zip(self.reduce[:0:-1], levels[::-1], strict=True):
            fused = self._join(reduce, level, fused)
        return fused

    def fine(self, level: jax.Array, below: jax.Array | None) -> jax.Array:
        """The fused map from the finest level and from what `below` gave."""
        return self._join(self.reduce[0], level, below)

    def _join(self, reduce: Conv, level: jax.Array, coarse: jax.Array | None) -> jax.Array:
        # From coarse to fine, so that only one map of each grid is made.
        if self.mode == "sum" or coarse is None:
            return reduce(level, coarse)
        return jnp.concatenate([reduce(level), upsample_nearest(coarse)], axis=-1)
