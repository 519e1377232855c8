"""How fast a training goes and what it waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cmb_jax.config import Config
from cmb_jax.detector.flops import training_gflop
from cmb_jax.devices import peak_flops


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

        The time counts as waiting if the devices are done when the batch is there, all of it, as when they
        became so is not known: what is reported is an upper bound.

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
        now = self._clock()
        seconds = max(now - self._since, 1e-9)
        pace = Pace(steps_per_s=self._steps / seconds, input_wait=self._waited / seconds)
        self.restart()
        return pace


class Utilisation:
    """Model FLOP utilisation (Chowdhery et al. 2022, appendix B): what the model needs over what there is.

    Counted are the convolutions' operations forward and backward, without those that rematerialisation or
    accumulation repeat; the peak is the device's stated one, of a processor a matrix product measured now.

    Args:
        config: network, patches, type of the maps.
        params: pure dict of the parameters, or of their shapes.
        devices: that train.
    """

    def __init__(self, config: Config, params: Any, devices: list[Any]):
        data = config.data
        self._flop = 1e9 * training_gflop(params, data.patch_shape, data.batch_size)
        peak = peak_flops(devices[0], config.train.precision)
        # simulated devices share one processor
        count = 1 if devices[0].platform == "cpu" else len(devices)
        self._peak = None if peak is None else count * peak

    def of(self, steps_per_s: float) -> float:
        """Share of the peak, 0 to 1; NaN where the device's peak is not known."""
        return float("nan") if self._peak is None else self._flop * steps_per_s / self._peak


def peak_mb() -> float:
    """The most memory in use so far, in 1e6 bytes: of a device if it tells, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    if known:
        return max(known) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6
