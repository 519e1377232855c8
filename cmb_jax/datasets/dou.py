"""The 20 public SWI scans of Dou et al. 2016.

nii/01.nii             SWI
ground_truth/01.mat    MATLAB 5: cen (n, 3), voxels (i, j, k) counted from 1; gt_num, their number
"""

from pathlib import Path

import numpy as np

from cmb_jax.datasets import cases
from cmb_jax.datasets.tables import read_mat
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem


def looks_like(root: Path) -> bool:
    """Whether the folder has the two subfolders of this set."""
    return cases.child(root, "nii") is not None and cases.child(root, "ground_truth") is not None


def find(root: Path) -> cases.DatasetIndex:
    """The cases with an image and a list of centers.

    Raises:
        UserError: the folder is missing or empty, or has no folder nii or ground_truth.
    """
    root = cases.check_root(root)
    images, centers = cases.child(root, "nii"), cases.child(root, "ground_truth")
    if images is None or centers is None or not images.is_dir() or not centers.is_dir():
        raise UserError(f"{root}: has no folders nii and ground_truth; give the folder that holds both")
    found = cases.Collector()
    scans = found.one_each((path for path in cases.visible(images) if cases.is_nifti(path)), root, "images")
    tables = found.one_each(
        (path for path in cases.visible(centers) if path.suffix.lower() == ".mat"), root, "lists of centers"
    )
    repeated = {problem.where for problem in found.problems}
    for key in sorted(scans.keys() ^ tables.keys()):
        there = scans.get(key) or tables[key]
        missing = "list of centers" if key in scans else "image"
        if stem(there.name) not in repeated:
            found.skip(cases.relative(there, root), f"has no {missing} of its name")
    for key in sorted(scans.keys() & tables.keys()):
        with found.skipping(stem(scans[key].name)):
            found.cases.append(_case(scans[key], tables[key], root))
    return found.index("dou")


def _case(scan: Path, table: Path, root: Path) -> cases.Case:
    points, notes = read_centers(table)
    return cases.Case(
        case_id=stem(scan.name),
        patient_id=stem(scan.name),  # one scan per patient
        cohort="SWI-CMB",
        images={"swi": cases.relative(scan, root)},
        truth=cases.PointTruth(convention="voxel-1", points=points, source=cases.relative(table, root)),
        notes=notes,
    )


def read_centers(path: Path) -> tuple[tuple[tuple[float, float, float], ...], tuple[str, ...]]:
    """The distinct centers of a .mat file, and notes on repeats and on a wrong count.

    Raises:
        UserError: not a readable MATLAB 5 file, no `cen`, or not three finite numbers per center.
    """
    found = read_mat(path, ("cen", "gt_num"))
    if "cen" not in found:
        raise UserError(f"{path}: holds no variable cen with the centers; fetch the file again")
    centers = found["cen"]
    if centers.size and (centers.ndim != 2 or 3 not in centers.shape or not np.isfinite(centers).all()):
        raise UserError(f"{path}: cen is {' x '.join(map(str, centers.shape))}, not finite numbers (n, 3)")
    if centers.size and centers.shape[1] != 3:
        raise UserError(f"{path}: cen is 3 x n, and (n, 3) is expected; transpose it")
    rows = [(float(x), float(y), float(z)) for x, y, z in centers.reshape(-1, 3)]
    points = tuple(dict.fromkeys(rows))
    notes = []
    if len(points) < len(rows):
        notes.append(f"{len(rows) - len(points)} repeated centers were dropped")
    stated = found.get("gt_num")
    if stated is not None and stated.size == 1 and float(stated.flat[0]) != len(rows):
        notes.append(f"gt_num says {stated.flat[0]:g}, but cen has {len(rows)} centers")
    return points, tuple(notes)
