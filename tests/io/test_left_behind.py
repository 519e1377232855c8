"""Writers that are killed with SIGKILL: the next one gives the same result and leaves nothing else."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes, clear_dead

KILLS = int(os.environ.get("CMB_JAX_TEST_KILLS", "8"))

WRITE = """
import sys
from pathlib import Path
from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes
root = Path(sys.argv[1])
print("ready", flush=True)
while True:
    atomic_write_bytes(root / "one.bin", b"x" * 3_000_000, overwrite=True)
    with atomic_directory(root / "many", overwrite=True) as folder:
        for number in range(20):
            (folder / f"{number}.bin").write_bytes(b"y" * 100_000)
"""


def shown(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write(root):
    atomic_write_bytes(root / "one.bin", b"x" * 3_000_000, overwrite=True)
    with atomic_directory(root / "many", overwrite=True) as folder:
        for number in range(20):
            (folder / f"{number}.bin").write_bytes(b"y" * 100_000)


def test_killed_at_random_moments(tmp_path):
    rng = random.Random(0)
    write(tmp_path)
    whole = shown(tmp_path)
    left = 0
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", WRITE, tmp_path], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert (tmp_path / "one.bin").read_bytes() == b"x" * 3_000_000
        left += len(shown(tmp_path) - whole) > 0
        write(tmp_path)
        assert shown(tmp_path) == whole
    assert left  # some were killed while they wrote


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with atomic_directory(tmp_path / "out") as first:
        (first / "a").write_text("1")
        code = (
            "import sys; from pathlib import Path; from cmb_jax.io.atomic import clear_dead;"
            "clear_dead(Path(sys.argv[1]), 'out')"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
        assert (first / "a").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_an_old_folder_whose_replacement_was_killed_between_two_renames_comes_back(tmp_path):
    aside = tmp_path / ".out.0123456789ab.part"
    (aside / "old").mkdir(parents=True)
    (aside / "old" / "precious").write_text("1")
    (aside / "new").mkdir()
    clear_dead(tmp_path, "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "precious").exists()


def test_names_with_signs_of_patterns_and_long_ones(tmp_path):
    for name in ("a[1].nii.gz", "b*.txt"[:1] + ".txt", "x" * 240):
        atomic_write_bytes(tmp_path / name, b"1")
        atomic_write_bytes(tmp_path / name, b"2", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write_bytes(tmp_path / ("x" * 5000), b"1")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files stands for a full disk")
def test_a_disk_that_is_full_halfway_leaves_nothing(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from cmb_jax.cli.common import run_cli
from cmb_jax.io.atomic import atomic_directory, atomic_write_bytes
root = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
def command():
    if sys.argv[2] == "file":
        atomic_write_bytes(root / "one.bin", b"x" * 3_000_000)
    with atomic_directory(root / "many") as folder:
        (folder / "small").write_bytes(b"y" * 100_000)
        (folder / "large").write_bytes(b"y" * 300_000)
run_cli(command)
"""
    for what in ("file", "folder"):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, what], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {tmp_path}")
        assert "cannot be written (File too large)" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
