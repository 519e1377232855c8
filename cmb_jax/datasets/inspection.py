"""Looks into the files of an index: which cases hold what they say, with how many lesions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from cmb_jax.datasets.darkness import convention_doubt, darkness
from cmb_jax.datasets.grid import read_grid
from cmb_jax.datasets.images import DARK_ROLES
from cmb_jax.datasets.lesions import CONNECTIVITY, Lesions, lesions_of
from cmb_jax.datasets.types import Case, DatasetIndex, PointTruth, Problem, Role
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import judge_grid, judge_intensity

_SAME_GRID_VOXELS = 0.5

OnCase = Callable[[Case, Volume, Lesions], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """An index with its bad cases taken out, and what the good ones hold."""

    index: DatasetIndex  # problems: the reader's, then those found in the files, then notes
    lesions: dict[str, int]  # by case ID, of cases with a truth
    counted: tuple[str, ...]  # how lesions were counted
    default_diameters: int  # lesions whose diameter is the default, not measured
    contrast: (
        np.ndarray
    )  # (n,) local standard deviations that the image is darker at each center; NaN unknown

    @property
    def total(self) -> int:
        """Lesions of all cases."""
        return sum(self.lesions.values())


def inspect(
    index: DatasetIndex,
    root: Path,
    *,
    connectivity: int = CONNECTIVITY,
    read_images: bool = True,
    on_case: OnCase | None = None,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Inspection:
    """Check headers, truth and (optionally) voxels of every case.

    Args:
        index: of a reader.
        root: of the data set.
        connectivity: of components of masks.
        read_images: decode every image too, which finds NaN, constant and damaged ones.
        on_case: called with each good case that has lesions, its reference image and its lesions; needs
            `read_images`.
        progress: wraps the cases, such as a progress bar.
    """
    cases, problems = [], list(index.problems)
    lesions: dict[str, int] = {}
    counted: dict[str, None] = {}
    orientations: Counter[str] = Counter()
    defaults = 0
    contrast: list[np.ndarray] = []
    shifted: list[np.ndarray] = []
    for case in progress(index.cases):
        try:
            case, found = _check_grids(case, root)
            truth = lesions_of(case, root, connectivity=connectivity) if case.truth is not None else None
            volume, notes = _read_images(case, root) if read_images else (None, [])
        except UserError as error:
            problems.append(Problem(where=case.case_id, what=str(error)))
            continue
        said = [*case.notes, *notes, *(truth.notes if truth is not None else ())]
        problems += [*found, *(_note(case, text) for text in said)]
        cases.append(case)
        orientations[read_grid(Path(root) / case.images[case.reference]).orientation] += 1
        if truth is None:
            continue
        lesions[case.case_id] = len(truth)
        counted[truth.counted] = None
        defaults += 0 if truth.measured else len(truth)
        if volume is not None and len(truth) and case.reference in DARK_ROLES:
            named, other = _darkness_both(case, truth, volume)
            contrast.append(named)
            shifted.append(other)
            if on_case is not None:
                on_case(case, volume, truth)
    if len(orientations) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in orientations.most_common())
        text = f"mixed orientations of the files ({listed}); each case goes by its own header"
        problems.append(Problem(where="the data set", what=text, level="note"))
    problems = [dataclasses.replace(p, what=_without_root(p.what, root)) for p in problems]
    every = np.concatenate(contrast) if contrast else np.zeros(0)
    doubt = convention_doubt(every, np.concatenate(shifted) if shifted else np.zeros(0))
    if doubt:
        problems.append(Problem(where="the data set", what=doubt, level="note"))
    return Inspection(
        index=dataclasses.replace(index, cases=tuple(cases), problems=tuple(problems)),
        lesions=lesions,
        counted=tuple(counted),
        default_diameters=defaults,
        contrast=every,
    )


def _note(case: Case, text: str) -> Problem:
    return Problem(where=case.case_id, what=text, level="note")


def _without_root(text: str, root: Path) -> str:
    return text.replace(f"{root}/", "")


def _check_grids(case: Case, root: Path) -> tuple[Case, list[Problem]]:
    """The case without images that lie elsewhere than its reference, and what is to be said.

    Raises:
        UserError: the reference cannot be read.
    """
    reference = read_grid(Path(root) / case.images[case.reference])
    problems = [_note(case, f"{case.reference}: {text}") for text in reference.warnings]
    kept: dict[Role, str] = {}
    for role, path in case.images.items():
        if role == case.reference:
            kept[role] = path
            continue
        try:
            grid = read_grid(Path(root) / path)
        except UserError as error:
            problems.append(Problem(where=case.case_id, what=str(error), level="left out"))
            continue
        ours, theirs = reference.to_ras(), grid.to_ras()
        what = None
        if ours.shape != theirs.shape:
            what = f"{role} has the shape {theirs.shape}, {case.reference} {ours.shape}; resample it first"
        elif ours.apart_voxels(theirs) > _SAME_GRID_VOXELS:
            apart = ours.apart_voxels(theirs)
            what = (
                f"{role} ({grid.orientation}) lies up to {apart:.1f} voxels from {case.reference} "
                f"({reference.orientation}); resample it or copy the right header"
            )
        if what:
            problems.append(Problem(where=case.case_id, what=what, level="left out"))
            continue
        kept[role] = path
        if grid.orientation != reference.orientation:
            stored = f"{role} is stored {grid.orientation}, {case.reference} {reference.orientation}"
            problems.append(_note(case, f"mixed orientations: {stored}; both agree in space"))
    return dataclasses.replace(case, images=kept), problems


def _read_images(case: Case, root: Path) -> tuple[Volume, list[str]]:
    """The reference image, and the warnings of all images."""
    volumes = {role: read_volume(Path(root) / path) for role, path in case.images.items()}
    judged = judge_intensity(volumes[case.reference].data)
    size = judge_grid(volumes[case.reference])
    reasons = [f"{case.reference}: not analysable: {text}" for text in (*judged.reasons, *size.reasons)]
    header = set(read_grid(Path(root) / case.images[case.reference]).warnings)
    notes = [
        f"{role}: {text}"
        for role, volume in volumes.items()
        for text in volume.warnings
        if role != case.reference or text not in header
    ]
    return volumes[case.reference], [*reasons, *notes]


def _darkness_both(case: Case, truth: Lesions, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Darkness at the centers as named, and as if a table of voxels counted from 0; NaN for other truths."""
    index = truth.grid.to_index(truth.centers_mm)
    named = darkness(volume.data, index)
    if not isinstance(case.truth, PointTruth) or case.truth.convention == "ras-mm":
        return named, np.full(len(named), np.nan)
    # one voxel on along every axis of the file is, in the turned array, one voxel on or back
    native = np.linalg.inv(volume.native.affine) @ np.array([*truth.centers_mm.T, np.ones(len(named))])
    native[:3] += 1.0
    moved = (volume.native.affine @ native)[:3].T
    return named, darkness(volume.data, truth.grid.to_index(moved))
