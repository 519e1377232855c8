"""Several processes of one run: how they find each other, what one of them does for all, how they stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cmb_jax.errors import UserError

# Exit codes: schedulers take any but 0 for "start again".
LOST_PROCESS_CODE = 75  # EX_TEMPFAIL of sysexits.h
STOPPED_CODE = 128 + signal.SIGTERM

# A process that is silent for this long is taken for dead, and the others stop.
HEARTBEAT_SECONDS = 30
_PREPARATION_SECONDS = 24 * 3600  # simulating many subjects takes hours

T = TypeVar("T")


class RunStopped(Exception):
    """SIGTERM: the state of `step` is saved, and the run ends."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM; step {step} is saved, and the same command goes on from it")


def start_processes(
    coordinator: str | None, count: str | None, number: int | None, *, patience_s: int = HEARTBEAT_SECONDS
) -> None:
    """Join the other processes of the run, before anything else of JAX is used.

    Slurm (`srun`), Open MPI and GKE's TPU pods give all of it in the environment; a single process starts
    nothing.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      count: how many processes there are; "auto": JAX asks the platform (Cloud TPU).
      number: this process, from 0.
      patience_s: how long the first process that ends waits for the others.

    Raises:
      UserError: the settings contradict each other, no cluster is recognized with "auto", or the processes
        do not find each other.
    """
    if coordinator is None and number is None and count in (None, "auto"):
        if count == "auto" or _launched_together(os.environ):
            _initialize(patience_s)
        return
    if coordinator is None or number is None or count is None:
        raise UserError(
            "several processes need all of --coordinator HOST:PORT, --processes N and --process I (from 0)"
        )
    if not count.isdigit() or not 0 <= number < int(count):
        raise UserError(f"--process {number} of --processes {count}: processes are counted from 0 to N - 1")
    if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
        raise UserError(f"--coordinator {coordinator}: give host and port of process 0, such as node1:7777")
    _initialize(
        patience_s,
        coordinator_address=coordinator,
        num_processes=int(count),
        process_id=number,
        cluster_detection_method="deactivate",
    )


def _launched_together(environment: os._Environ[str] | dict[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes, this one among them."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") and "TPU_WORKER_ID" in environment


def _initialize(patience_s: int, **how) -> None:
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=patience_s, **how
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes could not join each other: {' '.join(str(error).split())}; start all of them "
            "through the scheduler (Slurm, Open MPI, Kubernetes, Cloud TPU), or give each its --process"
        ) from error


def is_primary() -> bool:
    """Whether this process writes what is written once: logs, weights, messages."""
    return jax.process_index() == 0


def wait_for_all(name: str, seconds: int = _PREPARATION_SECONDS) -> None:
    """Return when every process is here; each name is used once."""
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=seconds * 1000)


def primary_first(make: Callable[[], T], name: str) -> T:
    """Process 0 makes something and keeps it in a cache; then the others find it there.

    Args:
      make: makes, or reads what is made already.
      name: of the barrier, used once.
    """
    if not is_primary():
        wait_for_all(name)
        return make()
    made = make()
    wait_for_all(name)
    return made


def broadcast_from_primary(values: Mapping[str, float]) -> Mapping[str, float]:
    """Process 0's numbers in every process: rounding may differ, but decisions depend on them."""
    if jax.process_count() == 1:
        return values
    sent = multihost_utils.broadcast_one_to_all({name: np.float32(value) for name, value in values.items()})
    return {name: float(value) for name, value in sent.items()}


class StopRequest:
    """SIGTERM, as schedulers send it before they take a machine away; use as a context manager.

    With several processes JAX passes the signal on, so that all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._interruptible = False
        self._alone = jax.process_count() == 1
        # a program that trains in another thread keeps its own signals
        self._listens = self._alone and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopRequest:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame) -> None:
        self._asked = True
        if self._interruptible:
            raise _Interrupted

    def reached(self, step: int) -> bool:
        """Whether to stop now; ask at every step, in every process."""
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around a long computation that ends at once when the request comes (in a single process)."""
        self._interruptible = True
        try:
            yield
        except _Interrupted:
            pass
        finally:
            self._interruptible = False


class _Interrupted(BaseException):
    """Not an `Exception`, so that no handler on the way catches it."""


@contextlib.contextmanager
def exit_without_barrier() -> Iterator[None]:
    """Around a whole program: a process that cannot go on exits without waiting for the others.

    Their next exchange with it then fails, and they exit in turn. A process that hangs, or a machine that
    vanishes, is noticed by the missing heartbeat.
    """
    try:
        yield
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED_CODE)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost another one ({first_line}); "
            "start all of them again to go on from the newest checkpoint",
            file=sys.stderr,
        )
        _leave(LOST_PROCESS_CODE)
    except SystemExit as leaving:
        if not leaving.code or jax.process_count() == 1:
            raise
        _leave(leaving.code if isinstance(leaving.code, int) else 1)
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End without JAX's farewell, which waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
