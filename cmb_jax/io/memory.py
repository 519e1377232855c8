"""Whether an image fits into memory, asked before it is read."""

from __future__ import annotations

import math
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.header import open_header, world_affine
from cmb_jax.io.nifti import reduction_step

_AT_REST = 1.2e9  # bytes: program, network and the windows that it searches
_PER_VOXEL = 60.0  # bytes of a voxel that is worked on, measured with phase (docs/reliability.md)
_MEMORY_FILES = (  # what a container may take, and what it has
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_bytes() -> float:
    """Memory that this process can still have; infinite where the system does not say."""
    found = [math.inf]
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            found.append(float(line.split()[1]) * 1024)
    for limit, used in _MEMORY_FILES:
        numbers = [line for path in (limit, used) for line in _lines(path)]
        if len(numbers) == 2 and all(number.strip().isdigit() for number in numbers):
            found.append(float(numbers[0]) - float(numbers[1]))
    return min(found)


def check_fits(swi: Path, phase: Path | None = None) -> None:
    """Refuse a scan that would not fit into memory, before it is read.

    Args:
        swi: the image that is searched.
        phase: on the same grid.

    Raises:
        UserError: it takes more than there is; also as `io.header.open_header`.
    """
    needed = _AT_REST + sum(_needed(path, share) for path, share in ((swi, 1.0), (phase, 0.0)) if path)
    there = available_bytes()
    if needed > there:
        raise UserError(
            f"{swi}: is so large that it takes about {needed / 1e9:.0f} GB of memory, but "
            f"{there / 1e9:.0f} GB are free; close other programs, crop it to the head, or resample it to "
            "0.5 mm"
        )


def _needed(path: Path, worked_on: float) -> float:
    """Bytes of a file unpacked, and of a share of what is made of its voxels."""
    file = open_header(path)
    affine, _ = world_affine(file)
    voxels = math.prod(file.image.shape)
    step = math.prod(reduction_step(file, affine))
    return voxels * file.image.get_data_dtype().itemsize + worked_on * _PER_VOXEL * voxels / step


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
