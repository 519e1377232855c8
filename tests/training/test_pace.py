"""What the step log measures, by a clock of its own; traces of the profiler."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax import devices
from cmb_jax.training.monitor import StepProfile, Stopwatch, peak_gflops, peak_mb


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Result:
    """An array that is ready or not."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


def test_only_time_without_work_counts_as_waiting():
    clock = Clock()
    watch = Stopwatch(clock)
    for seconds, running in [(1, None), (2, Result(False)), (3, Result(True))]:
        with watch.fetching(running):
            clock.now += seconds
        clock.now += 4
    pace = watch.read()
    assert pace.steps_per_s == pytest.approx(3 / 18)
    assert pace.input_wait == pytest.approx((1 + 3) / 18)


def test_each_reading_begins_anew():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.fetching(None):
        clock.now += 5
    watch.restart()
    with watch.fetching(Result(False)):
        clock.now += 2
    assert watch.read().input_wait == 0
    with watch.fetching(None):
        clock.now += 1
    assert watch.read().input_wait == 1


def test_the_peak_is_that_of_all_devices():
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    assert peak_gflops([Device()] * 2, "mixed") == pytest.approx(2 * 494e3)
    Device.device_kind = "something new"
    assert math.isnan(peak_gflops([Device()], "mixed"))


def test_the_processor_is_measured(monkeypatch):
    monkeypatch.setattr(devices, "_PRODUCT_EDGE", 64)
    monkeypatch.setattr(devices, "_COPIED_FLOATS", 2**16)
    found = devices.measured_cpu()
    assert 1e6 < found.float32_flops < 1e15
    assert 1e5 < found.memory_bandwidth < 1e13
    assert found.memory_bytes > 1e8


def test_memory_is_of_this_process():
    """A peak never falls, and is as large as what the process has touched."""
    kept = np.ones(25_000_000)  # 200 MB
    peak = peak_mb()
    assert kept.nbytes / 1e6 < peak < 1e6
    del kept
    assert peak_mb() >= peak


def test_the_profile_holds_the_steps_asked_for(tmp_path):
    with StepProfile(tmp_path / "profile", first=7, count=2) as profile:
        for number in range(7, 13):
            with profile.step(number):
                result = jnp.ones(3) * number
            profile.done(number, result)
            assert any(tmp_path.rglob("*.xplane.pb")) == (number >= 10)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_a_run_that_ends_early_leaves_its_profile(tmp_path):
    with StepProfile(tmp_path, first=0, count=100) as profile, profile.step(2):
        jnp.ones(3).block_until_ready()
    assert any(tmp_path.rglob("*.xplane.pb"))


def test_no_profile_unless_asked_for(tmp_path):
    with StepProfile(tmp_path, first=0, count=0) as profile:
        for number in range(5):
            with profile.step(number):
                pass
            profile.done(number, None)
    assert not any(tmp_path.iterdir())
