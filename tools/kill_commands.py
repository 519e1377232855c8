"""Kill commands with SIGKILL at random moments, run them again, and compare with a run left alone.

python tools/kill_commands.py --out FOLDER [--kills 40] [--commands swi implant review calibrate]

Run from the root of the checkout. After a kill there is the whole output or none; the next run gives the same
bytes, and nothing else is left beside it. Training and cohorts have tools of their own: kill_and_resume.py
and interrupt_cohort.py. Ends with code 1 if anything differs.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())

import nibabel as nib
import numpy as np

MODULES = ["nibabel", "jax", "flax.nnx", "cmb_jax.cli", "cmb_jax.cli.swi", "cmb_jax.cli.simulate"]
MODULES += ["cmb_jax.cli.review", "cmb_jax.cli.weights"]  # a wrong name is passed over without a word
SHAPE = (40, 44, 32)


def scan(folder):
    """Magnitude and phase that turns evenly, with noise; their paths and affine."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    signal_ = (900 + 60 * x - 40 * z**2) * np.exp(1j * (3.5 * y + 2 * z * x))
    signal_ += 15 * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
    affine = np.diag([-0.7, -0.7, 0.8, 1.0])
    for name, data in (("magnitude", np.abs(signal_)), ("phase", np.angle(signal_))):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
    return ["--magnitude", folder / "magnitude.nii.gz", "--phase", folder / "phase.nii.gz"], affine


def swi(folder):
    return ["swi", *scan(folder)[0], "--phase-sign", "+1"], "made"


def implant(folder):
    images, affine = scan(folder)
    x, y, z = (affine @ [20.3, 22.2, 16.4, 1])[:3]
    table = f"x_mm,y_mm,z_mm,diameter_mm,kind,chi_ppm\n{x},{y},{z},3.0,cmb,0.6\n"
    (folder / "lesions.csv").write_text(table)
    physics = ["--te-ms", 15, "--b0-t", 3, "--phase-sign", "+1"]
    return ["implant", *images, *physics, "--lesions", folder / "lesions.csv"], "made"


def review(folder):
    from cmb_jax.review.outside_viewers import markups
    from cmb_jax.review.result import load_result
    from tests.review.conftest import make_result

    result = make_result(folder / "result")
    (folder / "reader.mrk.json").write_text(markups(load_result(result)))
    return ["review", "import", folder / "reader.mrk.json", "--result", result], "sub-07_points.csv"


def calibrate(folder):
    from flax import nnx

    from cmb_jax.config import Config, InferenceConfig
    from cmb_jax.detector.network import Detector, params_of
    from cmb_jax.inference.bundle import save_bundle
    from tests.cli.test_calibrate import THRESHOLD, make_tree
    from tests.tiny import TINY_MODEL

    weights = folder / "tiny.safetensors"
    config = Config(name="tiny", model=TINY_MODEL, inference=InferenceConfig(score_threshold=THRESHOLD))
    save_bundle(weights, params_of(Detector(TINY_MODEL, rngs=nnx.Rngs(0))), config)
    found, truth = make_tree(folder, weights)
    return ["calibrate", "--pred", found, "--truth", truth, "--weights", weights], "better.safetensors"


COMMANDS = {made.__name__: made for made in (swi, implant, review, calibrate)}


def prepare(name, folder, pipe):
    folder.mkdir(parents=True)
    pipe.send(COMMANDS[name](folder))


def attempt(words, log):
    """In a process of its own."""
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from cmb_jax import cli

    sys.argv = ["cmb-jax", *map(str, words)]
    cli.main()


def contents(folder):
    """Every file below a folder by its name, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def run(context, words, out, log, kill_after=None):
    """One attempt at `words --out out`: seconds that it took, or None if it was killed."""
    more = ["--overwrite"] if out.exists() else []
    process = context.Process(target=attempt, args=([*words, "--out", out, *more], log))
    tick = time.monotonic()
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    if process.exitcode:
        sys.exit(f"{words[0]} ended with {process.exitcode}: {Path(log).read_text()[-2000:]}")
    return time.monotonic() - tick


def try_command(context, name, folder, kills, rng):
    """(killed, killed while it wrote) of a command."""
    ours, theirs = context.Pipe(duplex=False)
    maker = context.Process(target=prepare, args=(name, folder / "inputs", theirs))
    maker.start()
    words, output = ours.recv()
    maker.join()
    log = folder / "log.txt"

    def place(which):
        (folder / which).mkdir(exist_ok=True)
        return folder / which / output

    run(context, words, place("alone"), log)
    seconds = run(context, words, place("again"), log)
    expected, second = contents(folder / "alone"), contents(folder / "again")
    stamped = {file for file in expected if expected[file] != second[file]}  # they hold times
    killed = writing = tries = 0
    while killed < kills:
        tries += 1
        if tries > 10 * kills:
            sys.exit(f"{name}: too quick to be killed")
        # half of the moments lie near the end, where files are written
        share = rng.uniform(0, 1) if tries % 2 else rng.uniform(0.7, 1.05)
        if run(context, words, place("killed"), log, kill_after=share * seconds) is not None:
            continue
        killed += 1
        left = contents(folder / "killed")
        whole = {file: content for file, content in left.items() if file in expected}
        for file, content in whole.items():
            if file not in stamped and content != expected[file]:
                sys.exit(f"{name}: {file} was left half-written")
        writing += bool(left.keys() - expected.keys())
        run(context, words, place("killed"), log)
        found = contents(folder / "killed")
        different = [
            file
            for file in expected.keys() | found.keys()
            if file not in stamped and expected.get(file) != found.get(file)
        ]
        if different:
            sys.exit(f"{name}: not the same after a kill: {', '.join(sorted(different))}")
        for path in sorted((folder / "killed").rglob("*"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
    return killed, writing


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)  # each attempt begins with these imported
    for name in chosen.commands:
        killed, writing = try_command(context, name, chosen.out / name, chosen.kills, rng)
        print(f"{name}: {killed} kills, {writing} with files half-written; the same after each", flush=True)


if __name__ == "__main__":
    main()
