"""What all contestants share: the CPU budget, what they find, who they are, one run from start to end."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory
from cmb_jax.data.prepare import points_from_edges
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.evaluation.calibration import CalibrationMap, platt_map
from cmb_jax.evaluation.froc import choose_threshold, collect_events, froc_curve
from cmb_jax.evaluation.matching import CENTER3, events, pairs_of
from cmb_jax.evaluation.records import (
    SubjectDetections,
    best_values,
    centers_index,
    diameters_mm,
    label_volume,
)
from cmb_jax.inference.proposals import truth_of
from cmb_jax.io.atomic import atomic_write_text, make_folder
from cmb_jax.io.tables import table_text

SPACING_MM = (1.0, 0.5, 0.5)  # of the working grid that all contestants see, (z, y, x)
OPERATING_FP_RATE = 2.0  # per validation scan, as `cmb-jax train` chooses its operating point
LEAST_PROBABILITY = 0.1  # of a segmentation's voxels that make a candidate
CHECKPOINT_S = 120.0  # CPU time from one checkpoint to the next
_COLUMNS = ("x_mm", "y_mm", "z_mm", "diameter_mm", "score", "probability", "status", "reason")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Candidates of one scan. K of them."""

    centers: np.ndarray  # (K, 3) edge coordinates (z, y, x) of the working grid: voxel i spans [i, i + 1)
    diameters_mm: np.ndarray  # (K,)
    scores: np.ndarray  # (K,) higher is more certain, 0 to 1


Finder = Callable[[np.ndarray], Found]
"""A trained contestant: prepared image (Z, Y, X, 2) to candidates."""


class Budget:
    """CPU seconds of this process, all threads, over every start of a run.

    What is spent is recorded when a contestant saves its state: a start that is killed takes with it neither
    more nor less time than work.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path = folder / "spent.json"
        self.seconds = seconds
        self.facts: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._before = float(self.facts.get("cpu_s", 0.0))
        self._start = self._saved = time.process_time()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._before + time.process_time() - self._start

    @property
    def left(self) -> float:
        """Seconds to go; 0 or less: stop."""
        return self.seconds - self.spent

    @property
    def share(self) -> float:
        """Spent share, 0 to 1: what schedules follow instead of a number of steps."""
        return min(1.0, self.spent / self.seconds)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.process_time() - self._saved >= CHECKPOINT_S

    def save(self, **facts: Any) -> None:
        """Record what is spent, with the number of steps and the like; call it when the state is saved."""
        self._saved = time.process_time()
        peak = max(memory.peak_mb(), self.facts.get("peak_mb", 0.0))
        self.facts = {**self.facts, "cpu_s": round(self.spent, 1), "peak_mb": round(peak), **facts}
        atomic_write_text(self.path, json.dumps(self.facts) + "\n", overwrite=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to find microbleeds.

    Its module has `train(subjects, folder, budget, seed, **options)`, which returns facts such as the number
    of parameters, and `load(folder, **options)`, which returns a `Finder`.
    """

    name: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()  # packages beside those of `cmb-jax`

    def missing(self) -> str | None:
        """The first package that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)

    def train(
        self, subjects: Sequence[StoredSubject], folder: Path, budget: Budget, seed: int
    ) -> dict[str, Any]:
        """Train, or go on, until the budget is spent."""
        found: dict[str, Any] = importlib.import_module(self.module).train(
            subjects, folder, budget, seed, **self.options
        )
        return found

    def load(self, folder: Path) -> Finder:
        """What was trained."""
        finder: Finder = importlib.import_module(self.module).load(folder, **self.options)
        return finder


def spheres(boxes: np.ndarray, shape: Sequence[int], stride: Sequence[int] = (1, 1, 1)) -> np.ndarray:
    """Cells whose centers lie in the ellipsoids of boxes (M, 6): bool of `shape`, `stride` voxels a cell."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        low = np.clip(np.floor(box[:3] / stride), 0, shape).astype(int)
        high = np.clip(np.ceil(box[3:] / stride), 0, shape).astype(int)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[window]
        middle, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
        scaled = [((a + 0.5) * s - m) / h for a, s, m, h in zip(axes, stride, middle, half, strict=True)]
        inside[window] |= sum(axis**2 for axis in scaled) <= 1.0
    return inside


def components(probability: np.ndarray, least: float = LEAST_PROBABILITY) -> Found:
    """Candidates of a segmentation (Z, Y, X): connected voxels, scored by their highest probability."""
    affine = np.diag([*SPACING_MM, 1.0])
    # a map of nothing but zeros and ones would be taken for labels
    volume = label_volume(np.clip(probability, 0, 1 - 1e-6), affine, threshold=least)
    return Found(
        centers=centers_index(volume.labels, volume.count) + 0.5,
        diameters_mm=diameters_mm(volume),
        scores=best_values(volume),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestScan:
    """A test scan as the contestants see it."""

    subject: str
    image: np.ndarray  # (Z, Y, X, 2) float16
    affine: np.ndarray  # (4, 4) working voxel index (x, y, z) -> RAS mm

    __test__ = False  # no test of pytest's


def as_detections(found: Found, subject: str) -> SubjectDetections:
    """Candidates in mm of the working grid (z, y, x), as `truth_of` has the truth."""
    return SubjectDetections(
        subject=subject,
        centers_mm=found.centers * np.array(SPACING_MM),
        scores=found.scores,
        diameters_mm=found.diameters_mm,
    )


def operating_point(finder: Finder, subjects: Sequence[StoredSubject]) -> tuple[float, CalibrationMap | None]:
    """Threshold at no more than two false positives per validation scan, and the map to probabilities."""
    pairs, lesions = [], []
    for stored in subjects:
        found = as_detections(finder(stored.image()), stored.folder.name)
        truth = truth_of(stored, SPACING_MM)
        pairs.append(events(pairs_of(CENTER3, found, truth), found.scores))
        lesions.append(len(truth.centers_mm))
    joined = collect_events(pairs, lesions)
    both = joined.true.any() and not joined.true.all()
    mapped = platt_map(joined.scores, joined.true) if both else None
    return choose_threshold(froc_curve(joined), OPERATING_FP_RATE), mapped


def write_prediction(
    path: Path, found: Found, scan: TestScan, threshold: float, calibration: CalibrationMap | None
) -> None:
    """A detections.csv that `cmb-jax evaluate` reads, best first."""
    order = np.argsort(-found.scores, kind="stable")
    places = points_from_edges(found.centers[order], scan.affine).reshape(-1, 3)
    rows = []
    for place, diameter, score in zip(places, found.diameters_mm[order], found.scores[order], strict=True):
        kept = score >= threshold
        probability = "" if calibration is None else f"{float(calibration.probability(score)):.6f}"
        status = ("kept", "") if kept else ("rejected", "score below the operating point")
        rows.append(
            (*(f"{value:.3f}" for value in place), f"{diameter:.2f}", f"{score:.6f}", probability, *status)
        )
    make_folder(path.parent)
    atomic_write_text(path, table_text(_COLUMNS, rows), overwrite=True)


def run_one(
    contestant: Contestant,
    folder: Path,
    subjects: Sequence[StoredSubject],
    validation: Sequence[StoredSubject],
    scans: Sequence[Callable[[], TestScan]],
    *,
    seconds: float,
    seed: int,
    facts: dict[str, Any],
) -> None:
    """Train, choose the operating point, predict the test scans; each part is skipped where it is done.

    Args:
        contestant: who.
        folder: of this run.
        subjects: to train on.
        validation: to choose the operating point on; its time is not in the budget, for nobody.
        scans: each reads one test scan.
        seconds: CPU budget of the training.
        seed: of the training.
        facts: go into result.json as they are.
    """
    make_folder(folder)
    trained, result = folder / "trained.json", folder / "result.json"
    if not trained.exists():
        budget = Budget(folder, seconds)
        more = contestant.train(subjects, folder, budget, seed)
        atomic_write_text(trained, json.dumps({**facts, **budget.facts, **more}, indent=2) + "\n")
    content = json.loads(trained.read_text())
    finder = contestant.load(folder)
    if "threshold" not in content:
        threshold, calibration = operating_point(finder, validation)
        content["threshold"] = threshold
        content["calibration"] = None if calibration is None else dataclasses.asdict(calibration)
        atomic_write_text(trained, json.dumps(content, indent=2) + "\n", overwrite=True)
    knots = content["calibration"]
    calibration = None if knots is None else CalibrationMap(**{name: tuple(v) for name, v in knots.items()})
    times = folder / "times.json"
    spent: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    for read in scans:
        scan = read()
        path = folder / "predictions" / scan.subject / "detections.csv"
        if path.exists() and scan.subject in spent:
            continue
        tick = time.process_time()
        found = finder(scan.image)
        spent[scan.subject] = round(time.process_time() - tick, 2)
        write_prediction(path, found, scan, content["threshold"], calibration)
        atomic_write_text(times, json.dumps(spent) + "\n", overwrite=True)
    # the first scan of a start compiles: the median leaves it out
    content["scan_cpu_s"] = float(np.median(list(spent.values()))) if spent else None
    content["inference_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    atomic_write_text(result, json.dumps(content, indent=2) + "\n", overwrite=True)


# What was changed in each recipe is said in docs/comparison.md.
CONTESTANTS = {
    each.name: each
    for each in (
        Contestant(name="base", module="benchmarks.peers.ours", options={"config_name": "base"}),
        Contestant(name="small", module="benchmarks.peers.ours", options={"config_name": "small"}),
        Contestant(name="classical", module="benchmarks.peers.classical", needs=("sklearn",)),
        Contestant(name="nnunet", module="benchmarks.peers.nnunet", needs=("nnunetv2",)),
        Contestant(
            name="retinanet", module="benchmarks.peers.retinanet", needs=("torch", "monai", "torchvision")
        ),
        Contestant(
            name="nndetection", module="benchmarks.peers.twin", options={"ideas": True}, needs=("torch",)
        ),
        Contestant(name="twin", module="benchmarks.peers.twin", options={"ideas": False}, needs=("torch",)),
        Contestant(
            name="base-masked",
            module="benchmarks.peers.ours",
            options={"config_name": "base", "masked": True},
        ),
    )
}
