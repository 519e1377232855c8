"""Network that labels brain regions and sides on a 2 mm grid."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cmb_jax.anatomy.regions import NUM_REGIONS
from cmb_jax.detector.unet import Conv, UNet
from cmb_jax.ops.conv import Triple
from cmb_jax.ops.resample import depth_to_space, space_to_depth

REGION_OUTPUTS = NUM_REGIONS + 1  # one logit a region, one for the side (positive = right)
_BLOCK: Triple = (2, 2, 2)


@dataclasses.dataclass(frozen=True)
class RegionNetConfig:
    """Sizes of the region network; levels as in `UNet`, the finest at twice the input's voxel size."""

    widths: tuple[int, ...] = (24, 32, 64, 96)
    encoder_convs: tuple[int, ...] = (0, 1, 2, 2)
    decoder_convs: tuple[int, ...] = (1, 1, 1)
    head_width: int = 48  # between the finest level and the labels of a cell's eight voxels

    @property
    def total_stride(self) -> Triple:
        """Input voxels per cell of the coarsest level, along z, y, x."""
        step = 2 ** len(self.widths)
        return (step, step, step)


class RegionNet(nnx.Module):
    """U-Net between a space-to-depth stem and a depth-to-space output: no convolution runs on the full grid.

    The U-Net also sees where each voxel lies in the grid (Liu et al. 2018, CoordConv): regions are as much a
    matter of place as of contrast, and the grid is centered on the head.

    Args:
        rngs: source of the initial parameters.
        config: sizes.
    """

    def __init__(self, rngs: nnx.Rngs, config: RegionNetConfig | None = None) -> None:
        self.config = config or RegionNetConfig()
        block = _BLOCK[0] * _BLOCK[1] * _BLOCK[2]
        self.unet = UNet(
            block + 3, self.config.widths, self.config.encoder_convs, self.config.decoder_convs, rngs=rngs
        )
        self.head = Conv(self.config.widths[0], self.config.head_width, rngs=rngs)
        self.output = Conv(self.config.head_width, block * REGION_OUTPUTS, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Map (B, Z, Y, X, 1) intensities at about 2 mm to (B, Z, Y, X, 17) logits: regions, then side.

        Raises:
            ValueError: the image has not one channel, or its size is not a multiple of the total stride.
        """
        stride = self.config.total_stride
        if image.ndim != 5 or image.shape[-1] != 1:
            raise ValueError(f"the region network takes images of shape (B, Z, Y, X, 1), got {image.shape}")
        if any(size % step for size, step in zip(image.shape[1:4], stride, strict=True)):
            raise ValueError(
                f"the region network takes images whose size (z, y, x) is a multiple of {stride}, "
                f"got {image.shape[1:4]}: pad the image"
            )
        blocks = space_to_depth(image, _BLOCK)
        axes = [jnp.linspace(-1, 1, size, dtype=image.dtype) for size in blocks.shape[1:4]]
        place = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
        place = jnp.broadcast_to(place, (*blocks.shape[:4], 3))
        finest = self.unet(jnp.concatenate([blocks, place], axis=-1))[0]
        return depth_to_space(self.output(self.head(finest, relu=True)), _BLOCK)
