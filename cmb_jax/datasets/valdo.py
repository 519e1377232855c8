"""VALDO 2021, Task 2: T2*-weighted scans of three cohorts with soft maps of microbleeds.

Task2/sub-101/sub-101_space-T2S_CMB.nii.gz               mean of the raters, 0 to 1
              sub-101_space-T2S_desc-masked_T2S.nii.gz   and _T1, _T2, resampled to its grid
"""

import dataclasses
import re
from pathlib import Path

from cmb_jax.datasets import cases
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem

_CASES = 72  # of the public training part
_COHORTS = {"1": "SABRE", "2": "RSS", "3": "ALFA"}
_SUBJECT = re.compile(r"sub-(\w+)", re.IGNORECASE)
_ROLES: dict[str, cases.Role] = {"desc-masked_t2s": "t2s", "desc-masked_t1": "t1", "desc-masked_t2": "t2"}


def looks_like(root: Path) -> bool:
    """Whether a subfolder has images resampled to a T2*-weighted image, by their names."""
    tops = [root, cases.child(root, "Task2")]
    folders = [entry for top in tops if top is not None and top.is_dir() for entry in cases.visible(top)]
    return any(
        "space-t2s_" in entry.name.casefold() and cases.is_nifti(entry)
        for folder in folders
        if folder.is_dir()
        for entry in cases.visible(folder)
    )


def find(root: Path) -> cases.DatasetIndex:
    """The cases below Task2, or below the folder that holds Task2.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = cases.check_root(root)
    top = cases.child(root, "Task2")
    top = top if top is not None and top.is_dir() else root
    found = cases.Collector()
    for folder in cases.visible(top):
        if folder.is_dir() and _SUBJECT.fullmatch(folder.name):
            with found.skipping(folder.name):
                case = _case(folder, root)
                missing = [role.upper() for role in ("t1", "t2") if role not in case.images]
                if missing:
                    found.note(folder.name, f"no {' and no '.join(missing)} image")
                found.cases.append(case)
    index = found.index("valdo")
    if not 0 < len(index.cases) < _CASES:
        return index
    where = cases.relative(top, root) if top != root else "the data set"
    incomplete = cases.Problem(where, f"{len(index.cases)} of the {_CASES} public cases can be used", "note")
    return dataclasses.replace(index, problems=(*index.problems, incomplete))


def _case(folder: Path, root: Path) -> cases.Case:
    """The case of a subject's folder.

    Raises:
        UserError: two files for one image, or the T2*-weighted image or the truth is missing.
    """
    files: dict[str, list[Path]] = {}
    for path in cases.visible(folder):
        if cases.is_nifti(path):
            ending = stem(path.name).casefold().partition("space-t2s_")[2]
            files.setdefault(ending, []).append(path)
    for ending in ("cmb", *_ROLES):
        if len(files.get(ending, [])) > 1:
            names = ", ".join(path.name for path in files[ending])
            raise UserError(f"two files for one image ({names}); keep one")
    images = {
        role: cases.relative(files[ending][0], root) for ending, role in _ROLES.items() if ending in files
    }
    if "t2s" not in images:
        raise UserError("no *_space-T2S_desc-masked_T2S.nii.gz; unpack it again")
    if "cmb" not in files:
        raise UserError("no *_space-T2S_CMB.nii.gz, so the truth is unknown")
    subject = folder.name.lower()
    return cases.Case(
        case_id=subject,
        patient_id=subject,
        cohort=_COHORTS.get(subject.removeprefix("sub-")[:1], "unknown"),
        images=images,
        truth=cases.MaskTruth(path=cases.relative(files["cmb"][0], root), soft=True),
    )
