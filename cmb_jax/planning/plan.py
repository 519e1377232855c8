"""A training step on a mesh of devices: what it costs each of them and how long it should take."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.config import Config
from cmb_jax.hardware import ACCELERATORS, Hardware, measured_cpu
from cmb_jax.models.flops import training_gflop
from cmb_jax.planning.costs import Costs, costs_of
from cmb_jax.planning.estimate import Seconds, predict
from cmb_jax.planning.hlo import parse
from cmb_jax.planning.program import compile_accelerator_step, compile_step, step_arguments
from cmb_jax.training.sharding import make_mesh
from cmb_jax.training.state import init_state

CPU = "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, as the compiler lays them out."""

    arguments: float  # state and batch
    temporaries: float
    code: float

    @property
    def total(self) -> float:
        """Of all; the results take the place of the state."""
        return self.arguments + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One training step on a mesh."""

    config: Config  # `data.batch_size` is of the whole mesh
    mesh: tuple[int, int]  # devices that share the batch, the depth
    hardware: Hardware
    model_flops: float  # what one step of the model needs, over all devices
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
        """Time of the whole work on one device, over the number of devices, over the time of the mesh."""
        return self.one_device_seconds.total / self.devices / self.seconds.total

    @property
    def utilisation(self) -> float:
        """Model FLOP utilisation that is predicted."""
        peak = self.hardware.flops(self.config.train.precision) * self.devices
        return self.model_flops / self.seconds.total / peak


def plan_step(config: Config, mesh: tuple[int, int], hardware: str) -> StepPlan:
    """Compile a step for the mesh and for a single device, and read both programs.

    Args:
        config: the experiment; `data.batch_size` counts for each of the devices that share the batch.
        mesh: devices that share the batch, devices that share the depth; they may be simulated.
        hardware: "cpu" or a key of `hardware.ACCELERATORS`.

    Raises:
        UserError: fewer devices than the mesh needs, or a batch that `train.accumulate` does not divide.
    """
    whole = dataclasses.replace(config.data, batch_size=config.data.batch_size * mesh[0])
    config = dataclasses.replace(config, data=whole)
    device = measured_cpu() if hardware == CPU else ACCELERATORS[hardware]
    costs, memory = _read(config, mesh, hardware)
    alone = costs if mesh == (1, 1) else _read(config, (1, 1), hardware)[0]
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
        one_device_seconds=predict(alone, device, precision),
    )


def _read(config: Config, shape: tuple[int, int], hardware: str) -> tuple[Costs, Memory]:
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
    """Least seconds of a step on one device of this machine, on noise without lesions."""
    mesh = make_mesh()
    step = compile_step(config, mesh)
    state, batch = init_state(config, mesh), step_arguments(config, mesh)[1]
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal(batch.image.shape, np.float32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
    batch = jax.device_put(dataclasses.replace(zeros, image=noise), jax.tree.map(lambda a: a.sharding, batch))
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
