"""Floating-point operations of the detector's convolutions, a multiply-add being two."""

from __future__ import annotations

import math
from typing import Any

import jax

from cmb_jax.config import Triple


def forward_gflop(shapes: Any, image_shape: Triple, batch: int = 1) -> float:
    """1e9 operations of a forward pass.

    Args:
        shapes: pure dict of the detector's parameters, or of their shapes.
        image_shape: (z, y, x) working-grid voxels.
        batch: images.
    """
    return batch * sum(_by_layer(shapes, image_shape).values())


def training_gflop(shapes: Any, image_shape: Triple, batch: int) -> float:
    """1e9 operations of loss and gradient: forward, towards the input, towards the kernel.

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
