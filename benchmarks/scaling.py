"""How time and memory grow with the size of the work: the exponent p of size ** p, fitted to logarithms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cases import CASES, Case, Device
from benchmarks.table import Row, aligned
from benchmarks.turns import measure

MOST_REPEATS = 3
LEAST_MB = 5.0  # below this the memory of a case is lost in that of its process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One case at several sizes."""

    name: str
    unit: str
    cases: tuple[tuple[float, Case], ...]  # (size in the unit, case)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A sweep measured."""

    sweep: Sweep
    rows: tuple[Row, ...]

    def exponents(self) -> dict[str, float | None]:
        """Of time and memory of both sides; None with fewer than two points."""
        sizes = [size for size, _ in self.sweep.cases]
        sides = {"ours": [row.measured.ours for row in self.rows]}
        sides["other"] = [row.measured.other for row in self.rows]
        found = {}
        for name, results in sides.items():
            found[f"{name}_s"] = exponent(sizes, [side.median_s for side in results])
            found[f"{name}_peak_mb"] = exponent(sizes, [side.peak_mb for side in results], LEAST_MB)
        return found

    def as_json(self) -> dict[str, Any]:
        """Points and exponents."""
        points = [
            {"size": size, **row.as_json()}
            for (size, _), row in zip(self.sweep.cases, self.rows, strict=True)
        ]
        return {
            "sweep": self.sweep.name,
            "unit": self.sweep.unit,
            "exponents": self.exponents(),
            "points": points,
        }


def _volumes() -> Sweep:
    shapes = ((24, 192, 192), (40, 256, 256), (56, 352, 320), (72, 448, 384))
    base = CASES["infer-volume"]
    return Sweep(
        name="infer-volume",
        unit="voxels",
        cases=tuple(
            (math.prod(shape), dataclasses.replace(base, options={**base.options, "shape": shape}))
            for shape in shapes
        ),
    )


def _counts() -> Sweep:
    base = CASES["nms-10k"]
    return Sweep(
        name="nms",
        unit="boxes",
        cases=tuple(
            (count, dataclasses.replace(base, name=f"nms-{count}", options={"boxes": count}))
            for count in (1_000, 10_000, 30_000, 100_000)
        ),
    )


SWEEPS = (_volumes(), _counts())


def measure_sweep(sweep: Sweep, repeats: int, device: Device) -> Curve:
    """Measure every size in turn."""
    rows = tuple(Row.of(measure(case, repeats, device), None) for _, case in sweep.cases)
    return Curve(sweep=sweep, rows=rows)


def exponent(sizes: Sequence[float], values: Sequence[float | None], least: float = 0.0) -> float | None:
    """Slope of log value against log size over the values above `least`."""
    points = [
        (size, value)
        for size, value in zip(sizes, values, strict=True)
        if value is not None and value > least
    ]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def curve_table(curve: Curve) -> str:
    """Sizes, times, memory, and the exponents beneath."""
    header = (curve.sweep.unit, "ours", "other", "ratio", "ours MB", "other MB")
    rows = [
        (f"{size:,.0f}", *row.cells()[3:8])
        for (size, _), row in zip(curve.sweep.cases, curve.rows, strict=True)
    ]
    fitted = {key: "-" if value is None else f"{value:.2f}" for key, value in curve.exponents().items()}
    return (
        f"{curve.sweep.name}\n{aligned(header, rows)}\n"
        f"time ~ {curve.sweep.unit} ^ {fitted['ours_s']} (other {fitted['other_s']}), "
        f"memory ~ {curve.sweep.unit} ^ {fitted['ours_peak_mb']} (other {fitted['other_peak_mb']})"
    )
