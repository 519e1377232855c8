"""Converts any kind of truth (points in voxels or mm, masks) to lesions."""

import dataclasses
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from cmb_jax.datasets.cases import Case, Convention, MaskTruth, PointTruth
from cmb_jax.datasets.images import Grid, read_grid, turn_to_ras
from cmb_jax.errors import UserError
from cmb_jax.io.header import decoded, open_nifti
from cmb_jax.io.labels import components, instances, is_whole
from cmb_jax.io.outside import reading

DEFAULT_DIAMETER_MM = 3.0
"""Of a lesion that is given only as a point: within the usual 2 to 5 mm of microbleeds."""

CONNECTIVITY = 26
SAME_GRID_VOXELS = 0.5
"""Copied or rounded headers differ by less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesions:
    """The lesions of one case."""

    centers_mm: np.ndarray  # (n, 3) float64, RAS mm
    diameters_mm: np.ndarray  # (n,) float64
    measured: bool  # False: every diameter is the default
    boxes: np.ndarray  # (n, 6) float64, (z0, y0, x0, z1, y1, x1) half-open, voxels of `grid`
    grid: Grid  # of the reference image, axes to Right, Anterior, Superior
    counted: str  # how they were counted: points, labels, or components with threshold and connectivity
    labels: np.ndarray | None = None  # (X, Y, Z) int32 on `grid`: lesion n is label n + 1; None for points
    mimics_mm: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # (k, 3), RAS mm
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.centers_mm)


def lesions_of(case: Case, root: Path, *, connectivity: int = CONNECTIVITY) -> Lesions:
    """The lesions of a case.

    A lesion of a mask has the unweighted center of its voxels, the diameter of the sphere of equal volume,
    and the bounding box of its voxels. A point becomes a cube of its diameter.

    Args:
        case: with a truth.
        root: of the data set.
        connectivity: neighbors of a voxel in a mask: 6 (faces), 18 (edges too) or 26 (corners too).

    Raises:
        UserError: a file is missing or unreadable, mask and image lie on different grids, a mask holds
            invalid values, or a center lies outside the volume.
        ValueError: the case has no truth, or no such connectivity.
    """
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity {connectivity}: must be 6, 18 or 26")
    reference = Path(root) / case.images[case.reference]
    if isinstance(case.truth, PointTruth):
        return _from_points(case.truth, read_grid(reference))
    if isinstance(case.truth, MaskTruth):
        return _from_mask(case.truth, Path(root) / case.truth.path, reference, connectivity)
    raise ValueError(f"{case.case_id}: has no truth")


def voxel_index(points: np.ndarray, convention: Convention, grid: Grid) -> np.ndarray:
    """Points (n, 3) in a convention as fractional voxel indices (i, j, k) from 0 on the file's grid."""
    points = np.asarray(points, np.float64).reshape(-1, 3)
    if convention == "voxel-1":
        return points - 1.0
    if convention == "slice-column-row-1":
        return points[:, [1, 2, 0]] - 1.0
    return grid.to_index(points)


def _from_points(truth: PointTruth, grid: Grid) -> Lesions:
    centers, mimics = (_places_mm(points, truth.convention, grid) for points in (truth.points, truth.mimics))
    measured = truth.diameters_mm is not None
    diameters = np.array(truth.diameters_mm if measured else [DEFAULT_DIAMETER_MM] * len(centers), np.float64)
    # A table's indices refer to the axes of the file; boxes refer to the RAS axes that volumes are read with.
    ras = grid.to_ras()
    middle = ras.to_index(centers)[:, ::-1] + 0.5  # voxel i spans [i, i + 1)
    half = 0.5 * diameters[:, None] / voxel_sizes(ras.affine)[::-1]
    return Lesions(
        centers_mm=centers,
        diameters_mm=diameters,
        measured=measured,
        boxes=np.concatenate([middle - half, middle + half], axis=1),
        grid=ras,
        counted="points",
        mimics_mm=mimics,
    )


def _places_mm(
    listed: tuple[tuple[float, float, float], ...], convention: Convention, grid: Grid
) -> np.ndarray:
    """Points of a table in RAS mm (n, 3); all must lie inside the volume."""
    points = np.array(listed, np.float64).reshape(-1, 3)
    index = voxel_index(points, convention, grid)
    outside = ~grid.inside(index)
    if outside.any():
        raise UserError(_outside_message(points, convention, outside, grid))
    return grid.to_mm(index)


def _outside_message(points: np.ndarray, convention: Convention, outside: np.ndarray, grid: Grid) -> str:
    """The error message, with the other convention, if any, under which all points would lie inside."""
    shown = ", ".join(f"{value:g}" for value in points[outside][0])
    size = " x ".join(map(str, grid.shape))
    text = f"{int(outside.sum())} of {len(points)} centers lie outside the {size} voxels, such as ({shown})"
    if convention == "ras-mm":
        mirrored = points * np.array([-1.0, -1.0, 1.0])
        if grid.inside(grid.to_index(mirrored)).all():
            return f"{text}; all lie inside with x and y negated, so the table seems to be in LPS: convert it"
        if grid.inside(points).all():
            return f"{text}; all lie inside when read as voxels: give x_mm, y_mm, z_mm in RAS mm"
    elif grid.inside(voxel_index(points + 1.0, convention, grid)).all():
        return f"{text}; all lie inside when read 0-based, but this set counts from 1: add 1 to the table"
    return f"{text}; correct the table or the image"


def _from_mask(truth: MaskTruth, path: Path, reference: Path, connectivity: int) -> Lesions:
    values, grid, notes = _read_mask(path)
    image, mask = read_grid(reference).to_ras(), grid.to_ras()
    if mask.shape != image.shape:
        raise UserError(
            f"{path}: mask and {reference.name} have different shapes, {mask.shape} and {image.shape}"
        )
    apart = image.apart_voxels(mask)
    if apart > SAME_GRID_VOXELS:
        raise UserError(
            f"{path}: mask and {reference.name} lie up to {apart:.1f} voxels apart; copy the right header"
        )
    spacing_mm = voxel_sizes(mask.affine)
    labels, count, counted = _label(turn_to_ras(values, grid), truth, path, connectivity, spacing_mm)
    # sums per label over the few labeled voxels: a loop over lesions would scan the volume each time
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    voxels = np.nonzero(labels)
    sums = [np.bincount(labels[voxels] - 1, weights=axis, minlength=count) for axis in voxels]
    index = np.stack(sums, axis=-1).reshape(-1, 3) / sizes[:, None]
    boxes = [
        [*(axis.start for axis in box[::-1]), *(axis.stop for axis in box[::-1])]
        for box in ndimage.find_objects(labels, max_label=count)
    ]
    return Lesions(
        centers_mm=image.to_mm(index),
        diameters_mm=np.cbrt(6.0 / np.pi * sizes * image.voxel_mm3),
        measured=True,
        boxes=np.array(boxes, np.float64).reshape(-1, 6),
        grid=image,
        counted=counted,
        labels=labels,
        notes=notes,
    )


def _read_mask(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """The stored values (I, J, K), NaN and infinities as 0, and their grid."""
    grid = read_grid(path)
    values = decoded(open_nifti(path))
    if values.dtype.kind not in "iufb":
        raise UserError(f"{path}: holds {values.dtype} values; give labels, a mask or probabilities")
    values = values.reshape(grid.shape)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if not bad:
        return values, grid, ()
    notes = (f"{bad} voxels of the mask are NaN or infinite and count as 0",)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), grid, notes


def _label(
    values: np.ndarray, truth: MaskTruth, path: Path, connectivity: int, spacing_mm: np.ndarray
) -> tuple[np.ndarray, int, str]:
    """Labels 1..n without gaps, n, and how the lesions were counted."""
    if values.min(initial=0.0) < 0:
        raise UserError(f"{path}: holds negative values; give labels, a mask or probabilities")
    largest = float(values.max(initial=0.0))
    # Integers above 1 are instance labels (or a mask stored as 255, which `instances` recognizes). Anything
    # else is a mask or a probability map, whose connected components are the lesions.
    whole = is_whole(values)
    if largest > 1 and (truth.soft or not whole):
        raise UserError(f"{path}: a soft mask must lie in 0 to 1, but its largest value is {largest:g}")
    if whole and largest > 1:
        with reading(path, "give labels, a mask or probabilities"):
            found = instances(values, spacing_mm, connectivity)
        if found.by_label:
            return found.labels, found.count, "labels"
        return found.labels, found.count, found.note or f"components of a mask, {connectivity}-connected"
    labels, count = components((values >= truth.threshold) & (values > 0), connectivity)
    return labels, count, f"components of values >= {truth.threshold:g}, {connectivity}-connected"
