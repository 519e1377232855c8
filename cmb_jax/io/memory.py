"""Whether an image fits into memory, asked before it is read."""

from __future__ import annotations

import math
from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.header import open_header, world_affine
from cmb_jax.io.nifti import reduction_step

_AT_REST = 1.0e9  # bytes: program and network
# Bytes of a voxel that is worked on: SWI, phase and radians, mask, region, and while the phase is filtered
# three complex images and their parts.
_PER_VOXEL = 85.0
_WHILE_READ = 2  # times the content of a file: it lies packed beside it
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
    needed = _AT_REST + max(_needed(path) for path in (swi, phase) if path)
    there = available_bytes()
    if needed > there:
        raise UserError(
            f"{swi}: is so large that it takes about {needed / 1e9:.1f} GB of memory, but "
            f"{there / 1e9:.1f} GB are free; close other programs, crop it to the head, or resample it to "
            "0.5 mm"
        )


def _needed(path: Path) -> float:
    """Bytes while a file is read, or while its voxels are worked on, whichever are more."""
    file = open_header(path)
    affine, _ = world_affine(file)
    voxels = math.prod(file.image.shape)
    step = math.prod(reduction_step(file, affine))
    content = voxels * file.image.get_data_dtype().itemsize
    return max(_WHILE_READ * content, _PER_VOXEL * voxels / step)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
