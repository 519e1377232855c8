"""Claims: one process a scan, whatever the processes do or how they end."""

import os
import subprocess
import sys
import threading

import pytest

from cmb_jax.bids_app import claims as module
from cmb_jax.bids_app.claims import LEASE_S, Claims


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


def other_claim(folder, name, owner, age_s=0.0):
    """What a process that is not this one has left."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.0"
    path.write_text(owner)
    touched = path.stat().st_mtime - age_s
    os.utime(path, (touched, touched))
    return path


def test_one_takes_and_the_other_waits_for_the_release(folder):
    with Claims(folder) as one, Claims(folder) as other:
        assert one.take("sub-1")
        assert not other.take("sub-1")
        assert other.take("sub-10")  # a name that begins alike
        assert one.holds("sub-1")
        assert not other.holds("sub-1")
        one.release("sub-1")
        other.wait_for_any(["sub-1"])
        assert other.take("sub-1")
    assert not folder.exists()


def test_of_many_at_once_one_wins(folder):
    wins, barrier = [], threading.Barrier(8)

    def run():
        with Claims(folder) as claims:
            barrier.wait()
            wins.extend(name for name in names if claims.take(name))
            barrier.wait()

    names = [f"sub-{n}" for n in range(50)]
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == sorted(names)


def test_the_claim_of_a_process_that_has_gone_is_taken_over(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other_claim(folder, "sub-1", f"{module._machine()} {ended.pid}")
    with Claims(folder) as one, Claims(folder) as other:
        assert one.take("sub-1")
        assert not other.take("sub-1")
        one.release("sub-1")
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("owner", ["0123456789abcdef 1", ""])
def test_a_claim_from_elsewhere_lives_while_it_is_touched(folder, owner):
    other_claim(folder, "sub-1", owner, age_s=LEASE_S - 60)
    other_claim(folder, "sub-2", owner, age_s=LEASE_S + 60)
    with Claims(folder) as claims:
        assert not claims.take("sub-1")
        claims.wait_for_any(["sub-1", "sub-2"])
        assert claims.take("sub-2")


def test_claims_are_touched_while_they_are_held(folder, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    with Claims(folder) as claims:
        claims.take("sub-1")
        path = folder / "sub-1.0"
        os.utime(path, (0, 0))
        deadline = threading.Event()
        for _ in range(500):
            if path.stat().st_mtime > 0 or deadline.wait(0.02):
                break
        assert path.stat().st_mtime > 0


def test_who_slept_too_long_has_lost_the_claim(folder, monkeypatch):
    with Claims(folder) as slept, Claims(folder) as other:
        assert slept.take("sub-1")
        os.utime(folder / "sub-1.0", (0, 0))
        assert other.take("sub-1")
        assert not slept.holds("sub-1")
        slept.release("sub-1")
        assert other.holds("sub-1")
