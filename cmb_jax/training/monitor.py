"""What a run says about itself: log, pace, memory, share of the hardware's peak, profiler traces."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from cmb_jax.devices import peak_flops
from cmb_jax.io.tables import read_rows
from cmb_jax.progress import Bar, tell
from cmb_jax.training.distributed import is_primary

LOG_FILE = "metrics.csv"
_SKIPPED = 2  # steps of a start that are not traced: the first compiles, the second warms up


class TrainLog:
    """Appends to `metrics.csv` and TensorBoard files in a run's folder, beside a progress bar.

    Use as a context manager. Of several processes the first one writes for all.
    """

    def __init__(self, folder: Path, total_steps: int, first_step: int):
        self._writes = is_primary()
        self._bar = Bar("training", total_steps, done=first_step, shown=self._writes)
        if self._writes:
            self._csv_path = folder / LOG_FILE
            self._columns, _ = self._read()
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> TrainLog:
        self._bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._bar.__exit__()
        if self._writes:
            self._writer.close()

    def advance(self) -> None:
        """One step done."""
        self._bar.update()

    def message(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._writes:
            tell(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write named values of one step."""
        if not self._writes:
            return
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        shown = [f"{name} {values[name]:.4g}" for name in ("loss", "voxels/s") if name in values]
        if shown:
            self._bar.update(0, note=", ".join(shown))
        row = {"step": step, **values}
        unseen = [name for name in row if name not in self._columns]
        if unseen:
            self._widen(unseen)
        with self._csv_path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the file as it is."""
        if not self._csv_path.exists():
            return [], []
        columns, *rows = read_rows(self._csv_path, ",", "move the run's log away") or [[]]
        return columns, rows

    def _widen(self, unseen: list[str]) -> None:
        """Rewrite the file with more columns: training and validation rows differ."""
        columns, rows = self._read()
        self._columns = self._columns + unseen
        temporary = self._csv_path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(dict(zip(columns, row, strict=False)) for row in rows)
        temporary.replace(self._csv_path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Since the last reading."""

    steps_per_s: float
    input_wait: float  # share of the time in which the devices had nothing to do because no batch was there


class Stopwatch:
    """Measures the pace of a loop that fetches a batch while the devices compute the step before.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: something else, such as an evaluation, took its time."""
        self._since = self._clock()
        self._steps = 0
        self._waited = 0.0

    @contextlib.contextmanager
    def fetching(self, running: Any) -> Iterator[None]:
        """Around the fetching of a batch.

        If the devices are already idle when the batch arrives, the whole fetch counts as waiting, because
        nobody knows since when they were: what is reported is an upper bound.

        Args:
            running: results (any pytree of arrays) of the step before; None if there was none.
        """
        begin = self._clock()
        yield
        if all(leaf.is_ready() for leaf in jax.tree.leaves(running)):
            self._waited += self._clock() - begin
        self._steps += 1

    def read(self) -> Pace:
        """The pace since the last reading; the devices must have finished."""
        seconds = max(self._clock() - self._since, 1e-9)
        pace = Pace(steps_per_s=self._steps / seconds, input_wait=self._waited / seconds)
        self.restart()
        return pace


def peak_gflops(devices: list[Any], precision: str) -> float:
    """1e9 operations per second at the peak of devices of one kind; NaN where that is not known.

    The peak is the device's stated one; that of a processor is measured now, by a matrix product.
    """
    peak = peak_flops(devices[0], precision)
    # simulated devices share one processor
    count = 1 if devices[0].platform == "cpu" else len(devices)
    return float("nan") if peak is None else 1e-9 * count * peak


def peak_mb() -> float:
    """The most memory in use so far, in 1e6 bytes: of a device if it reports it, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    if known:
        return max(known) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


class StepProfile:
    """Traces `count` steps of a loop by JAX's profiler, for TensorBoard or Perfetto.

    Use as a context manager, so that a trace that was begun is written.

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
