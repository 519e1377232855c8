"""A training step on a mesh of devices: its cost per device and its predicted time.

The step is lowered and compiled without data. Its time on a device is the sum of the roofline times of its
instructions.
"""

import dataclasses
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh

from cmb_jax.config import Config
from cmb_jax.detector.anchors import Truths
from cmb_jax.detector.network import training_gflop
from cmb_jax.devices import ACCELERATORS, Hardware, measured_cpu
from cmb_jax.research.costs import Collective, Costs, costs_of, parse
from cmb_jax.training.detector import DeviceBatch, batch_shardings, init_state, make_step
from cmb_jax.training.distributed import make_mesh, replicated
from cmb_jax.training.state import TrainState

PLATFORMS = ("cuda", "tpu")


def step_arguments(config: Config, mesh: Mesh) -> tuple[TrainState, DeviceBatch]:
    """State and batch as shapes, types and shardings; nothing is allocated."""
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
    config: Config, mesh: Mesh, platforms: tuple[str, ...] = PLATFORMS, *, anywhere: bool = False
) -> export.Exported:
    """The training step, lowered for platforms other than this machine's.

    Args:
        config: the experiment; `data.batch_size` is for the whole mesh.
        mesh: only its shape matters; its devices may be simulated.
        platforms: "cuda", "tpu".
        anywhere: allow calls on any platform, so that an accelerator's program can be compiled here.
    """
    checks = [export.DisabledSafetyCheck.platform()] if anywhere else []
    exporter = export.export(make_step(config, mesh), platforms=platforms, disabled_checks=checks)
    return exporter(*step_arguments(config, mesh))


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """The training step for the devices of the mesh."""
    return make_step(config, mesh).lower(*step_arguments(config, mesh)).compile()


def compile_accelerator_step(config: Config, mesh: Mesh, platform: str = "tpu") -> jax.stages.Compiled:
    """The step lowered for accelerators, partitioned over the mesh and compiled by this machine's XLA.

    XLA partitions the program, which determines the messages, before its device-specific passes; fusion and
    layout are those of a CPU.
    """
    exported = export_step(config, mesh, (platform,), anywhere=True)
    call = jax.jit(exported.call, donate_argnums=0)
    return call.lower(*step_arguments(config, mesh)).compile()


# assumed fraction of the nominal memory and link bandwidth
BANDWIDTH_SHARE = 0.8
# assumed, of one collective, in addition to its bytes
LATENCY_S = 5e-6

# bytes over each device's link in a ring of n devices, per byte on the device before the message
_RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds of one call."""

    computing: float  # of compute-bound instructions
    moving: float  # of memory-bound instructions
    messages: float  # assumed not to overlap with computation

    @property
    def total(self) -> float:
        """Sum of all three, which are assumed not to overlap."""
        return self.computing + self.moving + self.messages


def predict(costs: Costs, hardware: Hardware, precision: str) -> Seconds:
    """Each instruction takes max(operations / (share of peak), bytes / (share of bandwidth))."""
    # A device computes and moves at the same time, so an instruction takes the longer of the two. Summing
    # over instructions, not over the program, keeps a memory-bound one from hiding behind a compute-bound
    # one.
    peak = hardware.flops_share * hardware.flops(precision)
    bandwidth = BANDWIDTH_SHARE * hardware.memory_bandwidth
    computing = moving = 0.0
    for operation in costs.operations:
        by_flops, by_bytes = operation.flops / peak, operation.bytes / bandwidth
        if by_flops > by_bytes:
            computing += operation.times * by_flops
        else:
            moving += operation.times * by_bytes
    messages = sum(c.times * message_seconds(c, hardware) for c in costs.collectives)
    return Seconds(computing=computing, moving=moving, messages=messages)


def message_seconds(collective: Collective, hardware: Hardware) -> float:
    """Time of one collective: a ring over the links, or over the network if the group exceeds a domain."""
    inside = collective.devices <= hardware.domain
    bandwidth = BANDWIDTH_SHARE * (hardware.link_bandwidth if inside else hardware.network_bandwidth)
    return LATENCY_S + _RING[collective.kind](collective.devices) * collective.bytes / bandwidth


CPU = "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, as allocated by the compiler."""

    arguments: float  # state and batch
    temporaries: float
    code: float

    @property
    def total(self) -> float:
        """Sum; results are not counted, because they reuse the memory of the state."""
        return self.arguments + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One training step on a mesh."""

    config: Config  # `data.batch_size` is for the whole mesh
    mesh: tuple[int, int]  # devices that share the batch, devices that share the depth
    hardware: Hardware
    model_flops: float  # needed for one step of the model, over all devices
    costs: Costs  # of one device
    memory: Memory
    seconds: Seconds
    one_device_seconds: Seconds  # the same global batch on a single device

    @property
    def devices(self) -> int:
        """In the mesh."""
        return self.mesh[0] * self.mesh[1]

    @property
    def weak_scaling(self) -> float:
        """Efficiency: time on one device, divided by the number of devices and by the time of the mesh."""
        return self.one_device_seconds.total / self.devices / self.seconds.total

    @property
    def utilisation(self) -> float:
        """Predicted model FLOP utilization (the key in JSON files keeps its first spelling)."""
        peak = self.hardware.flops(self.config.train.precision) * self.devices
        return self.model_flops / self.seconds.total / peak


def plan_step(config: Config, mesh: tuple[int, int], hardware: str) -> StepPlan:
    """Compile a step for the mesh and for a single device, and derive the costs of both programs.

    Args:
        config: the experiment; `data.batch_size` is per device among those that share the batch.
        mesh: devices that share the batch, devices that share the depth; they may be simulated.
        hardware: "cpu" or a key of `devices.ACCELERATORS`.

    Raises:
        UserError: fewer devices than the mesh needs, or a batch that `train.accumulate` does not divide.
    """
    data = dataclasses.replace(config.data, batch_size=config.data.batch_size * mesh[0])
    config = dataclasses.replace(config, data=data)
    device = measured_cpu() if hardware == CPU else ACCELERATORS[hardware]
    costs, memory = _costs(config, mesh, hardware)
    single = costs if mesh == (1, 1) else _costs(config, (1, 1), hardware)[0]
    precision = config.train.precision
    params = step_arguments(config, make_mesh())[0].params
    return StepPlan(
        config=config,
        mesh=mesh,
        hardware=device,
        model_flops=1e9 * training_gflop(params, config.data.patch_shape, config.data.batch_size),
        costs=costs,
        memory=memory,
        seconds=predict(costs, device, precision),
        one_device_seconds=predict(single, device, precision),
    )


def _costs(config: Config, shape: tuple[int, int], hardware: str) -> tuple[Costs, Memory]:
    """Work and memory of one device of a mesh in a step."""
    mesh = make_mesh(*shape)
    if hardware == CPU:
        compiled = compile_step(config, mesh)
    else:
        compiled = compile_accelerator_step(config, mesh, "cuda" if hardware == "h100" else "tpu")
    found, text = compiled.memory_analysis(), compiled.as_text()
    if found is None or text is None:
        raise ValueError("this platform's compiler does not show its program")
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
    return costs_of(parse(text), mesh.size), memory


def measure_step(config: Config, repeats: int = 5) -> float:
    """Shortest time (s) of a step on one device of this machine, on noise without lesions."""
    mesh = make_mesh()
    step = compile_step(config, mesh)
    state, batch = init_state(config, mesh), step_arguments(config, mesh)[1]
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal(batch.image.shape, np.float32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
    batch = jax.device_put(dataclasses.replace(zeros, image=noise), jax.tree.map(lambda a: a.sharding, batch))
    # the minimum: other load on the machine can only make a step slower
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        tick = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - tick)
    return min(seconds[1:])


def describe(plan: StepPlan) -> str:
    """The plan in lines for the terminal."""
    config, costs, device, seconds = plan.config, plan.costs, plan.hardware, plan.seconds
    data, space = plan.mesh
    patch = " x ".join(map(str, config.data.patch_shape))
    model = config.model
    switches = f"{config.train.precision}, remat {model.remat}, accumulate {config.train.accumulate}"
    needed = plan.model_flops / plan.devices
    lines = [
        f"{config.name}: {plan.devices} x {device.name}, mesh {data} x {space} (batch x depth), "
        f"{config.data.batch_size} patches of {patch} a step; {switches}",
        "of each device and step, from the compiled program:",
        f"  operations     {costs.flops / 1e9:10.2f} GFLOP ({costs.flops / needed:.2f} of the model's share)",
        f"  memory traffic {costs.bytes / 1e6:10.0f} MB",
        f"  memory         {plan.memory.total / 1e6:10.0f} MB of {device.memory_bytes / 1e6:.0f}: "
        f"arguments {plan.memory.arguments / 1e6:.0f}, temporaries {plan.memory.temporaries / 1e6:.0f}",
    ]
    if plan.memory.total > device.memory_bytes:
        lines.append("  this does not fit: fewer patches, more --accumulate, --remat or more devices")
    count, size = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for message in costs.collectives:
        key = (message.kind, message.devices)
        count[key] += message.times
        size[key] += int(message.times * message.bytes)
    for (kind, group), times in sorted(count.items()):
        lines.append(f"  {times:3d} {kind} of {group} devices: {size[kind, group] / 1e6:.3f} MB")
    if not costs.collectives:
        lines.append("  no messages")
    if costs.unknown_loops:
        lines.append(f"  {costs.unknown_loops} loops whose length depends on the data were counted once")
    voxels = config.data.batch_size * float(np.prod(config.data.patch_shape))
    lines += [
        "predicted, not measured:",
        f"  step           {1e3 * seconds.total:10.2f} ms: bounded by operations "
        f"{1e3 * seconds.computing:.2f}, by memory {1e3 * seconds.moving:.2f}, "
        f"messages {1e3 * seconds.messages:.2f}",
        f"  speed          {voxels / seconds.total / 1e6:10.0f} million voxels/s",
        f"  utilisation    {100 * plan.utilisation:10.1f} % (model FLOP over peak)",
        f"  weak scaling   {100 * plan.weak_scaling:10.1f} % of one device's speed each",
    ]
    return "\n".join(lines)
