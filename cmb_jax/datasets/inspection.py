"""Opens the files of an index: checks that cases hold what they claim, and counts their lesions."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.datasets.cases import Case, Collector, DatasetIndex, PointTruth, Role
from cmb_jax.datasets.images import DARK_ROLES, Grid, read_grid
from cmb_jax.datasets.lesions import CONNECTIVITY, SAME_GRID_VOXELS, Lesions, lesions_of
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import judge_grid, judge_intensity

_REACH_VOXELS = 6  # half the edge of the cube around a center
_MIN_CENTERS = 5  # fewer cannot show which convention a table has
_MIN_GAIN = 1.0  # standard deviations by which the other convention must be darker

OnCase = Callable[[Case, Volume, Lesions], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """An index without its bad cases, and statistics of the good ones."""

    index: DatasetIndex  # problems: the reader's, then those found in the files, then notes
    lesions: dict[str, int]  # by case ID, of cases with a truth
    counted: tuple[str, ...]  # the ways in which lesions were counted
    default_diameters: int  # lesions whose diameter is the default, not measured
    contrast: np.ndarray  # (n,) `darkness` at each center

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
        read_images: also decode every image, to find NaN, constant and damaged ones.
        on_case: called with each good case that has lesions, its reference image and its lesions; needs
            `read_images`.
        progress: wraps the iteration over cases, such as a progress bar.
    """
    found = Collector(problems=list(index.problems))
    lesions: dict[str, int] = {}
    counted: dict[str, None] = {}
    orientations: Counter[str] = Counter()
    defaults = 0
    contrast: list[float] = []
    from_0: list[float] = []
    # A bad file excludes its case, or only one image of it, and never stops the check: among thousands of
    # scans there are always some, and the user should see all of them at once.
    for case in progress(index.cases):
        try:
            reference = read_grid(Path(root) / case.images[case.reference])
            case, grids = _check_grids(case, root, reference)
            truth = lesions_of(case, root, connectivity=connectivity) if case.truth is not None else None
            volume, notes = _read_images(case, root, reference) if read_images else (None, [])
        except UserError as error:
            found.skip(case.case_id, str(error))
            continue
        found.cases.append(case)
        found.problems += grids.problems
        for text in (*case.notes, *notes, *(truth.notes if truth is not None else ())):
            found.note(case.case_id, text)
        orientations[reference.orientation] += 1
        if truth is None:
            continue
        lesions[case.case_id] = len(truth)
        counted[truth.counted] = None
        defaults += 0 if truth.measured else len(truth)
        if volume is not None and len(truth) and case.reference in DARK_ROLES:
            as_named, counted_from_0 = _darkness_both(case, truth, volume)
            contrast += as_named.tolist()
            from_0 += counted_from_0.tolist()
            if on_case is not None:
                on_case(case, volume, truth)
    if len(orientations) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in orientations.most_common())
        what = f"mixed orientations of the files ({listed}); each case goes by its own header"
        found.note("the data set", what)
    doubt = convention_doubt(np.array(contrast), np.array(from_0))
    if doubt:
        found.note("the data set", doubt)
    problems = [dataclasses.replace(each, what=each.what.replace(f"{root}/", "")) for each in found.problems]
    return Inspection(
        index=dataclasses.replace(index, cases=tuple(found.cases), problems=tuple(problems)),
        lesions=lesions,
        counted=tuple(counted),
        default_diameters=defaults,
        contrast=np.array(contrast),
    )


def _check_grids(case: Case, root: Path, reference: Grid) -> tuple[Case, Collector]:
    """The case without images that do not lie on its reference, and the problems of its headers."""
    found = Collector()
    for text in reference.warnings:
        found.note(case.case_id, f"{case.reference}: {text}")
    kept: dict[Role, str] = {}
    for role, path in case.images.items():
        if role == case.reference:
            kept[role] = path
            continue
        with found.skipping(case.case_id, "left out"):
            grid = read_grid(Path(root) / path)
            _check_same_place(role, grid, case.reference, reference)
            kept[role] = path
            if grid.orientation != reference.orientation:
                stored = f"{role} is stored {grid.orientation}, {case.reference} {reference.orientation}"
                found.note(case.case_id, f"mixed orientations: {stored}; both agree in space")
    return dataclasses.replace(case, images=kept), found


def _check_same_place(role: Role, grid: Grid, reference_role: Role, reference: Grid) -> None:
    ours, theirs = reference.to_ras(), grid.to_ras()
    if ours.shape != theirs.shape:
        raise UserError(
            f"{role} has the shape {theirs.shape}, {reference_role} {ours.shape}; resample it first"
        )
    apart = ours.apart_voxels(theirs)
    if apart > SAME_GRID_VOXELS:
        raise UserError(
            f"{role} ({grid.orientation}) lies up to {apart:.1f} voxels from {reference_role} "
            f"({reference.orientation}); resample it or copy the right header"
        )


def _read_images(case: Case, root: Path, reference: Grid) -> tuple[Volume, list[str]]:
    """The reference image, and the warnings of all images."""
    volumes = {role: read_volume(Path(root) / path) for role, path in case.images.items()}
    swi = volumes[case.reference]
    reasons = (*judge_intensity(swi.data).reasons, *judge_grid(swi).reasons)
    warnings = [f"{case.reference}: not analysable: {text}" for text in reasons]
    warnings += [
        f"{role}: {text}"
        for role, volume in volumes.items()
        for text in volume.warnings
        if role != case.reference or text not in reference.warnings  # those were found in the header
    ]
    return swi, warnings


def darkness(data: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Local mean minus the value at each center, over the local standard deviation.

    Args:
        data: (X, Y, Z) image on which microbleeds are dark.
        index: (n, 3) its voxel indices; rounded.

    Returns:
        (n,) float64, within a cube of 13 voxels. NaN outside the volume and where the image is constant.
    """
    result = np.full(len(index), np.nan)
    for row, center in enumerate(np.rint(index).astype(int)):
        if np.any(center < 0) or np.any(center >= data.shape):
            continue
        window = data[tuple(slice(max(0, c - _REACH_VOXELS), c + _REACH_VOXELS + 1) for c in center)]
        spread = float(window.std())
        if spread > 0:
            result[row] = (float(window.mean()) - float(data[tuple(center)])) / spread
    return result


def median(values: Sequence[float] | np.ndarray) -> float:
    """Median of the finite values; NaN if there are none."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.median(numbers)) if len(numbers) else float("nan")


def convention_doubt(as_named: np.ndarray, counted_from_0: np.ndarray) -> str | None:
    """A message if the centers are clearly darker when indices are read as starting at 0, else None.

    No header states where a table starts counting, but microbleeds are dark and the next voxel is not.
    """
    both = np.isfinite(as_named) & np.isfinite(counted_from_0)
    gain = median(counted_from_0) - median(as_named)
    # a hint, never a correction: the user decides by looking at the contact sheet
    if both.sum() < _MIN_CENTERS or not gain >= _MIN_GAIN:
        return None
    return (
        f"the image is {median(as_named):.1f} local standard deviations darker at the centers, but "
        f"{median(counted_from_0):.1f} when they are read 0-based: look at the contact sheet"
    )


def _darkness_both(case: Case, truth: Lesions, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Darkness at the centers as given, and as if voxel indices started at 0; NaN for truth in mm."""
    as_named = darkness(volume.data, truth.grid.to_index(truth.centers_mm))
    if not isinstance(case.truth, PointTruth) or case.truth.convention == "ras-mm":
        return as_named, np.full(len(as_named), np.nan)
    # The step of one voxel is taken on the file's grid: reordering to RAS may flip its axes.
    step_mm = volume.native.affine[:3, :3].sum(axis=1)
    return as_named, darkness(volume.data, truth.grid.to_index(truth.centers_mm + step_mm))
