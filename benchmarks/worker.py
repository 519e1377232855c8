"""One side of one case in a process of its own, run by run on its parent's word.

    python -m benchmarks.worker '{"module": ..., "options": {...}, "device": "cpu"}'

Lines of JSON on the standard output, to "run" and "stop" on the standard input. What libraries print goes to
the standard error.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks import memory
from benchmarks.cases import Prepared
from cmb_jax.devices import keep_freed_memory

OPTIONAL = ("torch", "torchvision", "monai", "nnunetv2")
# A repeat lasts at least this long: the work of short cases is done several times in it.
REPEAT_S = 0.1


def main() -> int:
    """Serve the request on the command line; the exit code."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    try:
        for answer in serve(json.loads(sys.argv[1]), (line.strip() for line in sys.stdin)):
            print(json.dumps(answer), file=answers)
    except Exception as error:  # anything: the parent shows one line
        print(json.dumps({"failed": one_line(error)}), file=answers)
        return 1
    return 0


def serve(request: dict[str, Any], commands: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Prepare, warm up, then answer every "run" with its seconds; at the end what memory it took."""
    if request["keep_memory"]:
        keep_freed_memory()
    try:
        module = importlib.import_module(request["module"])
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in OPTIONAL:
            raise
        yield {"missing": missing}
        return
    imports_mb = memory.resident_mb()
    prepared: Prepared = module.prepare(request["options"], request["device"])
    result = prepared.result(prepared.run())
    loops = max(1, math.ceil(REPEAT_S / max(seconds_of(prepared.run), 1e-6)))
    lifetime_mb = memory.peak_mb()
    fresh = memory.forget_peak()
    prepared.run()  # not timed: it gets back the memory that was just given away
    yield {"result": result, "gflop": prepared.gflop, "note": prepared.note}
    for command in commands:
        if command != "run":
            break
        yield {"seconds": seconds_of(prepared.run, loops)}
    peak_mb = memory.peak_mb()
    peak_of = getattr(module, "device_peak_mb", None)  # the accelerator's memory, where there is one
    yield {
        "peak_mb": peak_mb,
        "imports_mb": imports_mb,
        "lifetime_mb": max(lifetime_mb, peak_mb),
        "only_runs": fresh,
        "device_mb": peak_of() if peak_of is not None and request["device"] == "gpu" else None,
    }


def seconds_of(run: Callable[[], Any], loops: int = 1) -> float:
    """Wall-clock seconds of one call, as the mean of `loops`."""
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - start) / loops


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
