"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from benchmarks.cases import DEVICES, Device
from benchmarks.turns import measure

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "monai")


def look() -> tuple[Device, dict[str, str | int | None]]:
    """The device that both sides can use, and facts about the machine."""
    probed = measure(DEVICES, 1, "gpu")
    on_gpu = probed.ours.result == probed.other.result == 1.0
    facts: dict[str, str | int | None] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": cpu_model(),
        "gpu": probed.other.note if on_gpu else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "instruction_set": probed.ours.note,
        **{name: _version(name) for name in PACKAGES},
    }
    return "gpu" if on_gpu else "cpu", facts


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name with family and model numbers, as a bare name can stand for many."""
    try:
        lines = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    name = fields.get("model name", platform.machine())
    numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
    return f"{name} (family {numbers[0]}, model {numbers[1]})" if len(numbers) == 2 else name


def sentence(facts: dict[str, str | int | None], device: Device) -> str:
    """One line for the terminal."""
    versions = ", ".join(f"{name} {facts[name] or '-'}" for name in PACKAGES)
    where = facts["gpu"] if device == "gpu" else facts["cpu"]
    return f"{where}, {facts['cores']} cores, CPU kernel {facts['instruction_set']}; {versions}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
