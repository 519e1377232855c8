"""Kill a process in the middle of a cohort, start it again, compare with a straight run.

python tools/interrupt_cohort.py FOLDER [COUNT]

Makes a BIDS data set of COUNT (200) small scans and untrained weights in the new FOLDER, and runs
`cmb-jax bids ... participant` on it: once straight through; once as two processes, of which the first is
killed when half of its scans are done, and started again. Fails unless every scan is done once and all files
but logs/ are the same bytes.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from flax import nnx

from cmb_jax.config import Config, InferenceConfig, ModelConfig
from cmb_jax.detector.network import Detector, params_of
from cmb_jax.inference.bundle import save_bundle

CONFIG = Config(
    name="untrained",
    model=ModelConfig(
        widths=(4, 6, 8),
        encoder_convs=(0, 1, 1),
        decoder_convs=(0, 1),
        fusion_width=4,
        head_width=4,
        embedding_dim=4,
    ),
    inference=InferenceConfig(score_threshold=0.0, candidate_threshold=0.0, max_detections=4),
)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS
SHAPES = ((24, 28, 14), (26, 30, 18), (22, 40, 14))  # for more than one bucket


def make_study(root, count):
    """Scans of noise with dark spots; every other one has a phase."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "noise", "BIDSVersion": "1.10.0"}))
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = SHAPES[number % len(SHAPES)]
        # a scan that is noise throughout would be refused
        swi = 100 + np.linspace(-15, 15, shape[0])[:, None, None] + rng.normal(size=shape)
        swi[tuple(rng.integers(2, size - 2) for size in shape)] = 5
        subject = f"sub-{number:03d}"
        folder = root / subject / "anat"
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(swi.astype(np.float32), AFFINE), folder / f"{subject}_swi.nii.gz")
        if number % 2:
            phase = rng.uniform(-3.14, 3.14, shape).astype(np.float32)
            nib.save(nib.Nifti1Image(phase, AFFINE), folder / f"{subject}_part-phase_GRE.nii.gz")


# scans of this size are no heads
PROGRAM = """
from cmb_jax import cli
from cmb_jax.scan import judge
judge.NARROWEST_MM = (0.0, 0.0, 0.0)
cli.main()
"""


def start(study, out, weights, *more):
    command = [sys.executable, "-c", PROGRAM, "bids", study, out, "participant"]
    command += ["--weights", weights, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """(scans done, scans skipped) as the process says."""
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    print(stdout.splitlines()[0], "|", stderr.strip().splitlines()[-1])
    return tuple(
        int(found[1]) if (found := re.search(rf"(\d+) {word}", stdout)) else 0 for word in ("done", "skipped")
    )


def results(out):
    """Everything but the logs, which hold times."""
    files = (path for path in out.rglob("*") if path.is_file())
    named = {path.relative_to(out).as_posix(): path for path in files}
    return {name: path for name, path in named.items() if not name.startswith("logs/")}


def finished(out, labels):
    paths = [next(out.glob(f"sub-{label}/anat/*_detections.json"), None) for label in labels]
    return {path: path.stat().st_mtime_ns for path in paths if path is not None}


def main(folder, count):
    study, weights = folder / "study", folder / "untrained.safetensors"
    make_study(study, count)
    save_bundle(weights, params_of(Detector(CONFIG.model, rngs=nnx.Rngs(0))), CONFIG)
    straight, interrupted = folder / "straight", folder / "interrupted"
    assert finish(start(study, straight, weights)) == (count, 0)

    share = [f"{number:03d}" for number in range(0, count, 2)]
    first = start(study, interrupted, weights, "--process", "0/2")
    second = start(study, interrupted, weights, "--process", "1/2")
    while len(finished(interrupted, share)) < len(share) // 2:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.kill()
    first.communicate()
    before = finished(interrupted, share)
    left = [path for path in results(interrupted).values() if path.name.startswith(".sub")]
    print(f"killed with {len(before)} of {len(share)} done, {len(left)} files half written")
    assert len(before) < len(share)

    again = start(study, interrupted, weights, "--process", "0/2")
    assert finish(again) == (len(share) - len(before), len(before))
    assert finish(second) == (count - len(share), 0)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "done twice"
    one, other = results(straight), results(interrupted)
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    different = [name for name in one if one[name].read_bytes() != other[name].read_bytes()]
    assert not different, different
    print(f"{count} scans, {len(one)} files: the same bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
