"""Sides of a benchmark case that take no time: their clock goes forward by what the test says."""

import pytest

from benchmarks.cases import Case

SIDE = """
import time
from benchmarks.cases import Prepared

now = 0.0
time.perf_counter = lambda: now
seconds = iter({seconds!r})
left = {fails_after!r}

def tell(what):
    with open({log!r}, "a") as log:
        print({name!r}, what, file=log)

def run():
    global now, left
    tell("begins")
    print("what a library prints")
    if left == 0:
        {failure}
    left -= 1
    now += next(seconds)
    tell("ends")
    return {result!r}

def prepare(options, device):
    return Prepared(run=run, result=float, gflop={gflop!r}, note={note!r})
"""


class Fakes:
    """Writes modules of sides into a folder that worker processes import from."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log.txt"

    def module(self, name, text):
        (self.folder / f"{name}.py").write_text(text)
        return name

    def side(
        self, name, seconds=(1.0,) * 20, *, result=1.0, gflop=None, note="", fails_after=-1, failure="pass"
    ):
        """A side whose runs, the first three being its warm-up, take `seconds` of its own clock."""
        text = SIDE.format(
            name=name,
            seconds=tuple(seconds),
            log=str(self.log),
            result=result,
            gflop=gflop,
            note=note,
            fails_after=fails_after,
            failure=failure,
        )
        return self.module(name, text)

    def without(self, name, library):
        """A side whose library is not there."""
        return self.module(name, f"import sys\nsys.modules[{library!r}] = None\nimport {library}\n")

    def case(self, ours, other, **more):
        return Case(name="fake", about="nothing", ours=ours, other=other, other_name="Peer", **more)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "sides"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Fakes(folder)
