"""The command that makes the tables of docs/reliability.md: its short form, on the trials that are quick."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_the_short_form_writes_its_table(tmp_path):
    page = tmp_path / "page.md"
    text = (ROOT / "docs" / "reliability.md").read_text()
    page.write_text(text)
    command = [
        sys.executable,
        "tools/reliability.py",
        "--short",
        "--only",
        "review",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run([*command, "--doc", page], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert "2 kills" in found["review"]["result"]
    changed = page.read_text()
    assert found["review"]["result"] in changed
    # all but the table of trials is as it was
    begin, end = "<!-- trials of tools/reliability.py -->", "<!-- end of the trials -->"
    assert changed.split(begin)[0] == text.split(begin)[0]
    assert changed.split(end)[1] == text.split(end)[1]
