"""The 20 public SWI scans of Dou et al. 2016.

nii/01.nii             SWI
ground_truth/01.mat    MATLAB 5: cen (n, 3), voxels (i, j, k) counted from 1; gt_num, their number
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmb_jax.datasets.listing import check_root, child, is_nifti, one_each, relative, stem, visible
from cmb_jax.datasets.matlab import read_mat
from cmb_jax.datasets.types import Case, DatasetIndex, PointTruth, Problem
from cmb_jax.errors import UserError


def find(root: Path) -> DatasetIndex:
    """The cases with an image and a list of centers.

    Raises:
        UserError: the folder is missing or empty, or has no folder nii or ground_truth.
    """
    root = check_root(root)
    images, centers = child(root, "nii"), child(root, "ground_truth")
    if images is None or centers is None or not images.is_dir() or not centers.is_dir():
        raise UserError(f"{root}: has no folders nii and ground_truth; give the folder that holds both")
    scans, problems = one_each((path for path in visible(images) if is_nifti(path)), root, "images")
    tables, twice = one_each(
        (path for path in visible(centers) if path.suffix.lower() == ".mat"), root, "lists of centers"
    )
    problems += twice
    cases = []
    for key in sorted(scans.keys() | tables.keys()):
        if key not in scans or key not in tables:
            there = scans.get(key) or tables[key]
            gone = "list of centers" if key in scans else "image"
            if stem(there.name) not in {problem.where for problem in problems}:
                problems.append(Problem(where=relative(there, root), what=f"has no {gone} of its name"))
            continue
        try:
            points, notes = read_centers(tables[key])
        except UserError as error:
            problems.append(Problem(where=stem(scans[key].name), what=str(error)))
            continue
        name = stem(scans[key].name)
        source = relative(tables[key], root)
        cases.append(
            Case(
                case_id=name,
                patient_id=name,  # one scan a patient
                cohort="SWI-CMB",
                images={"swi": relative(scans[key], root)},
                truth=PointTruth(convention="voxel-1", points=points, source=source),
                notes=notes,
            )
        )
    return DatasetIndex(kind="dou", cases=tuple(cases), problems=tuple(problems))


def read_centers(path: Path) -> tuple[tuple[tuple[float, float, float], ...], tuple[str, ...]]:
    """The different centers of a .mat file, and what is to be known about them.

    Raises:
        UserError: no readable MATLAB 5 file, no `cen`, or not three finite numbers a center.
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
