"""Memory of this process, in MB of 1e6 bytes, as Linux counts it."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path


def resident_mb() -> float | None:
    """What is resident now; None where /proc is missing."""
    return _status("VmRSS")


def peak_mb() -> float:
    """The most that was resident, since the process began or since `forget_peak`."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def forget_peak() -> bool:
    """Give unused memory back and let the peak begin anew; False where the system does not let it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key + ":")), None)
