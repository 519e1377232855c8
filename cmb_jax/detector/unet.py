"""U-Net whose decoder adds laterals (Ronneberger et al. 2015; Lin et al. 2017), and feature fusion.

Fusion lets the head see fine position and coarse context together.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.detector.blocks import Conv, ConvBlock, conv_blocks
from cmb_jax.ops.conv import Triple
from cmb_jax.ops.resample import max_pool, upsample_nearest


class UNet(nnx.Module):
    """Encoder with (2, 2, 2) pooling; decoder that adds 1x1x1 laterals to the upsampled level below.

    Args:
        inputs: channels in.
        widths: channels of each level, finest first.
        encoder_convs: 3x3x3 blocks of each encoder level, after the stem or the pooling; at least one below
            the first level.
        decoder_convs: 3x3x3 blocks of each decoder level, finest first; one entry fewer.
        stem_kernel: edges of the first block's kernel along z, y, x.
        finest_norm: norm in the blocks of the finest level; the stem never has one.
        remat: compute blocks again in the backward pass.
        rngs: source of the initial parameters.

    Raises:
        ValueError: the numbers of blocks do not fit the widths.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        encoder_convs: Sequence[int],
        decoder_convs: Sequence[int],
        stem_kernel: Triple = (3, 3, 3),
        *,
        finest_norm: bool = True,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        levels = len(widths)
        if len(encoder_convs) != levels or len(decoder_convs) != levels - 1 or min(encoder_convs[1:]) < 1:
            raise ValueError(
                f"a U-Net of {levels} levels needs as many encoder_convs (1 or more below the first level) "
                f"and one decoder_convs fewer, got {tuple(encoder_convs)} and {tuple(decoder_convs)}"
            )
        self.stem = ConvBlock(inputs, widths[0], stem_kernel, use_norm=False, remat=remat, rngs=rngs)
        above = (widths[0], *widths[:-1])
        self.encoder = nnx.List(
            [
                conv_blocks(n, i, o, use_norm=finest_norm or level > 0, remat=remat, rngs=rngs)
                for level, (n, i, o) in enumerate(zip(encoder_convs, above, widths, strict=True))
            ]
        )
        finer, coarser = widths[:-1], widths[1:]
        self.laterals = nnx.List([Conv(width, width, rngs=rngs) for width in finer])
        # without a bias: the lateral that the result is added to has one
        self.rises = nnx.List(
            [Conv(i, o, use_bias=False, rngs=rngs) for i, o in zip(coarser, finer, strict=True)]
        )
        self.decoder = nnx.List(
            [
                conv_blocks(n, w, w, use_norm=finest_norm or level > 0, remat=remat, rngs=rngs)
                for level, (n, w) in enumerate(zip(decoder_convs, finer, strict=True))
            ]
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Run encoder and decoder.

        Args:
            x: (B, Z, Y, X, inputs), sizes multiples of 2^(levels - 1).

        Returns:
            One map per level, finest first: (B, Z / 2^l, Y / 2^l, X / 2^l, widths[l]).
        """
        # In these parts, so that a whole volume can run the finest level slab by slab (`detector.network`)
        # with the very same functions.
        skip = self.fine(x)
        below = self.below(max_pool(skip))
        return [self.merge(0, skip, below[0]), *below]

    def fine(self, x: jax.Array) -> jax.Array:
        """Stem and encoder of the finest level: (B, Z, Y, X, inputs) to (B, Z, Y, X, widths[0])."""
        x = self.stem(x)
        for block in self.encoder[0]:
            x = block(x)
        return x

    def below(self, x: jax.Array) -> list[jax.Array]:
        """Maps of all levels but the finest, from the pooled map of the finest encoder level."""
        skips = []
        for level, blocks in enumerate(self.encoder[1:]):
            x = max_pool(x) if level else x  # the first of these levels comes pooled
            for block in blocks:
                x = block(x)
            skips.append(x)
        maps = [x]
        for level in reversed(range(1, len(self.decoder))):
            maps.append(self.merge(level, skips[level - 1], maps[-1]))
        return maps[::-1]

    def merge(self, level: int, skip: jax.Array, below: jax.Array) -> jax.Array:
        """The decoder's map of a level from the encoder's and from the decoder's map one level below."""
        return self.refine(level, skip, self.rises[level](below))

    def refine(self, level: int, skip: jax.Array, reduced: jax.Array) -> jax.Array:
        """As `merge`, from a map below whose channels are reduced already.

        Channels are reduced before the voxels are repeated: the same sum for an eighth of the work.
        """
        x = self.laterals[level](skip, reduced, relu=True)
        for block in self.decoder[level]:
            x = block(x)
        return x


def dependence_radius(
    encoder_convs: Sequence[int], decoder_convs: Sequence[int], stem_kernel: Triple, head_convs: int
) -> Triple:
    """Cells of the finest level, to each side along z, y, x, on which an aligned block of outputs depends.

    "Aligned" means that the block starts and ends on cells of the coarsest level. Levels meet on aligned
    blocks, so a radius of r cells becomes ceil(r / 2) one level down and 2 r one level up; each 3x3x3
    convolution adds 1.

    Args:
        encoder_convs: as in `UNet`.
        decoder_convs: as in `UNet`.
        stem_kernel: as in `UNet`.
        head_convs: 3x3x3 convolutions after the finest decoder level.
    """
    # Followed backward from the output: through the head and the decoder down to the coarsest level, where
    # each step to a coarser grid halves the radius (rounded up), then up through the encoder, where it
    # doubles.
    radius = head_convs
    for count in decoder_convs:
        radius = (radius + count + 1) // 2
    for count in reversed(encoder_convs[1:]):
        radius = 2 * (radius + count)
    z, y, x = ((radius + encoder_convs[0]) + edge // 2 for edge in stem_kernel)
    return (z, y, x)


class FeatureFusion(nnx.Module):
    """Reduce each pyramid level to a common width, bring all to the finest grid, sum or concatenate them.

    Args:
        widths: channels of the levels, finest first; level l has 2^l times coarser cells than the first.
        width: channels that each level is reduced to.
        mode: "sum" gives `width` channels, "concat" gives `len(widths) * width`.
        finest: False leaves out the finest level: the others are repeated to its grid.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        mode: Literal["sum", "concat"],
        *,
        finest: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.reduce = nnx.List([Conv(channels, width, rngs=rngs) for channels in widths])
        self.mode = mode
        self.finest = finest
        self.outputs = width if mode == "sum" else width * (len(widths) - (not finest))

    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        """Maps (B, Z / 2^l, Y / 2^l, X / 2^l, widths[l]), one per level, to (B, Z, Y, X, outputs)."""
        return self.fine(levels[0], self.below(levels[1:]))

    def below(self, levels: Sequence[jax.Array]) -> jax.Array | None:
        """What the levels below the finest give, on the grid of the first of them; None without any."""
        fused = None
        for reduce, level in zip(self.reduce[:0:-1], levels[::-1], strict=True):
            fused = self._join(reduce, level, fused)
        return fused

    def fine(self, level: jax.Array, below: jax.Array | None) -> jax.Array:
        """The fused map from the finest level and from what `below` gave."""
        if not self.finest and below is not None:
            return upsample_nearest(below)
        return self._join(self.reduce[0], level, below)

    def _join(self, reduce: Conv, level: jax.Array, coarse: jax.Array | None) -> jax.Array:
        # From coarse to fine, so that only one map of each grid is made.
        if self.mode == "sum" or coarse is None:
            return reduce(level, coarse)
        return jnp.concatenate([reduce(level), upsample_nearest(coarse)], axis=-1)
