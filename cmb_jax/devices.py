"""What JAX computes on and how fast that is at best; how a process holds its memory and compiled programs.

Sources of the figures, read in November 2026: docs.cloud.google.com/tpu/docs/v5e and /v5p; NVIDIA's H100 data
sheet (SXM, figures without sparsity) and its DGX H100 data sheet (one 400 Gb/s adapter per GPU).
"""

import ctypes
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.progress import tell

_TRACES = {
    "cuda12": ("NVIDIA GPU", ("/proc/driver/nvidia/version", "/dev/nvidia0")),
    "tpu": ("TPU", ("/dev/accel0", "/dev/vfio/0")),
}
"""Extra of the package -> what it is for, and the files by which the machine shows that it has one."""

_EXTRA = {"cuda": "cuda12", "tpu": "tpu"}


def device_line() -> str:
    """Such as "computing on 1 x NVIDIA H100 80GB HBM3"; names an accelerator that lies idle.

    Raises:
      UserError: JAX has none of the devices that --device or JAX_PLATFORMS asks for.
    """
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plugin of that name is installed
        asked = os.environ.get("JAX_PLATFORMS") or "any device"
        reason = (str(error).splitlines() or ["none was found"])[0]
        raise UserError(
            f"JAX cannot use {asked} ({reason}): run pip install 'cmb-jax[{_EXTRA.get(asked, 'cuda12')}]', "
            "check the driver, or leave --device out"
        ) from error
    if devices[0].platform != "cpu":
        kinds = Counter(device.device_kind for device in devices)
        return "computing on " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    line = f"computing on the processor ({cores} {'core' if cores == 1 else 'cores'})"
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":  # asked for
        return line
    for extra, (name, traces) in idle_accelerators().items():
        line += (
            f"; the {name} of this machine lies idle ({', '.join(traces)}): pip install 'cmb-jax[{extra}]'"
        )
    return line


def idle_accelerators(root: Path = Path("/")) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Accelerators of this machine by the extra that uses them, with the files that show them."""
    found = {}
    for extra, (name, paths) in _TRACES.items():
        present = tuple(path for path in paths if (root / path.lstrip("/")).exists())
        if present:
            found[extra] = (name, present)
    return found


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of handing it back to the system at once.

    XLA asks for its working memory anew at each call, some hundred MB, and glibc's allocator maps so large a
    piece afresh each time: writing to new pages then costs a third of a training step on two cores. The price
    is that the process stays as large as it has once been. Call it before the first computation, as the
    allocator's arenas, one per thread, have to be one.

    Returns:
      Whether the allocator took the settings; False where it is not glibc's.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # names of the settings in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(arena_max, 1), mallopt(mmap_max, 0), mallopt(trim_threshold, -1)])


def use_compilation_cache() -> None:
    """Say what is computed on; keep compiled programs between runs, beside the other cached files."""
    from cmb_jax.anatomy.assets import cache_dir

    tell(device_line())
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home costs time, not results
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and its links. Links count one direction."""

    name: str
    bfloat16_flops: float  # 1/s, a multiply-add being two
    float32_flops: float  # 1/s of mixed precision: TPUs round products to bfloat16, H100s to TF32
    flops_share: float  # of that, what convolutions are taken to reach
    memory_bytes: float
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s of a device to the others of its domain
    domain: int  # devices that are linked so; beyond it the network counts
    network_bandwidth: float  # bytes/s of a device to other domains
    kinds: tuple[str, ...] = ()  # `jax.Device.device_kind` of it

    def flops(self, precision: str) -> float:
        """Peak operations per second; of "float32" that of "mixed", since the table has no other."""
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops


_ASSUMED = 0.5  # no accelerator has been measured

ACCELERATORS = {
    "v5e": Hardware(
        name="TPU v5e",
        bfloat16_flops=197e12,
        float32_flops=197e12,
        flops_share=_ASSUMED,
        memory_bytes=16e9,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        domain=256,
        network_bandwidth=3.125e9,
        kinds=("TPU v5 lite", "TPU v5e"),
    ),
    "v5p": Hardware(
        name="TPU v5p",
        bfloat16_flops=459e12,
        float32_flops=459e12,
        flops_share=_ASSUMED,
        memory_bytes=95e9,
        memory_bandwidth=2765e9,
        link_bandwidth=600e9,
        domain=8960,
        network_bandwidth=6.25e9,
        kinds=("TPU v5", "TPU v5p"),
    ),
    "h100": Hardware(
        name="H100 SXM",
        bfloat16_flops=989e12,
        float32_flops=494e12,
        flops_share=_ASSUMED,
        memory_bytes=80e9,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        domain=8,
        network_bandwidth=50e9,
        kinds=("NVIDIA H100 80GB HBM3",),
    ),
}

# Of a matrix product, what our convolutions reach where memory does not bound them (docs/performance.md).
_OF_OUR_KERNELS = 0.8
_PRODUCT_EDGE = 1536
_COPIED_FLOATS = 32 * 2**20
_REPEATS = 8  # the first few ask the system for the memory that the later ones find


def measured_cpu() -> Hardware:
    """This machine's processor as one device: a float32 matrix product and a copy, the best of a few.

    Takes about half a second on two idle cores. Without `keep_freed_memory` the copy mostly waits for new
    pages. Simulated devices share the processor: links are copies in its memory.
    """
    flops = _product_flops()
    bandwidth = 8 * _COPIED_FLOATS / _least_seconds(jax.jit(lambda x: x + 1), jnp.zeros(_COPIED_FLOATS))
    return Hardware(
        name="this machine's processor",
        bfloat16_flops=flops,  # that of float32: what it gains by bfloat16 is not measured
        float32_flops=flops,
        flops_share=_OF_OUR_KERNELS,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_bandwidth=bandwidth,
        link_bandwidth=bandwidth,
        domain=jax.device_count(),
        network_bandwidth=bandwidth,
    )


def peak_flops(device: Any, precision: str) -> float | None:
    """Peak operations per second of a JAX device; of a processor as measured now, else from the table.

    Args:
        device: the table knows it by its `device_kind`.
        precision: of training, see `config.TrainConfig`.

    Returns:
        None for a device that is not in the table.
    """
    if device.platform == "cpu":
        return _product_flops()
    known = [h.flops(precision) for h in ACCELERATORS.values() if device.device_kind in h.kinds]
    return known[0] if known else None


def _product_flops() -> float:
    a = jnp.asarray(np.random.default_rng(0).standard_normal((_PRODUCT_EDGE,) * 2, np.float32))
    return 2 * _PRODUCT_EDGE**3 / _least_seconds(jax.jit(jnp.dot), a, a)


def _least_seconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    jax.block_until_ready(function(*arguments))  # compiles
    seconds = []
    for _ in range(_REPEATS):
        tick = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - tick)
    return min(seconds)
