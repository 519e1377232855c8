"""The detector: space-to-depth stem, U-Net, feature fusion, region proposals, prototypes, semantic head.

Its modules are used functionally (`Template`): weights travel as a pure dict, the structure stays outside of
jit. B batch, Z Y X cells of the proposal grid, C channels, A anchors per cell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cmb_jax.config import PROPOSAL_STRIDE, ModelConfig, Precision, Triple
from cmb_jax.detector.heads import AnchorEmbedding, ProposalHead, initial_prototypes
from cmb_jax.detector.unet import Conv, FeatureFusion, UNet, at_least_float32, dependence_radius
from cmb_jax.ops.resample import max_pool, space_to_depth


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalMaps:
    """Dense maps of the region proposal network on its grid (stride (1, 2, 2) from the working grid)."""

    features: jax.Array  # (B, Z, Y, X, C) features of the scores; embeddings are read from them
    box_input: jax.Array  # (B, Z, Y, X, C) what the box codes of single anchors are computed from
    objectness: jax.Array  # (B, Z, Y, X, A) logits
    deltas: jax.Array  # (B, Z, Y, X, A, 6) box code: center offset over anchor size, log size ratio
    semantic: jax.Array | None  # (B, Z, Y, X, classes) logits; None without a semantic head


Module = TypeVar("Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, eq=False)
class Template(Generic[Module]):
    """The structure of a module without weights; close over it in jitted functions, never pass it in."""

    graph: nnx.GraphDef
    abstract: nnx.State  # shapes and types of the parameters

    @classmethod
    def of(cls, make: Callable[[], Module]) -> Template[Module]:
        """Structure of what `make` builds; nothing is allocated."""
        return cls(*nnx.split(nnx.eval_shape(make)))

    def bind(self, params: Any) -> Module:
        """The module with the weights of a pure dict (arrays or tracers)."""
        # a copy, because it is filled in place
        state = jax.tree.map(lambda leaf: leaf, self.abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def shapes(self) -> Any:
        """The pure dict of parameters as `jax.ShapeDtypeStruct`."""
        return nnx.to_pure_dict(self.abstract)


def params_of(module: nnx.Module) -> Any:
    """The parameters of a module as a pure dict."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


IMAGE_CHANNELS = 2
FUSED_LEVELS = 3  # P1..P3
SEMANTIC_CLASSES = 7  # `anchor_losses.py` says which


class Detector(nnx.Module):
    """Find candidate microbleeds on a dense grid of anchors.

    The four configurations of one code path: with `use_fusion` the head sees P1..P3, else P1 alone, or P2
    alone with `second_level`, where the finest decoder level and its part of the fusion lie idle; with
    `use_prototypes` there are anchor embeddings and prototypes for the prototype loss. Embeddings, prototypes
    and the semantic head have weights that training alone uses.

    Args:
        config: sizes and switches.
        precision: type of maps and products, as `config.TrainConfig.precision`.
        rngs: source of the initial parameters.
    """

    def __init__(self, config: ModelConfig, *, precision: Precision = "float32", rngs: nnx.Rngs) -> None:
        self.config = config
        self.precision = precision
        # no norm on the finest level: it costs most there, and without one absolute intensities get through
        inputs = IMAGE_CHANNELS * PROPOSAL_STRIDE[0] * PROPOSAL_STRIDE[1] * PROPOSAL_STRIDE[2]
        self.unet = UNet(
            inputs,
            config.widths,
            config.encoder_convs,
            config.decoder_convs,
            config.stem_kernel,
            finest_norm=False,
            remat=config.remat,
            rngs=rngs,
        )
        levels = FUSED_LEVELS if config.use_fusion else 1 + config.second_level
        self.fusion = FeatureFusion(
            config.widths[:levels],
            config.fusion_width,
            config.fusion,
            finest=not config.second_level,
            rngs=rngs,
        )
        anchors = len(config.anchor_diameters_mm)
        self.head = ProposalHead(
            self.fusion.outputs,
            config.head_width,
            anchors,
            box_width=config.box_width,
            remat=config.remat,
            rngs=rngs,
        )
        if config.use_prototypes:
            self.embedding = AnchorEmbedding(config.head_width, anchors, config.embedding_dim, rngs=rngs)
            self.prototypes = nnx.Param(
                initial_prototypes(config.prototypes_per_class, config.embedding_dim, rngs.params())
            )
        if config.semantic_head:
            self.semantic = Conv(self.fusion.outputs, SEMANTIC_CLASSES, rngs=rngs)
        # last, when all convolutions exist: this reaches every one of them
        if precision != "float32":
            self.set_attributes(Conv, products="bfloat16")

    def __call__(self, image: jax.Array) -> ProposalMaps:
        """Propose boxes.

        Args:
            image: (B, Z, Y, X, 2) on the working grid: SWI scaled by brain percentiles, phase over pi
                (paramagnetic positive, zero where there is none).

        Returns:
            Maps on the proposal grid (B, Z, Y / 2, X / 2, ...).

        Raises:
            ValueError: the image has not two channels, or its size is not a multiple of the total stride.
        """
        stride = self.config.total_stride
        if image.ndim != 5 or image.shape[-1] != IMAGE_CHANNELS:
            raise ValueError(f"the detector takes images of shape (B, Z, Y, X, 2), got {image.shape}")
        if any(size % step for size, step in zip(image.shape[1:4], stride, strict=True)):
            raise ValueError(
                f"the detector takes images whose size (z, y, x) is a multiple of {stride}, "
                f"got {image.shape[1:4]}: pad the image at its far ends"
            )
        levels = self.unet(self.cells(image))
        fused = self.fusion(levels[: len(self.fusion.reduce)])
        features, objectness = self.head.scores(fused)
        box_input = self.head.box_input(fused, features)
        return ProposalMaps(
            features=features,
            objectness=objectness,
            box_input=box_input,
            deltas=self.head.box_codes(box_input),
            semantic=at_least_float32(self.semantic(fused)) if self.config.semantic_head else None,
        )

    def cells(self, image: jax.Array) -> jax.Array:
        """The network's input (B, Z, Y / 2, X / 2, 8) of an image (B, Z, Y, X, 2)."""
        maps = image.astype(jnp.bfloat16) if self.precision == "bfloat16" else at_least_float32(image)
        return space_to_depth(maps, PROPOSAL_STRIDE)

    def embed(self, features: jax.Array, anchor_index: jax.Array) -> jax.Array:
        """Embed anchors for the prototype loss: (..., C) features and (...,) anchor number to (..., E).

        Raises:
            ValueError: the configuration has no prototypes.
        """
        if not self.config.use_prototypes:
            raise ValueError("this detector was configured without prototypes and has no embedding")
        return self.embedding(features, anchor_index)

    def box_codes(self, box_input: jax.Array, anchors: jax.Array) -> jax.Array:
        """Box codes (B, S, 6) of flat anchors (B, S), from `ProposalMaps.box_input` (B, Z, Y, X, C).

        The same numbers as in `ProposalMaps.deltas`, for the few anchors whose codes are looked at.
        """
        each = len(self.config.anchor_diameters_mm)
        codes = self.head.box_codes_at(box_input, anchors // each)  # (B, S, A, 6)
        return jnp.take_along_axis(codes, (anchors % each)[..., None, None], axis=2)[:, :, 0]


def receptive_halo(config: ModelConfig) -> Triple:
    """Working-grid voxels (z, y, x) around a block of proposals on which the block depends.

    Rounded up to whole cells of the coarsest level, so that a window with this halo around an aligned core
    gives the values of the whole volume in the core.
    """
    radius = dependence_radius(config.encoder_convs, config.decoder_convs, config.stem_kernel, head_convs=1)
    z, y, x = (
        -(-cells * stem // stride) * stride
        for cells, stem, stride in zip(radius, PROPOSAL_STRIDE, config.total_stride, strict=True)
    )
    return (z, y, x)


def forward_gflop(shapes: Any, image_shape: Triple, batch: int = 1) -> float:
    """1e9 floating-point operations of the convolutions of a forward pass, a multiply-add being two.

    Args:
        shapes: pure dict of the detector's parameters, or of their shapes.
        image_shape: (z, y, x) working-grid voxels.
        batch: images.
    """
    return batch * sum(_by_layer(shapes, image_shape).values())


def training_gflop(shapes: Any, image_shape: Triple, batch: int) -> float:
    """1e9 operations of loss and gradient: forward, gradient of the input, gradient of the kernel.

    The image needs no gradient, and box codes are computed at a few anchors only.
    """
    layers = _by_layer(shapes, image_shape)
    for at_few_anchors in ("head.deltas", "head.box_block.conv"):
        layers.pop(at_few_anchors, None)
    return batch * (3 * sum(layers.values()) - layers["unet.stem.conv"])


def _by_layer(shapes: Any, image_shape: Triple) -> dict[str, float]:
    """1e9 operations of each convolution for one image."""
    found = {}
    cells = image_shape[0] * image_shape[1] * image_shape[2] / 4  # space-to-depth halves y and x
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        names = [str(entry.key) for entry in path]
        if names[-1] == "kernel" and len(leaf.shape) == 5:
            voxels = cells / 8 ** _level(names)
            found[".".join(names[:-1])] = 2e-9 * math.prod(leaf.shape) * voxels
    return found


def _level(names: list[str]) -> int:
    """How many times the grid of a layer was halved. What rises to a level is computed one below it."""
    part = names[1]
    if part in ("encoder", "laterals", "decoder", "reduce"):
        return int(names[2])
    if part == "rises":
        return int(names[2]) + 1
    return 0


# A whole volume goes through slab by slab along z; no map of its finest level is ever held whole. What lies
# below that level is an eighth of its size or less and is computed once. The finest level itself reaches only
# a plane or two along z, so it is computed anew for each slab, from the image up. The numbers are those of
# `Detector.__call__`; memory is that of a slab, whatever the depth of the volume.
MOST_PLANES = 16  # of a slab: some MB for each map of it
T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlabContext:
    """What the finest level takes from those below, (B, Z / 2, Y / 2, X / 2, C) in its cells Z, Y, X."""

    reduced: jax.Array  # for the U-Net's finest decoder level, channels reduced
    fused: jax.Array | None  # for the feature fusion; None without it


def slab_planes(depth: int) -> int:
    """Planes of a slab: the largest even number up to `MOST_PLANES` that divides the depth, else all."""
    return next((n for n in range(MOST_PLANES, 0, -2) if depth % n == 0), depth)


def map_slabs(function: Callable[[jax.Array], T], depth: int) -> T:
    """Apply a function of a slab's first plane to all slabs, one after another; results are stacked."""
    return lax.map(function, jnp.arange(0, depth, slab_planes(depth), dtype=jnp.int32))


def context_of(detector: Detector, image: jax.Array) -> SlabContext:
    """Everything below the finest level, for an image (B, Z, Y, X, 2) as in `Detector.__call__`."""
    depth = image.shape[1]
    planes, reach = slab_planes(depth), _even(_reach_of_encoder(detector))

    def pooled(first: jax.Array) -> jax.Array:
        start, count = _around(first, planes, reach, depth)
        return _planes(max_pool(_skip(detector, image, start, count)), (first - start) // 2, planes // 2)

    slabs = map_slabs(pooled, depth)  # (slabs, B, planes / 2, Y, X, C)
    below = detector.unet.below(jnp.moveaxis(slabs, 0, 1).reshape(slabs.shape[1], -1, *slabs.shape[3:]))
    return SlabContext(
        reduced=detector.unet.rises[0](below[0]),
        fused=detector.fusion.below([below[i] for i in range(len(detector.fusion.reduce) - 1)]),
    )


def slab_maps(
    detector: Detector, image: jax.Array, context: SlabContext, first: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Objectness of one slab and of some planes around it, and what their box codes are computed from.

    Args:
        detector: the network.
        image: (B, Z, Y, X, 2) as in `Detector.__call__`.
        context: of the same image.
        first: () int32, the slab's first plane, a multiple of `slab_planes`.

    Returns:
        start: () int32, plane of the first result.
        box_input: (B, N, Y / 2, X / 2, C) of N planes, those of the slab among them. Only the slab's box
            codes are right: the others are as if the volume ended with the last of them.
        objectness: (B, N, Y / 2, X / 2, A) float32 logits of the same planes.
    """
    depth = image.shape[1]
    head = 1
    reach = _even(_reach_of_encoder(detector) + len(detector.unet.decoder[0]) + head)
    start, count = _around(first, slab_planes(depth), reach, depth)
    skip = _skip(detector, image, start, count)
    reduced = _planes(context.reduced, start // 2, count // 2)
    fused = None if context.fused is None else _planes(context.fused, start // 2, count // 2)
    fine = detector.fusion.fine(detector.unet.refine(0, skip, reduced), fused)
    features, objectness = detector.head.scores(fine)
    return start, detector.head.box_input(fine, features), objectness


def _reach_of_encoder(detector: Detector) -> int:
    """Planes to each side on which the finest encoder level depends."""
    return detector.config.stem_kernel[0] // 2 + detector.config.encoder_convs[0]


def _even(planes: int) -> int:
    return planes + planes % 2


def _skip(detector: Detector, image: jax.Array, start: jax.Array, count: int) -> jax.Array:
    return detector.unet.fine(detector.cells(_planes(image, start, count)))


def _around(first: jax.Array, planes: int, reach: int, depth: int) -> tuple[jax.Array, int]:
    """First plane and number of planes of a slab with its reach.

    The window stays inside the volume: at a face it ends with the volume, where the network pads with zeros
    as it does for the whole, and on the slab's other side it then holds more planes than needed.
    """
    count = min(planes + 2 * reach, depth)
    return jnp.clip(first - reach, 0, depth - count), count


def _planes(x: jax.Array, start: jax.Array, count: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, count, axis=1)
