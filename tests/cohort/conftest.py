"""The command line with a stub for a detector."""

import functools
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from cmb_jax import devices
from cmb_jax.cohort import detector
from tests.cohort import app
from tests.command_line import run_cli


@pytest.fixture
def stub():
    return app.StubDetector()


@pytest.fixture
def bids(monkeypatch, capsys, stub):
    """Runs `cmb-jax bids`; gives (exit code, stdout, stderr)."""

    monkeypatch.setattr(
        detector,
        "detector_pipeline",
        lambda options, _devices, regions: app.pipeline(stub, regions, options),
    )
    monkeypatch.setattr(devices, "use_compilation_cache", lambda: None)

    return functools.partial(run_cli, monkeypatch, capsys, "bids")


@pytest.fixture
def validator_errors():
    """The errors of bids-validator-deno for a folder, or a skip if it is not installed."""
    if find_spec("bids_validator_deno") is None:
        pytest.skip("bids-validator-deno is not installed: pip install -e .[dev]")

    def errors(folder):
        code = "import sys; from bids_validator_deno import cli; sys.exit(cli())"
        done = subprocess.run(
            [sys.executable, "-c", code, "--format", "json", str(folder)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        content = json.loads(done.stdout)
        assert content["summary"]["totalFiles"] > 0
        issues = content["issues"]["issues"]
        return [issue for issue in issues if issue["severity"] == "error"]

    return errors
