"""Work in three stages, side by side: while one item is computed, the next is read and the last written."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

STAGES = ("reading", "network", "writing")
"""Names of the stages, for people."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane(Generic[Item, Result]):
    """The stages that the items of one device go through, each on a thread of its own."""

    read: Callable[[Item], Any]
    compute: Callable[[Any], Any]
    write: Callable[[Any], Result]


class StageTimes:
    """How long the stages took."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self._spent: list[tuple[int, float]] = []  # appended to from all threads

    def timed(self, stage: int, work: Callable[[Any], Any], value: Any) -> Any:
        """Work of a stage on a value, and its time noted."""
        tick = time.perf_counter()
        try:
            return work(value)
        finally:
            self._spent.append((stage, time.perf_counter() - tick))

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Seconds in each stage, over all lanes."""
        read, compute, write = (sum(s for at, s in self._spent if at == stage) for stage in range(3))
        return read, compute, write

    def summary(self) -> str:
        """One line: seconds of each stage, and how much of the work went on beside other work.

        On a machine whose cores are all busy, stages that run side by side slow each other down, so that the
        seconds saved are fewer than those that overlap.
        """
        parts = ", ".join(f"{name} {s:.1f} s" for name, s in zip(STAGES, self.seconds, strict=True))
        work = sum(self.seconds)
        overlap = max(0.0, work - self.elapsed_s)
        share = overlap / work if work else 0.0
        return f"{parts}: {work:.1f} s of work in {self.elapsed_s:.1f} s, {share:.0%} of it beside other work"


def overlapped(
    items: Iterable[Item], lanes: Sequence[Lane[Item, Result]], times: StageTimes
) -> Iterator[Result]:
    """Run items through the stages; yields results as they are done.

    A lane has at most three items in hand, one for each stage, so that memory is bounded. The next item goes
    to the first lane that is free. Inside a lane items keep their order.

    Args:
        items: taken one by one, in this thread.
        lanes: one for each device.
        times: filled meanwhile.
    """
    tick = time.perf_counter()
    done: SimpleQueue[tuple[int, Future[Result]]] = SimpleQueue()
    # each lane is listed once per stage: that many items may be in its hands, and no more
    free = deque(number for _ in STAGES for number in range(len(lanes)))
    with ExitStack() as stack:
        pools = [[ThreadPoolExecutor(1, f"{name}-{n}") for name in STAGES] for n in range(len(lanes))]
        for pool in (pool for lane_pools in pools for pool in lane_pools):
            stack.callback(pool.shutdown, cancel_futures=True)
        for item in items:
            if not free:
                yield _next(done, free)
            number = free.popleft()
            written = _submit(lanes[number], pools[number], item, times)
            written.add_done_callback(partial(_hand_back, done, number))
        for _ in range(len(STAGES) * len(lanes) - len(free)):
            yield _next(done, free)
    times.elapsed_s += time.perf_counter() - tick


def _submit(
    lane: Lane[Item, Result], pools: Sequence[ThreadPoolExecutor], item: Item, times: StageTimes
) -> Future[Result]:
    """The chain of one item; each stage waits, on its own thread, for what the one before gives."""
    read = pools[0].submit(times.timed, 0, lane.read, item)
    computed = pools[1].submit(lambda: times.timed(1, lane.compute, read.result()))
    return pools[2].submit(lambda: times.timed(2, lane.write, computed.result()))


def _hand_back(done: SimpleQueue[tuple[int, Future[Result]]], number: int, written: Future[Result]) -> None:
    done.put((number, written))


def _next(done: SimpleQueue[tuple[int, Future[Result]]], free: deque[int]) -> Result:
    number, future = done.get()
    free.append(number)
    return future.result()
