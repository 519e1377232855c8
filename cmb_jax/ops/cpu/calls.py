"""What calls of compiled kernels need so that they work inside `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def vary_together(*arrays: jax.Array | None) -> list[Any]:
    """Under `shard_map`, mark all arrays as varying over the mesh axes that any of them varies over.

    The kernel's gradient is then summed over those axes by the transpose of this mark.
    """
    varying = [
        frozenset() if a is None else frozenset(jax.typeof(a).manual_axis_type.varying) for a in arrays
    ]
    every = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(every - own), to="varying") if array is not None and every - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def like(x: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What a call returns: under `shard_map` it varies over the mesh axes that x varies over."""
    kind = jax.typeof(x)
    if not kind.manual_axis_type.varying:
        return jax.ShapeDtypeStruct(shape, x.dtype)
    anywhere = NamedSharding(kind.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=anywhere, manual_axis_type=kind.manual_axis_type)
