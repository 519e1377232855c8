"""The device mesh and where arrays lie on it: the one place that knows."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.errors import UserError


def make_mesh(data: int = 1, space: int = 1) -> Mesh:
    """A mesh ("data", "space"): `data` devices share the batch, `space` share each volume's depth.

    Raises:
      UserError: if there are fewer devices than data * space.
    """
    needed, present = data * space, jax.device_count()
    if needed > present:
        raise UserError(
            f"the mesh {data} x {space} needs {needed} devices but {present} are here: "
            "set train.mesh_data and train.mesh_space to a product that fits"
        )
    devices = np.array(jax.devices()[:needed]).reshape(data, space)
    # Auto, because the atlas gather and Explicit axes do not go together in this JAX.
    return Mesh(devices, ("data", "space"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole: parameters, optimiser state, scalars."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis over "data": boxes and masks."""
    return NamedSharding(mesh, P("data"))


def over_batch_and_depth(mesh: Mesh) -> NamedSharding:
    """First axis over "data", second (depth) over "space": images and maps."""
    return NamedSharding(mesh, P("data", "space"))
