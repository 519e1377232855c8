"""The programs that are planned for: training step and inference, lowered and compiled without values."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from cmb_jax.boxes.types import Detections, Truths
from cmb_jax.config import Config
from cmb_jax.errors import UserError
from cmb_jax.inference.proposals import best_of_windows, window_candidates
from cmb_jax.models.detector import Detector
from cmb_jax.models.functional import Template
from cmb_jax.training.sharding import over_batch, replicated
from cmb_jax.training.state import TrainState, init_state
from cmb_jax.training.step import DeviceBatch, batch_shardings, make_step

ACCELERATORS = ("cuda", "tpu")


def tpu_mesh(data: int, space: int, topology: str) -> Mesh:
    """A mesh of TPUs that are not there, to compile for; needs the package libtpu.

    Args:
        data: devices that share the batch.
        space: devices that share the depth.
        topology: such as "v5e:2x4", of data * space devices.

    Raises:
        UserError: libtpu is not installed or knows no such topology.
    """
    # libtpu asks the cloud's server who it is unless it is told
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except (RuntimeError, ImportError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise UserError(
            f"no compiler for the TPU slice {topology} ({str(error).splitlines()[0]}): "
            "pip install 'cmb-jax[tpu-check]'"
        ) from error
    return Mesh(np.array(devices).reshape(data, space), ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def step_arguments(config: Config, mesh: Mesh) -> tuple[TrainState, DeviceBatch]:
    """State and batch as shapes, types and places on the mesh; nothing is allocated."""
    data = config.data
    z, y, x = data.patch_shape
    batch, truths = data.batch_size, data.max_truths
    shapes = DeviceBatch(
        image=jax.ShapeDtypeStruct((batch, z, y, x, 2), jnp.float32),  # type: ignore[arg-type]
        truths=Truths(
            boxes=jax.ShapeDtypeStruct((batch, truths, 6), jnp.float32),  # type: ignore[arg-type]
            valid=jax.ShapeDtypeStruct((batch, truths), jnp.bool_),  # type: ignore[arg-type]
            ignored=jax.ShapeDtypeStruct((batch, truths), jnp.bool_),  # type: ignore[arg-type]
        ),
        mimics=jax.ShapeDtypeStruct((batch, z, y // 2, x // 2), jnp.uint8),  # type: ignore[arg-type]
    )
    state = jax.eval_shape(lambda: init_state(config, mesh))
    everywhere = replicated(mesh)
    return (
        jax.tree.map(lambda leaf: _placed(leaf, everywhere), state),
        jax.tree.map(_placed, shapes, batch_shardings(mesh)),
    )


def _placed(leaf: Any, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def export_step(
    config: Config, mesh: Mesh, platforms: tuple[str, ...] = ACCELERATORS, *, anywhere: bool = False
) -> export.Exported:
    """The training step lowered for other platforms than this machine's.

    Args:
        config: the experiment; `data.batch_size` is of the whole mesh.
        mesh: its shape alone counts, its devices may be simulated.
        platforms: "cuda", "tpu".
        anywhere: let it be called on any platform, such as to compile an accelerator's program here.
    """
    checks = [export.DisabledSafetyCheck.platform()] if anywhere else []
    exporter = export.export(make_step(config, mesh), platforms=platforms, disabled_checks=checks)
    return exporter(*step_arguments(config, mesh))


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """The training step for the devices of the mesh: this machine's, or ones of `tpu_mesh`."""
    return make_step(config, mesh).lower(*step_arguments(config, mesh)).compile()


def compile_accelerator_step(config: Config, mesh: Mesh, platform: str = "tpu") -> jax.stages.Compiled:
    """The step that an accelerator is given, partitioned over the mesh and compiled by this machine's XLA.

    Partitioning, and with it the messages, comes before the part of the compiler that knows the device;
    fusion and layout are those of a processor.
    """
    exported = export_step(config, mesh, (platform,), anywhere=True)
    call = jax.jit(exported.call, donate_argnums=0)
    return call.lower(*step_arguments(config, mesh)).compile()


def export_inference(
    config: Config, mesh: Mesh, windows: int, platforms: tuple[str, ...] = ACCELERATORS
) -> export.Exported:
    """From prepared windows to scored boxes (network, decoding, suppression), windows spread over the mesh.

    Args:
        config: network, window shape (`inference.tile_shape`), thresholds.
        mesh: windows lie on its "data" axis, so their number is a multiple of it.
        windows: how many.
        platforms: "cuda", "tpu".
    """
    template = Template.of(
        lambda: Detector(config.model, precision=config.inference.precision, rngs=nnx.Rngs(0))
    )
    candidates = functools.partial(window_candidates, template, config)

    def infer(params: Any, images: jax.Array, *corners: jax.Array) -> Detections:
        found = jax.vmap(candidates, in_axes=(None, 0, 0, 0, 0))((params,), images[:, None], *corners)
        return best_of_windows(config, jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), found))

    spread, everywhere = over_batch(mesh), replicated(mesh)
    corner = jax.ShapeDtypeStruct((windows, 3), jnp.int32)
    images = jax.ShapeDtypeStruct((windows, *config.inference.tile_shape, 2), jnp.float32)
    jitted = jax.jit(infer, in_shardings=(everywhere, *[spread] * 4), out_shardings=everywhere)
    return export.export(jitted, platforms=platforms)(template.shapes(), images, corner, corner, corner)
