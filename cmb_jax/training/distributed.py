"""The device mesh and where arrays lie on it; several processes: how they meet, share work and stop."""

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
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmb_jax.config import Config
from cmb_jax.data.patches import Share
from cmb_jax.errors import UserError
from cmb_jax.ops.conv import DEPTH_AXIS

_AXES = ("data", DEPTH_AXIS)


def make_mesh(data: int = 1, space: int = 1) -> Mesh:
    """A mesh ("data", "space"): `data` devices share the batch, `space` share each volume's depth.

    Args:
      data: 0 takes all devices that `space` leaves.
      space: neighbors along it exchange planes at every convolution, so it should stay within one machine
        or one slice of a pod; JAX numbers the devices so.

    Raises:
      UserError: there are fewer devices than data * space, or several processes have more.
    """
    present = jax.device_count()
    data = data or max(1, present // space)
    needed = data * space
    if needed > present:
        raise UserError(
            f"the mesh {data} x {space} needs {needed} devices but {present} are here: "
            "set train.mesh_data and train.mesh_space to a product that fits"
        )
    if needed < present and jax.process_count() > 1:
        raise UserError(
            f"the mesh {data} x {space} has no work for {present - needed} of the {present} devices of "
            f"{jax.process_count()} processes: set train.mesh_data 0 (all that there are) and a "
            "train.mesh_space that divides them"
        )
    # Auto, because the atlas gather and Explicit axes do not go together in this JAX.
    return jax.make_mesh(
        (data, space), _AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=jax.devices()[:needed]
    )


def check_fit(config: Config, mesh: Mesh) -> None:
    """Refuse batches and patches that the mesh cannot share evenly.

    Raises:
      UserError: the batch is not a multiple of the mesh's "data" times `train.accumulate`, or the depth not
        a multiple of its "space" times the network's stride along z.
    """
    data, space = mesh.devices.shape
    batch, parts = config.data.batch_size, config.train.accumulate
    if batch % (data * parts):
        each = f" in {parts} parts each" if parts > 1 else ""
        raise UserError(
            f"a batch of {batch} patches cannot be shared by {data} devices{each}: set data.batch_size to a "
            f"multiple of {data * parts}, or another train.mesh_data or train.accumulate"
        )
    depth, step = config.data.patch_shape[0], space * config.model.total_stride[0]
    if depth % step:
        raise UserError(
            f"patches of {depth} planes cannot be shared by {space} devices: the first of data.patch_shape "
            f"must be a multiple of {step}, or train.mesh_space another"
        )


def share_of_process(config: Config, mesh: Mesh) -> Share:
    """The patches and planes of every global batch that this process' devices hold."""
    size = (config.data.batch_size, config.data.patch_shape[0])
    parts = over_batch_and_depth(mesh).addressable_devices_indices_map(size).values()
    rows, planes = (
        sorted(
            {range(*part[axis].indices(size[axis])) for part in parts if part}, key=lambda held: held.start
        )
        for axis in range(2)
    )
    return Share(rows=range(rows[0].start, rows[-1].stop), planes=range(planes[0].start, planes[-1].stop))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: parameters, optimizer state, scalars."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """First axis over "data": boxes and masks."""
    return NamedSharding(mesh, P("data"))


def over_batch_and_depth(mesh: Mesh) -> NamedSharding:
    """First axis over "data", second (depth) over "space": images and maps."""
    return NamedSharding(mesh, P(*_AXES))


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
