"""Kill a training run with SIGKILL at random moments, start it again, and compare it with one left alone.

python tools/kill_and_resume.py --out FOLDER [--kills 20] [--steps 60] [--devices 8 --mesh 4x2]

Run from the root of the checkout. The final state (parameters, their average, optimizer) must be that of the
run left alone, bit for bit; ends with code 1 otherwise.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())

MODULES = [
    "jax",
    "grain",
    "orbax.checkpoint",
    "flax.nnx",
    "cmb_jax.training.detector",
    "tests.training.worker",
]
LONGEST_SECONDS = 3600  # that one attempt may take
LONGEST_START_SECONDS = 20.0  # after which a process is killed that has made no step yet, if it shall be


def attempt(arguments, log):
    """A process of its own: train as the worker does."""
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from tests.training.worker import main

    main(arguments)


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def start(context, arguments, log):
    process = context.Process(target=attempt, args=(arguments, str(log)))
    process.start()
    return process


def kill_somewhere(process, table, rng):
    """SIGKILL after 1 to 5 more steps and a part of the next, or in the midst of starting; True if killed."""
    steps, begun, before = rng.randrange(6), time.monotonic(), lines(table)
    limit = LONGEST_SECONDS if steps else rng.uniform(0, LONGEST_START_SECONDS)
    seen, last, one_step = before, begun, 0.0
    while process.is_alive() and time.monotonic() - begun < limit and seen < before + max(steps, 1):
        time.sleep(0.01)
        now = lines(table)
        if now > seen:
            one_step = (time.monotonic() - last) / (now - seen) if seen > before else 0.0
            seen, last = now, time.monotonic()
    process.join(rng.uniform(0, one_step))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def final_of(log):
    found = [line for line in log.read_text().splitlines() if line.startswith("final ")]
    return found[-1] if found else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mesh", default="1x1")
    parser.add_argument("--devices", default="1")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(chosen.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)  # each attempt begins with these imported

    def arguments(name):
        how = ["--steps", str(chosen.steps), "--checkpoint-every", "2", "--mesh", chosen.mesh]
        return [str(chosen.out / name), *how, "--devices", chosen.devices]

    alone, log = chosen.out / "alone.log", chosen.out / "killed.log"
    start(context, arguments("alone"), alone).join()
    killed = 0
    while killed < chosen.kills:
        process = start(context, arguments("killed"), log)
        if not kill_somewhere(process, chosen.out / "killed" / "metrics.csv", rng):
            sys.exit(f"ended by itself with {process.exitcode} after {killed} kills: give more --steps")
        killed += 1
        checkpoints = chosen.out / "killed" / "checkpoints"
        whole = [entry.name for entry in checkpoints.iterdir()] if checkpoints.exists() else []
        print(f"killed {killed} of {chosen.kills}; in checkpoints: {', '.join(sorted(whole))}", flush=True)
    last = start(context, arguments("killed"), log)
    last.join()
    resumed = log.read_text().count("continuing from step")
    same = final_of(log) is not None and final_of(log) == final_of(alone)
    print(f"{killed} kills, {resumed} times continued from a checkpoint; the end is the same: {same}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
