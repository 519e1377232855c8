"""U-Net whose decoder adds laterals (Ronneberger et al. 2015; Lin et al. 2017), its layers, feature fusion.

Layers have channels last and no statistics over space or batch. Fusion lets the head see fine position and
coarse context together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.ops.conv import Products, Triple, conv3d
from cmb_jax.ops.norm import channel_norm
from cmb_jax.ops.resample import max_pool, upsample_nearest

# Uniform, not truncated normal: the same variance (He et al. 2015), and far quicker to compile.
_HE_UNIFORM = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Activations of a short type as float32, for what is summed over many voxels."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Conv(nnx.Module):
    """3-D convolution; parameters are float32, the result is of the input's type.

    `products` says in which type float32 maps are multiplied; `Detector` sets it in all its convolutions.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: edges along z, y, x, each 1 or 3.
        use_bias: add a bias.
        bias: the bias to start from; drawn at random, as small as the outputs, where None.
        rngs: source of the initial kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple = (1, 1, 1),
        *,
        use_bias: bool = True,
        bias: float | None = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(_HE_UNIFORM(rngs.params(), (*kernel, inputs, outputs), jnp.float32))
        if bias is None:
            # 1 / sqrt(fan-in): about as large as what the kernel adds up
            bound = (kernel[0] * kernel[1] * kernel[2] * inputs) ** -0.5
            start = jax.random.uniform(rngs.params(), (outputs,), jnp.float32, -bound, bound)
        else:
            start = jnp.full((outputs,), bias, jnp.float32)
        self.bias = nnx.Param(start) if use_bias else None
        self.products: Products = "float32"

    def __call__(self, x: jax.Array, coarse: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Map (B, Z, Y, X, inputs) to (B, Z, Y, X, outputs).

        Args:
            x: the input.
            coarse: (B, Z / 2, Y / 2, X / 2, outputs), whose voxels are repeated and added.
            relu: apply ReLU last.
        """
        bias = None if self.bias is None else self.bias[...]
        return conv3d(x, self.kernel[...], bias, coarse, relu=relu, products=self.products)


class Norm(nnx.Module):
    """Layer normalization over channels at each voxel, then scale and bias."""

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: jax.Array, *, relu: bool = False) -> jax.Array:
        """Map (..., C) to (..., C), with ReLU if asked for."""
        return channel_norm(x, self.scale[...], self.bias[...], relu=relu)


class ConvBlock(nnx.Module):
    """Convolution, norm, ReLU.

    The bias before the norm matters, because a norm at each voxel takes away the length of the voxel's
    vector: compared with the bias, strong and weak signals stay different.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: edges along z, y, x.
        use_norm: without a norm the block is cheaper on fine grids and keeps absolute intensities.
        remat: keep the input alone for the backward pass, which computes the block again.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple = (3, 3, 3),
        *,
        use_norm: bool = True,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.remat = remat
        self.conv = Conv(inputs, outputs, kernel, bias=None, rngs=rngs)
        self.norm = Norm(outputs) if use_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (B, Z, Y, X, inputs) to (B, Z, Y, X, outputs)."""
        return jax.checkpoint(self._run)(x) if self.remat else self._run(x)

    def _run(self, x: jax.Array) -> jax.Array:
        if self.norm is None:
            return self.conv(x, relu=True)
        return self.norm(self.conv(x), relu=True)


def conv_blocks(
    count: int, inputs: int, outputs: int, *, use_norm: bool = True, remat: bool = False, rngs: nnx.Rngs
) -> nnx.List:
    """A row of 3x3x3 blocks, the first of which goes from `inputs` to `outputs` channels; see `ConvBlock`."""
    widths = [inputs, *[outputs] * count]
    return nnx.List(
        [ConvBlock(widths[i], outputs, use_norm=use_norm, remat=remat, rngs=rngs) for i in range(count)]
    )


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
