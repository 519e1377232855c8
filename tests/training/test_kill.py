"""SIGKILL at random moments: the run ends as if it had been left alone (tools/kill_and_resume.py)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CMB_JAX_TEST_KILLS", "3"))


def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path):
    command = [sys.executable, "tools/kill_and_resume.py", "--out", str(tmp_path / "runs")]
    chosen = ["--kills", str(KILLS), "--steps", str(12 + 5 * KILLS)]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills" in done.stdout
    assert "the end is the same: True" in done.stdout
