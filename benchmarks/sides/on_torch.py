"""What the PyTorch sides share: threads, device, and the choice of the faster of eager and compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.compile_fx  # counted among the imports, not in the memory of the case

from benchmarks.inputs import cores

TRIALS = 5


def device_peak_mb() -> float | None:
    """The most memory in use on the accelerator."""
    return torch.cuda.max_memory_allocated() / 1e6


def start(device: str) -> torch.device:
    """All processors; on a GPU the fastest float32 arithmetic that cuDNN and cuBLAS have, as JAX takes it."""
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    if device == "gpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if device == "gpu" else "cpu")


def finish() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def faster(
    function: Callable[..., Any], use: Callable[[Callable[..., Any]], Any]
) -> tuple[Callable[..., Any], str]:
    """The function as it is or compiled, whichever is faster in `use`, and which that was.

    They take turns, so that other load on the machine does not choose between them.
    """
    compiled = torch.compile(function, dynamic=False)
    try:
        use(compiled)
    except Exception as error:  # no compiler, an operation that it cannot lower: the eager form will do
        return function, f"eager (torch.compile: {type(error).__name__})"
    use(function)
    best = [math.inf, math.inf]
    for _ in range(TRIALS):
        for index, form in enumerate((function, compiled)):
            start = time.perf_counter()
            use(form)
            finish()
            best[index] = min(best[index], time.perf_counter() - start)
    if best[1] < best[0]:
        return compiled, "torch.compile"
    torch._dynamo.reset()
    return function, "eager (torch.compile was slower)"
