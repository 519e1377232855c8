"""A folder is held by one process, and free again as soon as that has ended in whatever way."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import LOCK, locked

HOLD = """
import subprocess, sys, time
from pathlib import Path
from cmb_jax.io.atomic import locked
with locked(Path(sys.argv[1]), "wait"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    process, child = holder(tmp_path)
    try:
        with (
            pytest.raises(UserError, match="another process is at work"),
            locked(tmp_path, "do this"),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        os.kill(child, 0)  # what it has started lives on, and does not hold the lock
        with locked(tmp_path, "do this"):
            pass
        assert not (tmp_path / LOCK).exists()
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.wait()


def test_the_same_process_does_not_get_it_twice_and_an_error_gives_it_back(tmp_path):
    def fail():
        with locked(tmp_path, "wait"):
            with pytest.raises(UserError, match="another process"), locked(tmp_path / ".", "wait"):
                pass
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with locked(tmp_path, "wait"):
        assert (tmp_path / LOCK).exists()
    with pytest.raises(UserError, match="cannot be made"), locked(tmp_path / "none", "wait"):
        pass


def test_many_at_once_take_turns(tmp_path):
    """Each of four processes takes the lock ten times; no two ever hold it together."""
    code = """
import os, sys, time
from pathlib import Path
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import locked
folder, taken = Path(sys.argv[1]), 0
while taken < 10:
    try:
        with locked(folder, "wait"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(folder / "inside")
            taken += 1
    except UserError:
        time.sleep(0.001)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(4)]
    limit = time.monotonic() + 60
    assert [process.wait(max(limit - time.monotonic(), 1)) for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []
