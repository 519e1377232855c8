"""From a prepared volume to candidates with nnU-Net's predictor and connected components.

The network is the one that nnU-Net plans for this volume, with random weights: time does not depend on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.peers import nnunet
from benchmarks.peers.contest import Found
from benchmarks.sides.on_torch import device_peak_mb, start
from cmb_jax.data.prepare import PreparedVolume
from cmb_jax.data.subjects import store_scan

__all__ = ["device_peak_mb", "prepare"]


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """Plan on five copies of the volume, build the network, predict as the comparison of detectors does."""
    start(device)
    image = inputs.head(inputs.triple(options["shape"]))
    with tempfile.TemporaryDirectory() as folder:
        subject = store_scan(
            Path(folder) / "seed-0",
            PreparedVolume(image=image, affine=np.eye(4), spacing_mm=(1.0, 0.5, 0.5), has_phase=True),
            boxes=np.array([[20.0, 60, 60, 24, 68, 68]]),
            mimics_mm=np.zeros((0, 3)),
            brain_mask=np.ones(image.shape[2::-1], bool),
            affine=np.eye(4),
            seed=0,
        )
        facts = nnunet.plan([subject], Path(folder))
        trainer = nnunet.make_trainer(Path(folder))
        trainer.initialize()
        find = nnunet.finder_of(trainer)

    def run() -> Found:
        return find(image)

    windows = " x ".join(map(str, facts["patch"]))
    return Prepared(
        run=run,
        result=lambda found: float(len(found.scores)),
        note=f"random weights, window {windows}, step {nnunet.OVERLAP_STEP}, no mirror images",
    )
