"""Our non-maximum suppression."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_jax import device_peak_mb
from cmb_jax.detector.nms import nms_3d

__all__ = ["device_peak_mb", "prepare"]

IOU = 0.1


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """At most a fifth is kept, about twice what is found."""
    count = options["boxes"]
    boxes, scores = (jnp.asarray(part) for part in inputs.clustered_boxes(count))
    return Prepared(
        run=lambda: jax.block_until_ready(nms_3d(boxes, scores, IOU, max_output=count // 5)),
        result=lambda kept: float(kept.valid.sum()),
    )
