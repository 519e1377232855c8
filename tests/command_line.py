"""The command line as a function, shared by the folders that test commands."""

import sys

from cmb_jax import cli


def run_cli(monkeypatch, capsys, *arguments):
    """Runs `cmb-jax` with these arguments; gives (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["cmb-jax", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()
