"""Two worker processes that take turns: the same cores, never at once.

Each is started, prepared and warmed up while the other waits. Then they run one repeat each, in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Device, Side

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "no GPU that both sides can use"
# Thread pools spin for a few milliseconds after their last work: let them sleep before the other's turn.
PAUSE_S = 0.05


class WorkerError(Exception):
    """A side could not be measured; one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideResult:
    """What one side of a case took. Memory in MB of 1e6 bytes."""

    seconds: tuple[float, ...] = ()  # one a repeat
    result: float | None = None
    gflop: float | None = None
    peak_mb: float | None = None  # most resident memory of the runs, less that of the imported libraries
    process_mb: float | None = None  # most resident memory of the runs, whole process
    lifetime_mb: float | None = None  # most resident memory from start to end, compilation included
    note: str = ""  # how it was run, or why there is no time

    @property
    def median_s(self) -> float | None:
        """Median of the repeats."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Both sides of a case."""

    case: Case
    device: Device
    ours: SideResult
    other: SideResult

    @property
    def ratio(self) -> float | None:
        """Ours over the other's median time."""
        ours, other = self.ours.median_s, self.other.median_s
        return ours / other if ours and other else None


class Worker:
    """One side of a case in its own process."""

    def __init__(self, case: Case, side: Side, device: Device) -> None:
        module = case.ours if side == "ours" else case.other
        request = json.dumps(
            {
                "module": module,
                "options": dict(case.options),
                "device": device,
                "keep_memory": case.keep_memory,
            }
        )
        self.messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", request],
            cwd=ROOT,
            env=_environment(device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            WorkerError: there is none, or it is a failure.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerError(f"failed: {answer['failed']}")
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            WorkerError: the worker failed or is gone.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return self.answer()

    def close(self) -> None:
        """End the process if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.messages.close()

    def _last_words(self) -> str:
        code = self.process.wait()
        self.messages.seek(0)
        lines = self.messages.read().strip().splitlines()
        if code < 0:
            return f"failed: ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return f"failed: ended with code {code}" + (f": {lines[-1].strip()}" if lines else "")


def measure(case: Case, repeats: int, device: Device = "cpu") -> Measured:
    """Time both sides in turn; a side that cannot run has no times and says why in its note."""
    if not case.gpu:
        device = "cpu"
    workers: dict[Side, Worker] = {}
    ready: dict[Side, dict[str, Any]] = {}
    seconds: dict[Side, list[float]] = {"ours": [], "other": []}
    done: dict[Side, SideResult] = {}

    def stop(side: Side, reason: str) -> None:
        workers.pop(side).close()
        done[side] = SideResult(note=reason)

    sides: tuple[Side, Side] = ("ours", "other")
    try:
        for side in sides:
            workers[side] = Worker(case, side, device)
            try:
                ready[side] = workers[side].answer()
            except WorkerError as error:
                stop(side, str(error))
                continue
            if "missing" in ready[side]:
                stop(side, f"{ready[side]['missing']} is not installed: pip install {case.install}")
        for _ in range(repeats):
            for side in tuple(workers):
                time.sleep(PAUSE_S)
                try:
                    seconds[side].append(workers[side].ask("run")["seconds"])
                except WorkerError as error:
                    stop(side, str(error))
        for side in tuple(workers):
            try:
                done[side] = _result(seconds[side], ready[side], workers[side].ask("stop"))
            except WorkerError as error:
                stop(side, str(error))
    finally:
        for worker in workers.values():
            worker.close()
    return Measured(case=case, device=device, ours=done["ours"], other=done["other"])


def _result(seconds: list[float], ready: dict[str, Any], end: dict[str, Any]) -> SideResult:
    peak_mb = end["device_mb"]
    if peak_mb is None and end["imports_mb"] is not None:
        peak_mb = end["peak_mb"] - end["imports_mb"]
    note = ready["note"]
    if not end["only_runs"]:
        note = "; ".join(filter(None, [note, "memory includes compilation"]))
    return SideResult(
        seconds=tuple(seconds),
        result=ready["result"],
        gflop=ready["gflop"],
        peak_mb=peak_mb,
        process_mb=end["peak_mb"],
        lifetime_mb=end["lifetime_mb"],
        note=note,
    )


def without_gpu(case: Case) -> Measured:
    """What stands for a GPU run where there is no GPU."""
    side = SideResult(note=NO_GPU)
    return Measured(case=case, device="gpu", ours=side, other=side)


def _environment(device: Device) -> dict[str, str]:
    """For a CPU run no GPU is visible; on a GPU JAX leaves the other process its share."""
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**os.environ, **(hidden if device == "cpu" else shared)}
