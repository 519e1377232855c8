"""Output whose reader stops, as `cmb-jax weights show | head` does."""

import os
import subprocess
import sys

import pytest

from cmb_jax.cli.common import run_cli


@pytest.mark.skipif(os.name != "posix", reason="pipes that break are POSIX's")
def test_a_reader_who_stops_ends_the_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "cmb_jax.cli", "weights", "show"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_not_hidden():
    def command():
        raise BrokenPipeError("to a worker")

    with pytest.raises(BrokenPipeError, match="to a worker"):
        run_cli(command)
