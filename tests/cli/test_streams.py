"""Output streams that are closed or full: results decide how a command ends."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from pathlib import Path
from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
def command():
    for _ in range(3000):
        print("a line of what was found")
        print("progress", file=sys.stderr)
    Path(sys.argv[1]).write_text("complete")
    if sys.argv[2] == "bad":
        raise UserError("the reason")
run_cli(command)
"""


def shell(tmp_path, redirection, ends="well"):
    out = tmp_path / "result"
    command = f'exec "$0" -c "$1" "$2" {ends} {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, CODE, str(out)], capture_output=True, text=True, check=False
    )
    assert out.read_text() == "complete"
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr + done.stdout
    return done


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full", ">/dev/null 2>&1"])
def test_closed_streams_change_nothing(tmp_path, redirection):
    assert shell(tmp_path, redirection).returncode == 0
    assert shell(tmp_path, redirection, "bad").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_behind_the_output_is_said_in_one_line(tmp_path):
    done = shell(tmp_path, ">/dev/full")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith(
        "note: what was to be printed could not be written (No space"
    )
    assert shell(tmp_path, ">/dev/full 2>/dev/full").returncode == 0
    done = shell(tmp_path, ">/dev/full", "bad")
    assert (done.returncode, "error: the reason" in done.stderr) == (2, True)


def test_errors_of_the_file_system_are_one_line(tmp_path):
    code = (
        "from cmb_jax.cli.common import run_cli\n"
        "def command():\n    open('/nowhere/at/all', 'w')\n"
        "run_cli(command)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: /nowhere/at/all: No such file or directory; check the disk and the folder\n"


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="another user is tried as root")
def test_without_a_home_and_as_an_unknown_user(tmp_path):
    code = (
        "import os\nfrom cmb_jax.anatomy.assets import cache_dir, make_folder\nos.setuid(54321)\n"
        "make_folder(cache_dir()); make_folder(cache_dir() / 'x')\n"
        "print(cache_dir(), oct(cache_dir().stat().st_mode & 0o777))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "CMB_JAX_CACHE")}
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/cmb_jax-54321 0o700\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("note: this user has no home folder: files are kept in ")
