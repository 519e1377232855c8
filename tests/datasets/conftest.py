"""`cmb-jax data` as a function."""

import functools

import pytest

from tests.command_line import run_cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line; gives (exit code, stdout, stderr)."""
    return functools.partial(run_cli, monkeypatch, capsys, "data")
