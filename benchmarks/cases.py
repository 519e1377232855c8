"""What can be timed: the cases by name, and what each side of a case has to provide.

A case names two modules, one per side, each with `prepare(options, device) -> Prepared`. A worker process
imports only its own side's module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Side = Literal["ours", "other"]
Device = Literal["cpu", "gpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """One side of a case, ready to be timed."""

    run: Callable[[], Any]  # returns when the work is done, on whatever device
    result: Callable[[Any], float]  # one number from what `run` returned: both sides did the same job
    gflop: float | None = None  # 1e9 floating-point operations of the convolutions, a multiply-add being two
    note: str = ""  # what was run, where that was chosen at run time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Two ways to do one piece of work."""

    name: str
    about: str
    ours: str  # module
    other: str  # module
    other_name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON, read by both sides
    gpu: bool = True  # whether both sides can use one
    convolves: bool = False  # whether convolutions are counted and held against the peak
    install: str = "'cmb-jax[bench]'"  # what pip is given where the other side's library is missing
    keep_memory: bool = False  # both sides call `keep_freed_memory` first, as our training commands do


TRAIN = ("benchmarks.sides.train_jax", "benchmarks.sides.train_torch")
NETWORK = ("benchmarks.sides.network_jax", "benchmarks.sides.network_torch")
VOLUME = ("benchmarks.sides.volume_jax", "benchmarks.sides.volume_monai")
VOLUME_NNUNET = ("benchmarks.sides.volume_jax", "benchmarks.sides.volume_nnunet")
VOLUME_RETINANET = ("benchmarks.sides.volume_jax", "benchmarks.sides.volume_retinanet")
NMS = ("benchmarks.sides.nms_jax", "benchmarks.sides.nms_monai")
LOOKUP = ("benchmarks.sides.lookup_jax", "benchmarks.sides.lookup_numpy")
FROC = ("benchmarks.sides.froc_ours", "benchmarks.sides.froc_monai")
FIELD = ("benchmarks.sides.field_jax", "benchmarks.sides.field_numpy")
MATMUL = ("benchmarks.sides.matmul_jax", "benchmarks.sides.matmul_torch")
PROBE = ("benchmarks.sides.probe_jax", "benchmarks.sides.probe_torch")

PATCH = (48, 96, 96)
WHOLE_HEAD = (72, 448, 384)


def _case(name: str, modules: tuple[str, str], other_name: str, about: str, **more: Any) -> Case:
    ours, other = modules
    return Case(name=name, ours=ours, other=other, other_name=other_name, about=about, **more)


def _both(name: str, modules: tuple[str, str], other_name: str, about: str, **more: Any) -> tuple[Case, Case]:
    """A case with our side in float32, and `NAME-mixed`; the other side takes what is fastest."""
    options = more.pop("options")

    def with_precision(precision: str, suffix: str) -> Case:
        given = {**options, "precision": precision}
        return _case(name + suffix, modules, other_name, about, options=given, convolves=True, **more)

    return with_precision("float32", ""), with_precision("mixed", "-mixed")


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *_both(
            "train-small",
            TRAIN,
            "PyTorch",
            "a training step: loss, gradient, AdamW, moving average; batch 4 of 48 x 96 x 96",
            options={"model": "small", "batch": 4, "patch": PATCH},
            keep_memory=True,
        ),
        *_both(
            "train-wide",
            TRAIN,
            "PyTorch",
            "the same with twice the channels; batch 2 of 48 x 96 x 96",
            options={"model": "wide", "batch": 2, "patch": PATCH},
            keep_memory=True,
        ),
        *_both(
            "infer-patch",
            NETWORK,
            "PyTorch",
            "the small network forwards on 64 x 128 x 128",
            options={"model": "small", "shape": (64, 128, 128)},
        ),
        *_both(
            "infer-volume",
            VOLUME,
            "PyTorch + MONAI",
            "384 x 448 x 72 voxels to detections; MONAI slides over it, overlap 0.25",
            options={"shape": WHOLE_HEAD, "sliding": True},
        ),
        *_both(
            "infer-volume-whole",
            VOLUME,
            "PyTorch + MONAI",
            "the same, with the other side too in one pass instead of a sliding window",
            options={"shape": WHOLE_HEAD, "sliding": False},
        ),
        *(
            _case(
                f"infer-volume-{name}",
                modules,
                other_name,
                f"384 x 448 x 72 voxels to candidates; {other_name} with random weights",
                options={"shape": WHOLE_HEAD, "precision": "float32"},
                gpu=False,
                install="-r benchmarks/peers/requirements-peers.txt",
            )
            for name, modules, other_name in (
                ("nnunet", VOLUME_NNUNET, "nnU-Net v2"),
                ("retinanet", VOLUME_RETINANET, "MONAI's RetinaNet"),
            )
        ),
        _case(
            "nms-10k",
            NMS,
            "MONAI",
            "suppression among 10 000 boxes in 1000 clusters",
            options={"boxes": 10_000},
        ),
        _case(
            "lookup-100k",
            LOOKUP,
            "NumPy",
            "region, side, distances and rejection of 100 000 places in a map of 2 mm",
            options={"points": 100_000, "shape": (96, 112, 96)},
        ),
        _case(
            "froc",
            FROC,
            "MONAI",
            "FROC curve and its mean sensitivity, 200 scans",
            options={"scans": 200},
            gpu=False,
        ),
        _case(
            "simulate",
            FIELD,
            "NumPy",
            "dipole field, echo signal, k-space crop and SWI of a phantom's 256 x 320 x 216 grid",
            options={"shape": (256, 320, 216), "matrix": (240, 300, 81)},
            gpu=False,
        ),
    )
}

# Not rows of the table: the peak that convolutions are held against, and what devices there are.
PEAK = _case("matmul", MATMUL, "PyTorch", "2048 x 2048 x 2048 float32", options={"size": 2048})
DEVICES = _case("devices", PROBE, "PyTorch", "what each side can run on")
