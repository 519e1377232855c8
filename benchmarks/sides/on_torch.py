"""What the PyTorch sides share: threads, device, and the choice of the faster of eager and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.compile_fx  # counted among the imports, not in the memory of the case

from benchmarks.inputs import cores


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
    """The function as it is or compiled, whichever is faster in `use`, and which that was."""
    eager_s = _best_of_three(function, use)
    compiled = torch.compile(function, dynamic=False)
    try:
        compiled_s = _best_of_three(compiled, use)
    except Exception as error:  # no compiler, an operation that it cannot lower: the eager form will do
        return function, f"eager (torch.compile: {type(error).__name__})"
    if compiled_s < eager_s:
        return compiled, "torch.compile"
    torch._dynamo.reset()
    return function, "eager (torch.compile was slower)"


def _best_of_three(function: Callable[..., Any], use: Callable[[Callable[..., Any]], Any]) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        use(function)
        finish()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
