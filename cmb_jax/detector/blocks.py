"""Layers that the networks are made of: channels last, no statistics over space or batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.ops.conv import Products, Triple, conv3d
from cmb_jax.ops.norm import channel_norm

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
