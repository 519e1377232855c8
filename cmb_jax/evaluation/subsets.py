"""The same evaluation of a part: scans with or without a phase, lesions of one size, calcifications left out.

* Lesions of other sizes are ignored: they are never missed, and a detection on one is not a false positive.
* On the magnitude alone nobody can tell a calcification from a microbleed. So figures of scans without a
  phase are also given with detections on calcifications left out of the count, unless they hit a microbleed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmb_jax.evaluation.breakdown import ALONE, WITH_PHASE, name_by_mimic, phase_group
from cmb_jax.evaluation.froc import collect_events
from cmb_jax.evaluation.matching import Rule, events, match, pairs_of
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.evaluation.statistics import Counts, Estimate, bootstrap_counts, bootstrap_froc
from cmb_jax.phantom.types import CALCIFICATIONS, READER_MM

ALL_SCANS, ALL_SIZES = "all scans", "all sizes"
SMALL, READERS_SIZE = f"below {READER_MM[0]:g} mm", f"{READER_MM[0]:g} to {READER_MM[1]:g} mm"
# Microbleeds by their diameter as seen; the last are what readers call a microbleed.
SIZES: tuple[str, ...] = (ALL_SIZES, SMALL, READERS_SIZE)
COUNTED, LEFT_OUT = "counted", "left out"  # calcifications
_CALCIFICATION_NAMES = tuple(kind.name.lower() for kind in CALCIFICATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One scan with the lesions of one size: at the operating point, and while the threshold falls."""

    tp: int
    fp: int
    lesions: int
    events: tuple[np.ndarray, np.ndarray]  # see matching.events


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanCells:
    """One scan by size and calcifications."""

    phase: str | None  # WITH_PHASE or ALONE; None: unknown
    protocol: str | None
    tier: str | None
    cells: dict[tuple[str, str], Cell]  # by (size, calcifications)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetResult:
    """A part of the scans and lesions, by the rule of the breakdowns."""

    scans_of: str  # ALL_SCANS, WITH_PHASE, ALONE, or the name of a protocol or tier
    size: str  # one of SIZES
    calcifications: str  # COUNTED, or LEFT_OUT in scans without a phase
    scans: int
    lesions: int
    tp: int
    fp: int
    sensitivity: Estimate
    fp_per_scan: Estimate
    average_precision: Estimate
    froc: tuple[Estimate, ...]  # sensitivity at FROC_RATES


def of_size(diameters_mm: np.ndarray, size: str) -> np.ndarray:
    """(M,) bool: which diameters as seen belong to one of `SIZES`."""
    if size == SMALL:
        return diameters_mm < READER_MM[0]
    if size == READERS_SIZE:
        return (diameters_mm >= READER_MM[0]) & (diameters_mm <= READER_MM[1])
    return np.ones(len(diameters_mm), bool)


def on_calcification(detections: SubjectDetections, truth: SubjectTruth) -> np.ndarray:
    """(K,) bool: the known mimic nearest to the detection is a calcification."""
    if truth.mimics is None:
        return np.zeros(len(detections.centers_mm), bool)
    names = name_by_mimic(detections.centers_mm, truth.mimics)
    return np.isin(np.array(names, dtype=str), _CALCIFICATION_NAMES)


def scan_cells(
    candidates: SubjectDetections, reported: SubjectDetections, truth: SubjectTruth, rule: Rule
) -> ScanCells:
    """One scan by every size, with and without calcifications.

    Args:
        candidates: K detections that no rule removed.
        reported: those at the operating point.
    """
    # Which pairs may match is computed once, as touching and boxes look at voxels; sizes and calcifications
    # only choose among the pairs. Without a phase there is a second variant, with calcifications excused.
    phase = phase_group(truth)
    pairs = {COUNTED: [pairs_of(rule, each, truth) for each in (candidates, reported)]}
    if phase == ALONE and truth.mimics is not None:
        pairs[LEFT_OUT] = [
            each.with_excused(on_calcification(found, truth))
            for found, each in zip((candidates, reported), pairs[COUNTED], strict=True)
        ]
    cells = {}
    for calcifications, (all_pairs, reported_pairs) in pairs.items():
        for size in SIZES:
            keep = of_size(truth.seen_diameters_mm, size)
            outcome = match(reported_pairs.of_lesions(keep))
            cells[size, calcifications] = Cell(
                tp=outcome.tp,
                fp=outcome.fp,
                lesions=int(keep.sum()),
                events=events(all_pairs.of_lesions(keep), candidates.scores),
            )
    return ScanCells(phase=phase, protocol=truth.protocol, tier=truth.tier, cells=cells)


def subset_results(scans: Sequence[ScanCells], *, samples: int, seed: int) -> tuple[SubsetResult, ...]:
    """All parts that the truth knows: by phase and size, by protocol, by tier if there are several."""
    parts: list[tuple[str, Sequence[ScanCells], tuple[str, ...]]] = [(ALL_SCANS, scans, SIZES)]
    parts += [(phase, [s for s in scans if s.phase == phase], SIZES) for phase in (WITH_PHASE, ALONE)]
    protocols = sorted({scan.protocol for scan in scans if scan.protocol is not None})
    parts += [(name, [s for s in scans if s.protocol == name], (ALL_SIZES,)) for name in protocols]
    tiers = sorted({scan.tier for scan in scans if scan.tier is not None})
    if len(tiers) > 1:
        parts += [(name, [s for s in scans if s.tier == name], (ALL_SIZES,)) for name in tiers]
    found = []
    for name, part, sizes in parts:
        left_out = any((ALL_SIZES, LEFT_OUT) in scan.cells for scan in part)
        for size in sizes if part else ():
            for calcifications in (COUNTED, LEFT_OUT) if left_out else (COUNTED,):
                found.append(_result(part, name, size, calcifications, samples, seed))
    return tuple(found)


def _result(
    part: Sequence[ScanCells], name: str, size: str, calcifications: str, samples: int, seed: int
) -> SubsetResult:
    # in a scan with a phase calcifications always count
    cells = [scan.cells.get((size, calcifications), scan.cells[size, COUNTED]) for scan in part]
    tp, fp, lesions = np.array([(cell.tp, cell.fp, cell.lesions) for cell in cells]).T
    figures = bootstrap_counts(Counts(tp=tp, fp=fp, lesions=lesions), samples=samples, seed=seed)
    joined = collect_events([cell.events for cell in cells], lesions)
    *froc, precision = bootstrap_froc(joined, samples=samples, seed=seed)
    return SubsetResult(
        scans_of=name,
        size=size,
        calcifications=calcifications,
        scans=len(part),
        lesions=int(lesions.sum()),
        tp=int(tp.sum()),
        fp=int(fp.sum()),
        sensitivity=figures["sensitivity"],
        fp_per_scan=figures["fp_per_scan"],
        average_precision=precision,
        froc=tuple(froc),
    )
