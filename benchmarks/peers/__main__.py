"""Train the contestants, one after another, and make the page: `python -m benchmarks.peers run | table`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.inputs import cores
from benchmarks.machine import cpu_model
from benchmarks.peers.contest import CONTESTANTS, SPACING_MM, TestScan, run_one
from benchmarks.peers.page import write_page
from benchmarks.peers.plan import PLAN, Run, budget_seconds
from cmb_jax.cli.common import run_cli
from cmb_jax.config_load import config_from_file
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import atomic_directory, locked, make_folder

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = "benchmarks/peers/requirements-peers.txt"
SEED_OF_SUBSETS = 0
_PACKAGES = ("jax", "torch", "monai", "nnunetv2", "scikit-learn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 2 for what the user can put right, 1 if a contestant failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("run", "one", "table"))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="runs and prepared scans")
    parser.add_argument(
        "--phantoms", type=Path, metavar="DIR", help="prepared subjects; made in WORK if none"
    )
    parser.add_argument("--test", type=Path, metavar="DIR", help="simulated tree; made in WORK if none")
    parser.add_argument(
        "--test-subjects", type=int, default=60, metavar="N", help="of CMB-Phantom, hard, test"
    )
    parser.add_argument("--validation-subjects", type=int, default=12, metavar="N")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--budget", metavar="T", help="such as 2m or 1h, in place of the plan: one run each")
    parser.add_argument("--subjects", type=int, default=72, metavar="N", help="to train on, with --budget")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the training, with --budget")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "comparison.md", metavar="FILE")
    given = parser.parse_args(arguments)
    failed: list[str] = []

    def command() -> None:
        runs = chosen(given)
        if given.command == "table":
            write_page(given.work, test_folder(given), runs, given.page)
        elif given.command == "one":
            run_contestant(given, runs[0])
        else:
            failed.extend(run_all(given, runs))

    run_cli(command)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def chosen(given: argparse.Namespace) -> list[Run]:
    """The plan, or one run of each contestant with the given budget.

    Raises:
        UserError: an unknown contestant or budget.
    """
    unknown = [name for name in given.only if name not in CONTESTANTS]
    if unknown:
        raise UserError(f"{unknown[0]}: no such contestant; choose from: {', '.join(CONTESTANTS)}")
    if given.budget is None:
        return [run for run in PLAN if not given.only or run.contestant in given.only]
    budget_seconds(given.budget)
    return [
        Run(contestant=name, budget=given.budget, seed=given.seed, subjects=given.subjects)
        for name in given.only or CONTESTANTS
    ]


def run_all(given: argparse.Namespace, runs: Sequence[Run]) -> list[str]:
    """Every run that has no result yet, each in a process of its own; what failed, one line each."""
    make_folder(given.work)
    failed = []
    with locked(given.work, "wait until it is done, or choose another --work"):
        training_and_validation(given)
        list(test_scans(given))
        for run in runs:
            if (run.folder(given.work) / "result.json").exists():
                continue
            missing = CONTESTANTS[run.contestant].missing()
            if missing is not None:
                print(f"{run.name}: left out, {missing} is not installed: pip install -r {REQUIREMENTS}")
                continue
            print(f"{run.name} ...", flush=True)
            arguments = [
                *("one", "--work", given.work.absolute(), "--test-subjects", given.test_subjects),
                *("--validation-subjects", given.validation_subjects, "--only", run.contestant),
                *("--budget", run.budget, "--subjects", run.subjects, "--seed", run.seed),
            ]
            for option in ("phantoms", "test"):
                if getattr(given, option) is not None:
                    arguments += [f"--{option}", getattr(given, option).absolute()]
            log = run.folder(given.work) / "log.txt"
            make_folder(log.parent)
            with log.open("a") as stream:
                code = subprocess.run(
                    [sys.executable, "-m", "benchmarks.peers", *map(str, arguments)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
                    stdout=stream,
                    stderr=stream,
                    check=False,
                ).returncode
            if code:
                failed.append(f"{run.name}: ended with code {code}; see {log}")
    return failed


def run_contestant(given: argparse.Namespace, run: Run) -> None:
    """One run in this process."""
    training, validation = training_and_validation(given)
    if run.subjects > len(training):
        raise UserError(f"--subjects {run.subjects}: there are {len(training)}")
    # nested: the first few of one order
    order = np.random.default_rng(SEED_OF_SUBSETS).permutation(len(training))[: run.subjects]
    run_one(
        CONTESTANTS[run.contestant],
        run.folder(given.work),
        [training[number] for number in sorted(order)],
        validation[: given.validation_subjects],
        list(test_scans(given)),
        seconds=budget_seconds(run.budget),
        seed=run.seed,
        facts={**dataclasses.asdict(run), **machine_facts()},
    )


def machine_facts() -> dict[str, str | int | None]:
    """Commit, processor and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "commit": commit or None,
        "cpu": cpu_model(),
        "cores": cores(),
        **{package: version(package) for package in _PACKAGES},
    }


def training_and_validation(
    given: argparse.Namespace,
) -> tuple[tuple[StoredSubject, ...], tuple[StoredSubject, ...]]:
    """Prepared subjects of `configs/base.py`, simulated where they are not there."""
    from cmb_jax.training.run_data import phantom_subjects

    config = config_from_file("base")
    folder = str(given.phantoms or given.work / "phantoms")
    config = dataclasses.replace(config, phantom=dataclasses.replace(config.phantom, cache_dir=folder))
    return tuple(phantom_subjects(config, given.work, which) for which in ("training", "validation"))  # type: ignore[return-value]


def test_folder(given: argparse.Namespace) -> Path:
    """Where the test scans with their truth lie."""
    folder: Path = given.test or given.work / "test"
    return folder


def test_scans(given: argparse.Namespace):
    """Readers of the test scans, prepared once as `cmb-jax predict` does it."""
    from cmb_jax.anatomy.assets import load_pack
    from cmb_jax.datasets.find import find
    from cmb_jax.datasets.images import read_scan
    from cmb_jax.inference.scan import prepare_scan
    from cmb_jax.phantom.benchmark import BenchmarkSplit
    from cmb_jax.phantom.tree import write_cohort

    root = test_folder(given)
    if not root.exists():
        split = BenchmarkSplit(split="test", tier="hard")
        with atomic_directory(root) as tree:
            write_cohort(tree, split.title, split.members(given.test_subjects), functools.cache(load_pack))
    for case in find(root).cases:
        path = given.work / "prepared" / f"{case.case_id}.npz"
        if not path.exists():
            scan = prepare_scan(read_scan(case, root), spacing_mm=SPACING_MM)
            make_folder(path.parent)
            with path.with_suffix(".part").open("wb") as stream:
                np.savez(stream, image=scan.prepared.image, affine=scan.prepared.affine)
            path.with_suffix(".part").replace(path)
        yield functools.partial(read_prepared, path)


def read_prepared(path: Path) -> TestScan:
    """A prepared test scan."""
    with np.load(path) as stored:
        return TestScan(subject=path.stem, image=stored["image"], affine=stored["affine"])


if __name__ == "__main__":
    main()
