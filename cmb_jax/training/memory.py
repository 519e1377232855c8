"""How the process of a training holds its memory, and how much."""

from __future__ import annotations

import ctypes
import resource
import sys

import jax


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of handing it back to the system at once.

    XLA asks for its working memory anew at each call, some hundred MB, and glibc's allocator maps so large a
    piece afresh each time: writing to new pages then costs a third of a training step on two cores. The price
    is that the process stays as large as it has once been. Call it before the first computation, as the
    allocator's arenas, one a thread, have to be one.

    Returns:
      Whether the allocator took the settings; False where it is not glibc's.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # names of the settings in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(arena_max, 1), mallopt(mmap_max, 0), mallopt(trim_threshold, -1)])


def peak_mb() -> float:
    """The most memory in use so far, in 1e6 bytes: of a device if it tells, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    if known:
        return max(known) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6
