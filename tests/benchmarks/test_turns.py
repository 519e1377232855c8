"""Two workers: whose turn it is, what is made of times and memory, what becomes of a side that fails."""

import ctypes
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.table import Row, time_cell
from benchmarks.turns import measure

WARM_UP = 3  # runs of a side before its first repeat


def test_sides_take_turns_and_are_never_at_work_together(fakes):
    measure(fakes.case(fakes.side("a"), fakes.side("b")), repeats=4)
    lines = fakes.log.read_text().splitlines()
    a, b = ["a begins", "a ends"], ["b begins", "b ends"]
    assert lines == WARM_UP * a + WARM_UP * b + 4 * (a + b)


def test_median_spread_and_ratio(fakes):
    ours = fakes.side("a", [9, 1, 9, 0.3, 0.1, 0.2, 0.9], result=7.5, note="one way")
    other = fakes.side("b", [9, 1, 9, 0.5, 4.0, 0.1, 0.5], note="another")
    measured = measure(fakes.case(ours, other), repeats=4)
    assert measured.ours.seconds == pytest.approx((0.3, 0.1, 0.2, 0.9))
    assert measured.ours.median_s == pytest.approx(0.25)
    assert measured.other.median_s == pytest.approx(0.5)
    assert measured.ratio == pytest.approx(0.5)
    assert time_cell(measured.ours) == "0.25 s (0.1 s to 0.9 s)"
    assert (measured.ours.result, measured.ours.note) == (7.5, "one way")
    assert (measured.other.result, measured.other.note) == (1.0, "another")


def test_short_work_is_repeated_and_its_mean_taken(fakes):
    """0.04 s in the trial: three times for at least 0.1 s."""
    seconds = [1, 0.04, 1, 0.03, 0.04, 0.08, 0.01, 0.01, 0.04]
    measured = measure(fakes.case(fakes.side("a", seconds), fakes.side("b")), repeats=2)
    assert measured.ours.seconds == pytest.approx((0.05, 0.02))


def test_a_library_that_is_missing(fakes):
    measured = measure(fakes.case(fakes.side("a"), fakes.without("b", "monai")), repeats=2)
    row = Row.of(measured, None)
    assert measured.ours.seconds == (1, 1)
    assert row.cells()[4] == "unmeasured: monai is not installed: pip install 'cmb-jax[bench]'"
    assert row.as_json()["other_s"] is None
    assert row.as_json()["ratio"] is None
    assert row.failures() == []


@pytest.mark.parametrize(
    ("fails_after", "failure", "reason"),
    [
        (0, "raise ValueError('no room\\nat all')", "failed: ValueError: no room"),
        (WARM_UP + 1, "raise ValueError('later')", "failed: ValueError: later"),
        (WARM_UP, "import os; os._exit(3)", "failed: ended with code 3"),
        (WARM_UP, "import os; os.kill(os.getpid(), 9)", "failed: ended by signal 9 (out of memory?)"),
        (
            WARM_UP,
            "import sys, os; sys.stderr.write('words\\n'); sys.stderr.flush(); os._exit(1)",
            "with code 1: words",
        ),
    ],
)
def test_a_side_that_fails_leaves_the_other_alone(fakes, fails_after, failure, reason):
    ours = fakes.side("a", fails_after=fails_after, failure=failure)
    measured = measure(fakes.case(ours, fakes.side("b")), repeats=3)
    row = Row.of(measured, None)
    assert measured.ours.seconds == ()
    assert reason in row.cells()[3]
    assert row.cells()[3].startswith("unmeasured: failed: ")
    assert len(row.failures()) == 1
    assert reason in row.failures()[0]
    assert measured.other.seconds == (1, 1, 1)
    assert measured.ratio is None


def test_a_module_of_ours_that_is_missing_is_a_failure(fakes):
    row = Row.of(measure(fakes.case("no_such_module", fakes.side("b")), repeats=1), None)
    assert "no_such_module" in row.failures()[0]


MEMORY = """
import numpy as np
from benchmarks.cases import Prepared

def prepare(options, device):
    for _ in range(3):
        np.ones({before}, np.uint8)
    return Prepared(run=lambda: np.ones({during}, np.uint8), result=len)
"""


@pytest.mark.skipif(memory.resident_mb() is None, reason="memory is read from /proc")
def test_memory_of_the_runs_and_not_of_what_came_before(fakes):
    before, during = 400_000_000, 150_000_000
    ours = fakes.module("a", MEMORY.format(before=before, during=during))
    measured = measure(fakes.case(ours, fakes.side("b")), repeats=2)
    if "memory includes compilation" in measured.ours.note:
        pytest.skip("this system does not let the peak be reset")
    assert measured.ours.peak_mb == pytest.approx(150, abs=10)
    assert measured.ours.lifetime_mb > 400
    assert measured.other.peak_mb < 10


FAULTS = """
import resource
from benchmarks.cases import Prepared

def run():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def prepare(options, device):
    run()
    return Prepared(run=run, result=float)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc"
)
def test_memory_that_is_kept_is_not_faulted_in_again(fakes):
    faults = {}
    for keep in (True, False):
        case = fakes.case(fakes.module("a", FAULTS), fakes.module("b", FAULTS), keep_memory=keep)
        measured = measure(case, repeats=1)
        faults[keep] = np.array([measured.ours.result, measured.other.result])
    assert (faults[True] * 4 < faults[False]).all(), faults


def test_each_side_of_every_case_is_a_file():
    from benchmarks.cases import CASES

    root = Path(__file__).resolve().parents[2]
    pairs = {(case.ours, case.other) for case in CASES.values()}
    # a side of ours may have several peers, a peer's side has one of ours
    assert len({other for _, other in pairs}) == len(pairs)
    ours = {module for module, _ in pairs}
    assert ours.isdisjoint(other for _, other in pairs)
    modules = ours | {other for _, other in pairs}
    assert all((root / f"{module.replace('.', '/')}.py").is_file() for module in modules)


@pytest.mark.parametrize(
    ("case", "library", "install"),
    [
        ("infer-volume-nnunet", "nnunetv2", "-r benchmarks/peers/requirements-peers.txt"),
        ("infer-volume-retinanet", "torchvision", "-r benchmarks/peers/requirements-peers.txt"),
    ],
)
def test_a_missing_peer_is_one_line_with_what_to_install(fakes, case, library, install):
    from benchmarks.cases import CASES

    real = CASES[case]
    other = fakes.module("peer", f"import sys\nsys.modules[{library!r}] = None\nimport {real.other}\n")
    measured = measure(dataclasses.replace(real, ours=fakes.side("ours"), other=other), repeats=1)
    assert measured.other.note == f"{library} is not installed: pip install {install}"
