"""Time the cases against their peers: `python -m benchmarks`, or `cmb-jax benchmark`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, scaling
from benchmarks.cases import CASES, PEAK, Case, Device
from benchmarks.table import Row, rows_table
from benchmarks.turns import measure, without_gpu
from cmb_jax.cli.common import run_cli
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_write_text


def chosen(names: Sequence[str]) -> list[Case]:
    """Cases by name; all for none.

    Raises:
        UserError: a name is unknown.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise UserError(f"{unknown[0]}: no such case; choose from: {', '.join(CASES)}")
    return [CASES[name] for name in names] or list(CASES.values())


def check_output(path: Path | None, overwrite: bool) -> None:
    """Before anything is measured: the file can be written.

    Raises:
        UserError: it is there already, or is a folder, or its folder cannot be written to.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{path}: this is a folder; give the name of a JSON file")
    if path is not None and path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; choose another name or give --overwrite")
    if path is not None:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"{path}: {folder} is no folder that may be written to; choose another place")


def run(
    cases: Sequence[Case],
    repeats: int,
    with_scaling: bool = False,
    path: Path | None = None,
    overwrite: bool = False,
    keep_memory: bool | None = None,
) -> list[Row]:
    """Measure, print, write.

    Returns:
        All rows, those of the scaling at the end.

    Raises:
        UserError: see `check_output`; fewer than one repeat.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}; give 1 or more")
    check_output(path, overwrite)
    device, facts = machine.look()
    print(machine.sentence(facts, device), flush=True)
    peak = _peak(repeats, device) if any(case.convolves for case in cases) else None
    rows = []
    for case in cases:
        print(f"{case.name}: {case.about} ...", file=sys.stderr, flush=True)
        if keep_memory is not None:
            case = dataclasses.replace(case, keep_memory=keep_memory)
        rows.append(Row.of(measure(case, repeats, device), peak))
    if device == "cpu":
        rows += [Row.of(without_gpu(case), None) for case in cases if case.gpu]
    print(rows_table(rows, peak), flush=True)
    curves = []
    if with_scaling:
        for sweep in scaling.SWEEPS:
            print(f"scaling of {sweep.name} ...", file=sys.stderr, flush=True)
            fewer = min(repeats, scaling.MOST_REPEATS)
            curves.append(scaling.measure_sweep(sweep, fewer, device))
            print(scaling.curve_table(curves[-1]), flush=True)
    if path is not None:
        content = {
            "machine": facts,
            "device": device,
            "repeats": repeats,
            "matmul_gflop_per_s": peak,
            "rows": [row.as_json() for row in rows],
            "scaling": [curve.as_json() for curve in curves],
        }
        atomic_write_text(path, json.dumps(content, indent=2) + "\n", overwrite=overwrite)
        print(f"written: {path}")
    return rows + [row for curve in curves for row in curve.rows]


def _peak(repeats: int, device: Device) -> float | None:
    """1e9 operations per second of a float32 matrix product, by the better framework."""
    measured = measure(PEAK, repeats, device)
    times = [side.median_s for side in (measured.ours, measured.other) if side.median_s]
    return measured.ours.gflop / min(times) if times and measured.ours.gflop else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 2 for what the user can put right, 1 if a side failed."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction)
    given = parser.parse_args(arguments)
    failed: list[str] = []

    def command() -> None:
        rows = run(
            chosen(given.case), given.repeats, given.scaling, given.json, given.overwrite, given.keep_memory
        )
        failed.extend(line for row in rows for line in row.failures())

    run_cli(command)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
