"""Traces of a few training steps by JAX's profiler, for TensorBoard or Perfetto."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

_SKIPPED = 2  # of a start: the first compiles, the second warms up


class StepProfile:
    """Traces `count` steps of a loop; use as a context manager, so that a trace that was begun is written.

    Args:
        folder: the traces go to its subfolder plugins/profile.
        first: number of the loop's first step.
        count: steps to trace; 0: none.
    """

    def __init__(self, folder: Path, first: int, count: int):
        self._folder = folder
        self._traced = range(first + _SKIPPED, first + _SKIPPED + count)
        self._running = False

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, *error) -> None:
        self._stop()

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Around the call of a step: names it in the trace."""
        if number not in self._traced:
            return contextlib.nullcontext()
        if not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number: int, results: Any) -> None:
        """After a step: the last one that is traced is waited for, so that all of it is in the trace."""
        if self._running and number + 1 == self._traced.stop:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
