"""Three stages side by side: what runs beside what, how much is in hand, and what reaches the end."""

import threading
import time

import pytest

from cmb_jax.cohort.scan_work import Lane, StageTimes, overlapped

WAIT_S = 30  # for another thread: long, so that a busy machine fails no test


def plain(log=None, name="a"):
    def note(stage, value):
        if log is not None:
            log.append((name, stage, value))
        return value

    return Lane(
        read=lambda v: note("read", v), compute=lambda v: note("compute", v), write=lambda v: note("write", v)
    )


def test_every_item_passes_every_stage_once_and_in_order():
    log = []
    assert list(overlapped(range(20), [plain(log)], StageTimes())) == list(range(20))
    for stage in ("read", "compute", "write"):
        assert [value for _, at, value in log if at == stage] == list(range(20))


def test_no_items():
    assert list(overlapped([], [plain()], StageTimes())) == []


def test_the_next_is_read_and_the_last_written_while_one_is_computed():
    """Item 1 is computed only when 2 is being read and 0 written: without overlap this would time out."""
    reading_2, writing_0, computing_1 = threading.Event(), threading.Event(), threading.Event()

    def read(value):
        if value == 2:
            reading_2.set()
            assert computing_1.wait(WAIT_S)
        return value

    def compute(value):
        if value == 1:
            computing_1.set()
            assert reading_2.wait(WAIT_S)
            assert writing_0.wait(WAIT_S)
        return value

    def write(value):
        if value == 0:
            writing_0.set()
            assert computing_1.wait(WAIT_S)
        return value

    lane = Lane(read=read, compute=compute, write=write)
    assert list(overlapped(range(3), [lane], StageTimes())) == [0, 1, 2]


def test_at_most_three_items_of_a_lane_are_in_hand():
    lock, in_hand, most = threading.Lock(), [0], [0]

    def read(value):
        with lock:
            in_hand[0] += 1
            most[0] = max(most[0], in_hand[0])
        return value

    def write(value):
        time.sleep(0.002)  # the slowest stage: unbounded, the others would run ahead
        with lock:
            in_hand[0] -= 1
        return value

    list(overlapped(range(40), [Lane(read=read, compute=lambda v: v, write=write)], StageTimes()))
    assert most[0] == 3


def test_all_lanes_work():
    log = []
    barrier = threading.Barrier(4)

    def lane(name):
        def compute(value):
            if value < 4:
                barrier.wait(WAIT_S)  # passes only if four lanes compute at once
            log.append(name)
            return value

        return Lane(read=lambda v: v, compute=compute, write=lambda v: v)

    found = list(overlapped(range(20), [lane(n) for n in range(4)], StageTimes()))
    assert sorted(found) == list(range(20))
    assert set(log) == {0, 1, 2, 3}


def test_an_error_ends_the_run_and_its_threads():
    def compute(value):
        if value == 3:
            raise ZeroDivisionError
        return value

    before = threading.active_count()
    lane = Lane(read=lambda v: v, compute=compute, write=lambda v: v)
    with pytest.raises(ZeroDivisionError):
        list(overlapped(range(1000), [lane], StageTimes()))
    assert threading.active_count() == before


def test_times_add_up():
    times = StageTimes()

    def slow(value):
        time.sleep(0.02)
        return value

    list(overlapped(range(5), [Lane(read=slow, compute=slow, write=lambda v: v)], times))
    read, compute, write = times.seconds
    assert read >= 0.1
    assert compute >= 0.1
    assert write < read
    assert times.elapsed_s >= 0.1
    assert "reading 0." in times.summary()
    assert times.summary().endswith("of it beside other work")
