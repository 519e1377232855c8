"""How the process of a training holds its memory."""

from __future__ import annotations

import ctypes


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
