"""VALDO 2021, Task 2: T2*-weighted scans of three cohorts with soft maps of microbleeds.

Task2/sub-101/sub-101_space-T2S_CMB.nii.gz               mean of the raters, 0 to 1
              sub-101_space-T2S_desc-masked_T2S.nii.gz   and _T1, _T2, resampled to its grid
"""

from __future__ import annotations

import re
from pathlib import Path

from cmb_jax.datasets.listing import check_root, child, distinct, is_nifti, relative, stem, visible
from cmb_jax.datasets.types import Case, DatasetIndex, MaskTruth, Problem, Role

CASES = 72  # of the public training part
_COHORTS = {"1": "SABRE", "2": "RSS", "3": "ALFA"}
_SUBJECT = re.compile(r"sub-(\w+)", re.IGNORECASE)
_ROLES: dict[str, Role] = {"desc-masked_t2s": "t2s", "desc-masked_t1": "t1", "desc-masked_t2": "t2"}


def find(root: Path) -> DatasetIndex:
    """The cases below Task2, or below the folder that holds Task2.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = check_root(root)
    top = child(root, "Task2")
    top = top if top is not None and top.is_dir() else root
    cases, problems = [], []
    for folder in visible(top):
        if folder.is_dir() and _SUBJECT.fullmatch(folder.name):
            case, found = _case(folder, root)
            problems += found
            if case is not None:
                cases.append(case)
    kept, twice = distinct(cases)
    if 0 < len(kept) < CASES:
        problems.append(
            Problem(
                where=relative(top, root) if top != root else "the data set",
                what=f"{len(kept)} of the {CASES} public cases can be used",
                level="note",
            )
        )
    return DatasetIndex(kind="valdo", cases=kept, problems=(*problems, *twice))


def _case(folder: Path, root: Path) -> tuple[Case | None, list[Problem]]:
    where = folder.name
    files: dict[str, list[Path]] = {}
    for path in visible(folder):
        if is_nifti(path):
            ending = stem(path.name).casefold().partition("space-t2s_")[2]
            files.setdefault(ending, []).append(path)
    problems = []
    for ending in ("cmb", *_ROLES):
        if len(files.get(ending, [])) > 1:
            names = ", ".join(path.name for path in files[ending])
            return None, [Problem(where=where, what=f"two files for one image ({names}); keep one")]
    images = {role: relative(files[ending][0], root) for ending, role in _ROLES.items() if ending in files}
    if "t2s" not in images:
        return None, [Problem(where=where, what="no *_space-T2S_desc-masked_T2S.nii.gz; unpack it again")]
    if "cmb" not in files:
        return None, [Problem(where=where, what="no *_space-T2S_CMB.nii.gz, so the truth is unknown")]
    missing = [role.upper() for role in ("t1", "t2") if role not in images]
    if missing:
        problems.append(Problem(where=where, what=f"no {' and no '.join(missing)} image", level="note"))
    subject = folder.name.lower()
    cohort = _COHORTS.get(subject.removeprefix("sub-")[:1], "unknown")
    return (
        Case(
            case_id=subject,
            patient_id=subject,
            cohort=cohort,
            images=images,
            truth=MaskTruth(path=relative(files["cmb"][0], root), soft=True),
        ),
        problems,
    )
