"""What JAX computes on, in a line for people; and how a training process holds its memory."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from pathlib import Path

import jax

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
        there = tuple(path for path in paths if (root / path.lstrip("/")).exists())
        if there:
            found[extra] = (name, there)
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
