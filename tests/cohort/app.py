"""The app with a detector that is none: what it finds is given, so that tests are about the files."""

import dataclasses
from pathlib import Path

import numpy as np

from cmb_jax.anatomy.regions import RegionMap
from cmb_jax.cohort.scan_work import Pipeline
from cmb_jax.config import Config, InferenceConfig
from cmb_jax.core.detection import DetectionRow, RejectReason
from cmb_jax.inference.bundle import WeightsBundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import Prediction
from tests.tiny import TINY_MODEL

BUNDLE = WeightsBundle(
    path=Path("somewhere/tiny.safetensors"),
    sha256="5a" * 32,
    config=Config(model=TINY_MODEL, inference=InferenceConfig(score_threshold=0.647)),
    params={},
)


def row(volume, number, index, zone, category="definite", reason=""):
    """A detection at a voxel of the RAS grid."""
    x, y, z = (volume.affine @ [*index, 1])[:3]
    i, j, k = (np.linalg.inv(volume.native.affine) @ [x, y, z, 1])[:3]
    return DetectionRow(
        id=number,
        i=round(i),
        j=round(j),
        k=round(k),
        x_mm=float(x),
        y_mm=float(y),
        z_mm=float(z),
        diameter_mm=3.0,
        volume_mm3=14.1,
        score=0.95 if category == "definite" else 0.7,
        category=category,
        zone=zone,
        region="frontal" if zone == "lobar" else "thalamus" if zone == "deep" else "none",
        side="left" if zone != "none" else "none",
        status="rejected" if reason else "kept",
        reason=reason,
    )


class StubDetector:
    """Finds two lobar and one deep microbleed in every scan, and rejects one candidate."""

    def __init__(self):
        self.seen = []  # the images of each call

    device = None

    def prepare(self, images, say):
        self.seen.append(images)
        return say

    def search(self, say):
        say("searching for microbleeds")

    def conclude(self, images, _prepared, _found):
        swi = images.swi
        rows = (
            row(swi, 1, (6, 8, 5), "lobar"),
            row(swi, 2, (15, 20, 9), "lobar", "possible"),
            row(swi, 3, (12, 14, 3), "deep"),
            row(swi, 4, (18, 6, 10), "none", "possible", RejectReason.LOW_SCORE.sentence),
        )
        phase = None if images.phase is None else dataclasses.replace(swi, data=images.phase.data)
        return Prediction(
            rows=rows,
            swi=swi,
            phase=phase,
            region_map=RegionMap(code=np.zeros(swi.shape, np.uint8), affine=swi.affine),
            brain_mask=np.ones(swi.shape, bool),
            region_code=np.full(swi.shape, 25, np.uint8),
            boxes_mm=np.full((len(rows), 3), 3.0),
            warnings=swi.warnings,
            settings=(
                ("phase", "none" if phase is None else "used"),
                ("score_threshold", "0.800" if phase is None else "0.647"),
            ),
            steps=("a stub looked",),
            timings=(("detection", 0.1),),
        )


def pipeline(detector, regions=None, options=None):
    """The stub as a pipeline."""
    return Pipeline(bundle=BUNDLE, detectors=(detector,), options=options or ScanOptions(), regions=regions)
