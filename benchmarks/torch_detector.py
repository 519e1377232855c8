"""The detector in PyTorch: the network of `cmb_jax.detector.network`, for comparisons of equal work.

Tensors are (B, C, Z, Y, X) in `torch.channels_last_3d`, so that a (B, Z, Y, X, C) view of each is free: norms
run on that view. Modules bear the names of the JAX parameters (`torch_weights`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmb_jax.config import ModelConfig, Triple
from cmb_jax.detector.network import SEMANTIC_CLASSES

IMAGE_CHANNELS = 2
STEM_STRIDE: Triple = (1, 2, 2)
FUSED_LEVELS = 3
PRIOR = 0.01


class Conv(nn.Module):
    """Convolution that keeps the grid: (B, inputs, Z, Y, X) -> (B, outputs, Z, Y, X)."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple = (1, 1, 1), *, bias: bool = True) -> None:
        super().__init__()
        self.padding = tuple(edge // 2 for edge in kernel)
        bound = (6.0 / (inputs * math.prod(kernel))) ** 0.5
        weight = torch.empty(outputs, inputs, *kernel).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last_3d))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, Z, Y, X) to (B, outputs, Z, Y, X)."""
        return F.conv3d(x, self.weight, self.bias, padding=self.padding)


class ConvBlock(nn.Module):
    """Convolution, layer norm over the channels of each voxel, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple = (3, 3, 3), *, norm: bool = True) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, kernel)
        bound = (inputs * math.prod(kernel)) ** -0.5
        nn.init.uniform_(self.conv.bias, -bound, bound)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(outputs, eps=1e-5) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, Z, Y, X) to (B, outputs, Z, Y, X)."""
        x = self.conv(x)
        if self.norm is None:
            return x.relu_()
        return channels_first(self.norm(channels_last(x)).relu_())  # in place on a view would copy


class UNet(nn.Module):
    """Encoder with (2, 2, 2) max pooling; decoder that adds laterals to the upsampled level below."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        widths = config.widths
        finer, coarser = widths[:-1], widths[1:]
        self.stem = ConvBlock(inputs, widths[0], config.stem_kernel, norm=False)
        above = (widths[0], *finer)
        self.encoder = nn.ModuleList(
            _blocks(n, i, o, norm=level > 0)
            for level, (n, i, o) in enumerate(zip(config.encoder_convs, above, widths, strict=True))
        )
        self.laterals = nn.ModuleList(Conv(width, width) for width in finer)
        self.rises = nn.ModuleList(Conv(i, o, bias=False) for i, o in zip(coarser, finer, strict=True))
        self.decoder = nn.ModuleList(
            _blocks(n, width, width, norm=level > 0)
            for level, (n, width) in enumerate(zip(config.decoder_convs, finer, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, C, Z, Y, X) to one map a level, finest first."""
        x = self.stem(x)
        skips = []
        for level, blocks in enumerate(self.encoder):
            x = blocks(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        maps = [x]
        for level in reversed(range(len(self.decoder))):
            x = _add_risen(self.laterals[level](skips[level]), self.rises[level](x)).relu_()
            x = self.decoder[level](x)
            maps.append(x)
        return maps[::-1]


class FeatureFusion(nn.Module):
    """Levels reduced to one width, brought to the finest grid, summed or concatenated."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        levels = FUSED_LEVELS if config.use_fusion else 1
        self.reduce = nn.ModuleList(Conv(width, config.fusion_width) for width in config.widths[:levels])
        self.mode = config.fusion
        self.outputs = config.fusion_width * (levels if config.fusion == "concat" else 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Map the levels, finest first, to (B, outputs, Z, Y, X); levels beyond the fused ones are left."""
        reduced = [reduce(level) for reduce, level in zip(self.reduce, levels, strict=False)]
        if self.mode == "concat":
            return torch.cat(
                [F.interpolate(level, scale_factor=2**i) if i else level for i, level in enumerate(reduced)],
                dim=1,
            )
        fused = reduced[-1]
        for level in reduced[-2::-1]:
            fused = _add_risen(level, fused)
        return fused


class ProposalHead(nn.Module):
    """3x3x3 blocks, one for both or one each, then objectness and box code of every anchor."""

    def __init__(self, inputs: int, width: int, anchors: int, box_width: int) -> None:
        super().__init__()
        self.block = ConvBlock(inputs, width, norm=False)
        self.objectness = Conv(width, anchors)
        self.deltas = Conv(box_width or width, 6 * anchors)
        self.box_block = ConvBlock(inputs, box_width, norm=False) if box_width else None
        with torch.no_grad():
            self.objectness.weight.mul_(0.1)
            self.deltas.weight.mul_(0.1)
        nn.init.constant_(self.objectness.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]


class AnchorEmbedding(nn.Module):
    """A linear map, one per anchor, from features (..., C) to the anchor's embedding (..., E)."""

    def __init__(self, inputs: int, anchors: int, outputs: int) -> None:
        super().__init__()
        scale = (3.0 / (inputs * outputs)) ** 0.5
        self.kernel = nn.Parameter(torch.empty(anchors, inputs, outputs).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.zeros(anchors, outputs))

    def forward(self, features: Tensor, anchor: Tensor) -> Tensor:
        """Embed anchors: features (..., C) of their cells, anchor number (...,)."""
        everyone = torch.einsum("...c,ace->...ae", features, self.kernel) + self.bias
        return _own(everyone, anchor)


class TorchDetector(nn.Module):
    """Twin of `cmb_jax.detector.network.Detector`.

    The arithmetic is of the image's and the parameters' common type; others: `sides.on_torch.forms_of`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        anchors = len(config.anchor_diameters_mm)
        self.unet = UNet(IMAGE_CHANNELS * math.prod(STEM_STRIDE), config)
        self.fusion = FeatureFusion(config)
        self.head = ProposalHead(self.fusion.outputs, config.head_width, anchors, config.box_width)
        if config.use_prototypes:
            self.embedding = AnchorEmbedding(config.head_width, anchors, config.embedding_dim)
            points = torch.randn(2 * config.prototypes_per_class, config.embedding_dim)
            self.prototypes = nn.Parameter(
                F.normalize(points).view(2, config.prototypes_per_class, config.embedding_dim)
            )
        if config.semantic_head:  # weights alone: no output here looks at them
            self.semantic = Conv(self.fusion.outputs, SEMANTIC_CLASSES)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image (B, 2, Z, Y, X) -> features (B, C, ...), objectness (B, A, ...), deltas (B, 6 A, ...)."""
        fused = self.fused(image)
        features = self.head.block(fused)
        box_features = features if self.head.box_block is None else self.head.box_block(fused)
        return features, self.head.objectness(features), self.head.deltas(box_features)

    def training_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and objectness alone: training reads box codes at a few anchors only (`box_codes`)."""
        features = self.head.block(self.fused(image))
        return features, self.head.objectness(features)

    def fused(self, image: Tensor) -> Tensor:
        """Fused levels (B, C, Z, Y / 2, X / 2) of an image (B, 2, Z, Y, X)."""
        return self.fusion(self.unet(_space_to_depth(image)))

    def box_codes(self, features: Tensor, anchor: Tensor) -> Tensor:
        """Box codes (..., 6) of single anchors: features (..., C) of their cells, anchor number (...,)."""
        deltas = self.head.deltas
        return _own(F.linear(features, deltas.weight.flatten(1), deltas.bias).unflatten(-1, (-1, 6)), anchor)


def channels_last(x: Tensor) -> Tensor:
    """The (B, Z, Y, X, C) view of (B, C, Z, Y, X)."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """The (B, C, Z, Y, X) view of (B, Z, Y, X, C)."""
    return x.permute(0, 4, 1, 2, 3)


def _blocks(count: int, inputs: int, outputs: int, *, norm: bool) -> nn.Sequential:
    widths = [inputs, *[outputs] * count]
    return nn.Sequential(*(ConvBlock(widths[i], outputs, norm=norm) for i in range(count)))


def _add_risen(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add the coarse map, each voxel repeated 2 x 2 x 2 times, to the fine one, in place."""
    return fine.add_(F.interpolate(coarse, scale_factor=2))


def _space_to_depth(image: Tensor) -> Tensor:
    """(B, C, Z, Y, X) -> (B, 4 C, Z, Y/2, X/2); channel order y, x, channel."""
    batch, channels, z, y, x = image.shape
    blocks = channels_last(image).reshape(batch, z, y // 2, 2, x // 2, 2, channels)
    return channels_first(blocks.transpose(3, 4).reshape(batch, z, y // 2, x // 2, 4 * channels))


def _own(everyone: Tensor, anchor: Tensor) -> Tensor:
    """Of (..., A, E) each row's own anchor (...,): (..., E)."""
    index = anchor[..., None, None].expand(*anchor.shape, 1, everyone.shape[-1])
    return everyone.gather(-2, index).squeeze(-2)
