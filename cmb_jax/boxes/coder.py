"""Box code relative to an anchor: centre offset over anchor size, log of the size ratio.

The code of R-CNN (Girshick et al. 2014, arXiv:1311.2524, appendix C) with a third axis.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from cmb_jax.boxes.geometry import box_centers, box_sizes, boxes_from_centers

# A decoded box is at most 64 times larger or smaller than its anchor, so the exponential cannot overflow.
MAX_LOG_RATIO = math.log(64.0)
# Truths thinner than this many voxels are coded as if they had this size; keeps the logarithm finite.
MIN_SIZE = 1e-3


def encode_boxes(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Code (..., 6) of boxes (..., 6) relative to anchors (..., 6) of positive size; always finite."""
    anchor_size = box_sizes(anchors)
    offset = (box_centers(boxes) - box_centers(anchors)) / anchor_size
    log_ratio = jnp.log(jnp.maximum(box_sizes(boxes), MIN_SIZE) / anchor_size)
    return jnp.concatenate([offset, log_ratio], axis=-1)


def decode_boxes(anchors: jax.Array, deltas: jax.Array) -> jax.Array:
    """Boxes (..., 6) from anchors (..., 6) and their codes (..., 6); inverse of `encode_boxes`.

    Log size ratios are clipped to +-MAX_LOG_RATIO.
    """
    anchor_size = box_sizes(anchors)
    center = box_centers(anchors) + deltas[..., :3] * anchor_size
    ratio = jnp.exp(jnp.clip(deltas[..., 3:], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return boxes_from_centers(center, ratio * anchor_size)
