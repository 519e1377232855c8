"""A small subject whose pictures can be checked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region, Side, encode
from cmb_jax.core.detection import DetectionRow
from cmb_jax.io.volume import Volume
from cmb_jax.report.summary import ReportContent

SHAPE = (64, 80, 24)
SPACING_MM = (2.0, 2.0, 5.0)


@pytest.fixture
def affine() -> np.ndarray:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING_MM
    return affine


@pytest.fixture
def make_row() -> Callable[..., DetectionRow]:
    first = DetectionRow(
        id=1,
        i=40,
        j=50,
        k=12,
        x_mm=17.0,
        y_mm=21.0,
        z_mm=2.5,
        diameter_mm=4.0,
        volume_mm3=33.5,
        score=0.9,
        category="definite",
        zone="lobar",
        region="frontal",
        side="right",
        status="kept",
        reason="",
    )

    def make(**changes) -> DetectionRow:
        return dataclasses.replace(first, **changes)

    return make


@pytest.fixture
def rows(make_row) -> tuple[DetectionRow, ...]:
    return (
        make_row(id=1),
        make_row(id=2, side="left", x_mm=-17.0, category="possible", score=0.6),
        make_row(id=3, zone="deep", region="thalamus", side="left", x_mm=-9.0, score=0.85),
        make_row(
            id=4, zone="infratentorial", region="cerebellum", category="possible", z_mm=-30.0, score=0.55
        ),
        make_row(id=5, status="rejected", reason="score below threshold", score=0.3),
        make_row(id=6, status="rejected", reason="IN_VENTRICLE", score=0.7),
        make_row(id=7, status="rejected", reason="score below threshold", score=0.2),
    )


@pytest.fixture
def content(affine, rows) -> ReportContent:
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij", sparse=True)
    inside = sum(a**2 for a in axes) < 0.9
    swi = np.where(inside, 500.0, 20.0) + rng.normal(0, 20, SHAPE)
    phase = rng.normal(0, 0.1, SHAPE)
    side = np.where(axes[0] > 0, Side.RIGHT, Side.LEFT)
    region = np.where(axes[1] > 0, Region.FRONTAL, Region.OCCIPITAL)
    return ReportContent(
        subject="sub-01",
        rows=rows,
        swi=Volume.from_array(swi, affine),
        phase=Volume.from_array(phase, affine),
        brain_mask=inside,
        region_code=np.where(inside, encode(region, np.broadcast_to(side, SHAPE)), 0).astype(np.uint8),
        warnings=("The phase's sign was guessed.",),
        settings=(("inference.score_threshold", "0.5"), ("inference.definite_threshold", "0.8")),
        inputs=(("swi", "sub-01_swi.nii.gz", "a" * 64), ("phase", "sub-01_phase.nii.gz", "b" * 64)),
        weights_sha256="c" * 64,
        version="0.1.0",
        steps=("Read", "Detected"),
        timings=(("detector", 12.34),),
    )
