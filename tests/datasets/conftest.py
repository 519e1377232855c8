"""The command line as a function."""

import sys

import pytest

from cmb_jax import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line; gives (exit code, stdout, stderr)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmb-jax", "data", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return command
