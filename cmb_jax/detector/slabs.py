"""The detector on a whole volume without ever holding a map of its finest level: slab by slab along z.

All that lies below the finest level is an eighth of its size or less and is computed once. The finest level
itself reaches only a plane or two along z, so it is computed anew for each slab, from the image up. The
numbers are those of `Detector.__call__`; memory is that of a slab, whatever the depth of the volume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from cmb_jax.detector.network import Detector
from cmb_jax.ops.resample import max_pool

MOST_PLANES = 16  # of a slab: some MB for each map of it
T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What the finest level takes from those below, (B, Z / 2, Y / 2, X / 2, C) in its cells Z, Y, X."""

    reduced: jax.Array  # for the U-Net's finest decoder level, channels reduced
    fused: jax.Array | None  # for the feature fusion; None without it


def slab_planes(depth: int) -> int:
    """Planes of a slab: the largest even number up to `MOST_PLANES` that divides the depth, else all."""
    return next((n for n in range(MOST_PLANES, 0, -2) if depth % n == 0), depth)


def map_slabs(function: Callable[[jax.Array], T], depth: int) -> T:
    """Apply a function of a slab's first plane to all slabs, one after another; results are stacked."""
    return lax.map(function, jnp.arange(0, depth, slab_planes(depth), dtype=jnp.int32))


def context_of(detector: Detector, image: jax.Array) -> Context:
    """Everything below the finest level, for an image (B, Z, Y, X, 2) as in `Detector.__call__`."""
    depth = image.shape[1]
    planes, reach = slab_planes(depth), _even(_reach_of_encoder(detector))

    def pooled(first: jax.Array) -> jax.Array:
        start, count = _around(first, planes, reach, depth)
        return _planes(max_pool(_skip(detector, image, start, count)), (first - start) // 2, planes // 2)

    slabs = map_slabs(pooled, depth)  # (slabs, B, planes / 2, Y, X, C)
    below = detector.unet.below(jnp.moveaxis(slabs, 0, 1).reshape(slabs.shape[1], -1, *slabs.shape[3:]))
    return Context(
        reduced=detector.unet.rises[0](below[0]),
        fused=detector.fusion.below([below[i] for i in range(len(detector.fusion.reduce) - 1)]),
    )


def slab_maps(
    detector: Detector, image: jax.Array, context: Context, first: jax.Array
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
