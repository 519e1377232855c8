"""Volumes whose depth is shared by the devices of a mesh: what lies across the cut.

Inside `jax.shard_map`, an array that varies over the mesh axis `DEPTH_AXIS` is one device's part of a volume,
in the order of the devices along it. Operations on single voxels and on blocks that no cut divides need not
know; an operation that looks at the neighboring planes gets them here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

DEPTH_AXIS = "space"


def is_part_of_depth(x: jax.Array) -> bool:
    """Whether x is one of several parts of a volume's depth."""
    return DEPTH_AXIS in jax.typeof(x).manual_axis_type.varying and lax.axis_size(DEPTH_AXIS) > 1


def with_neighbors(x: jax.Array) -> jax.Array:
    """One plane of each neighboring part put before and after: (B, Z, ...) to (B, Z + 2, ...).

    Beyond the ends of the volume the planes are zero, as the network pads a whole volume.
    """
    last = lax.axis_size(DEPTH_AXIS) - 1
    upwards = [(part, part + 1) for part in range(last)]
    downwards = [(part + 1, part) for part in range(last)]
    before = lax.ppermute(x[:, -1:], DEPTH_AXIS, upwards)
    after = lax.ppermute(x[:, :1], DEPTH_AXIS, downwards)
    return jnp.concatenate([before, x, after], axis=1)
