"""What the PyTorch sides share: threads, device, and the choice of the fastest precision and form."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._dynamo
import torch._inductor.compile_fx  # counted among the imports, not in the memory of the case
from torch import Tensor, nn

from benchmarks.inputs import cores

TRIALS = 5

Form = Callable[..., Any]  # of a network


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


def forms_of(model: nn.Module, *, casts_each_time: bool) -> dict[str, Form]:
    """Ways to run a network: float32, autocast to bfloat16, and all of it in bfloat16; results are float32.

    Args:
        model: the network.
        casts_each_time: the parameters change from run to run, so that casting them is part of each.
    """

    def in_autocast(image: Tensor) -> Any:
        with torch.autocast(image.device.type, torch.bfloat16):
            return to_float32(model(image))

    def cast(image: Tensor) -> Any:
        params = {name: value.bfloat16() for name, value in model.named_parameters()}
        return to_float32(torch.func.functional_call(model, params, (image.bfloat16(),)))

    if casts_each_time:
        return {"float32": model, "bfloat16 autocast": in_autocast, "network in bfloat16": cast}
    short = copy.deepcopy(model).bfloat16()
    return {
        "float32": model,
        "bfloat16 autocast": in_autocast,
        "network in bfloat16": lambda image: to_float32(short(image.bfloat16())),
    }


def to_float32(maps: Any) -> Any:
    """Each of several maps in float32."""
    return tuple(each.float() for each in maps)


def fastest(forms: Mapping[str, Form], use: Callable[[Form], Any]) -> tuple[Form, str]:
    """The quickest of the forms in `use`, or that one compiled, and a line that names it and all times.

    They take turns, so that other load on the machine does not choose between them.
    """
    best = _least_seconds(forms, use)
    name = min(best, key=lambda each: best[each])
    compiled = torch.compile(forms[name], dynamic=False)
    compiled_name = f"{name}, torch.compile"
    try:
        use(compiled)
    except Exception as error:  # no compiler, an operation that it cannot lower: the eager form will do
        note = f"torch.compile of it: {type(error).__name__}"
        return forms[name], f"{name}, eager ({_times(best)}; {note})"
    pair = {name: forms[name], compiled_name: compiled}
    again = _least_seconds(pair, use)
    best[compiled_name] = again[compiled_name]
    chosen = min(again, key=lambda each: again[each])
    if chosen == name:
        torch._dynamo.reset()
    return pair[chosen], f"{chosen}{'' if chosen == compiled_name else ', eager'} ({_times(best)})"


def _least_seconds(forms: Mapping[str, Form], use: Callable[[Form], Any]) -> dict[str, float]:
    best = dict.fromkeys(forms, math.inf)
    for trial in range(TRIALS + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            use(form)
            finish()
            if trial > 0:  # the first warms up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _times(best: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in best.items())
