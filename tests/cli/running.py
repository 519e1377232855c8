"""The command line inside a test."""

import sys

from cmb_jax import cli


def run(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["cmb-jax", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err
