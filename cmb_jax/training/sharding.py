"""The device mesh, and where arrays lie on it."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.config import Config
from cmb_jax.data.patches import Share
from cmb_jax.errors import UserError
from cmb_jax.ops.conv import DEPTH_AXIS

_AXES = ("data", DEPTH_AXIS)


def make_mesh(data: int = 1, space: int = 1) -> Mesh:
    """A mesh ("data", "space"): `data` devices share the batch, `space` share each volume's depth.

    Args:
      data: 0 takes all devices that `space` leaves.
      space: neighbors along it exchange planes at every convolution, so it should stay within one machine
        or one slice of a pod; JAX numbers the devices so.

    Raises:
      UserError: there are fewer devices than data * space, or several processes have more.
    """
    present = jax.device_count()
    data = data or max(1, present // space)
    needed = data * space
    if needed > present:
        raise UserError(
            f"the mesh {data} x {space} needs {needed} devices but {present} are here: "
            "set train.mesh_data and train.mesh_space to a product that fits"
        )
    if needed < present and jax.process_count() > 1:
        raise UserError(
            f"the mesh {data} x {space} has no work for {present - needed} of the {present} devices of "
            f"{jax.process_count()} processes: set train.mesh_data 0 (all that there are) and a "
            "train.mesh_space that divides them"
        )
    # Auto, because the atlas gather and Explicit axes do not go together in this JAX.
    return jax.make_mesh(
        (data, space), _AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=jax.devices()[:needed]
    )


def check_fit(config: Config, mesh: Mesh) -> None:
    """Refuse batches and patches that the mesh cannot share evenly.

    Raises:
      UserError: the batch is no multiple of the mesh's "data" times the parts that it is computed in, or the
        depth no multiple of its "space" times the network's stride along z.
    """
    data, space = mesh.devices.shape
    batch, parts = config.data.batch_size, config.train.accumulate
    if batch % (data * parts):
        each = f" in {parts} parts each" if parts > 1 else ""
        raise UserError(
            f"a batch of {batch} patches cannot be shared by {data} devices{each}: set data.batch_size to a "
            f"multiple of {data * parts}, or another train.mesh_data or train.accumulate"
        )
    depth, step = config.data.patch_shape[0], space * config.model.total_stride[0]
    if depth % step:
        raise UserError(
            f"patches of {depth} planes cannot be shared by {space} devices: the first of data.patch_shape "
            f"must be a multiple of {step}, or train.mesh_space another"
        )


def share_of_process(config: Config, mesh: Mesh) -> Share:
    """The patches and planes of every global batch that this process' devices hold."""
    size = (config.data.batch_size, config.data.patch_shape[0])
    parts = over_batch_and_depth(mesh).addressable_devices_indices_map(size).values()
    rows, planes = (
        sorted(
            {range(*part[axis].indices(size[axis])) for part in parts if part}, key=lambda held: held.start
        )
        for axis in range(2)
    )
    return Share(rows=range(rows[0].start, rows[-1].stop), planes=range(planes[0].start, planes[-1].stop))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: parameters, optimizer state, scalars."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis over "data": boxes and masks."""
    return NamedSharding(mesh, P("data"))


def over_batch_and_depth(mesh: Mesh) -> NamedSharding:
    """First axis over "data", second (depth) over "space": images and maps."""
    return NamedSharding(mesh, P(*_AXES))
