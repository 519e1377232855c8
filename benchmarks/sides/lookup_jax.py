"""Our lookup of places in a region map."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_jax import device_peak_mb
from cmb_jax.anatomy.lookup import anatomical_lookup

__all__ = ["device_peak_mb", "prepare"]

VOXEL_MM = 2.0


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """From arrays on the device to arrays there."""
    shape = inputs.triple(options["shape"])
    points, diameters = inputs.places(options["points"], tuple(VOXEL_MM * size for size in shape))
    inverse = np.diag([1 / VOXEL_MM] * 3 + [1.0])
    given = tuple(jnp.asarray(part) for part in (points, diameters, inputs.regions(shape), inverse))
    return Prepared(
        run=lambda: jax.block_until_ready(anatomical_lookup(*given)),
        result=lambda place: float(place.region.sum() + 16 * place.side.sum() + 64 * place.keep.sum()),
    )
