"""Which reader a folder is for, by its layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from cmb_jax.datasets import csiro, dou, folder, valdo, yonsei
from cmb_jax.datasets.bids import reader as bids
from cmb_jax.datasets.listing import check_root, child, is_nifti, stem, visible, walk
from cmb_jax.datasets.types import KINDS, Case, DatasetIndex, Kind, MaskTruth, Problem
from cmb_jax.errors import UserError

READERS: dict[Kind, Callable[[Path], DatasetIndex]] = {
    "valdo": valdo.find,
    "csiro": csiro.find,
    "dou": dou.find,
    "yonsei": yonsei.find,
    "bids": bids.find,
    "folder": folder.find,
}


def find(root: Path, kind: Kind | None = None) -> DatasetIndex:
    """What a data set holds, by names and tables; images are not opened.

    Args:
        root: its folder.
        kind: guessed from the layout if None.

    Raises:
        UserError: the folder is missing or empty, of no known or of two layouts, a table that the whole set
            depends on is bad, or no case can be used: then the first reason is given.
    """
    root = check_root(root)
    try:
        index = _writable(READERS[kind or guess_kind(root)](root))
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error
    if not index.cases:
        raise UserError(nothing_usable(root, index))
    return index


def _writable(index: DatasetIndex) -> DatasetIndex:
    """The index without cases whose names cannot be written down: undecodable bytes, line ends."""
    bad = [case for case in index.cases if not _names(case).isprintable()]
    problems = [
        Problem(
            where=ascii(case.case_id), what=f"rename its files, the names cannot be written: {_names(case)!a}"
        )
        for case in bad
    ]
    kept = tuple(case for case in index.cases if case not in bad)
    return dataclasses.replace(index, cases=kept, problems=(*index.problems, *problems))


def _names(case: Case) -> str:
    truth = case.truth.path if isinstance(case.truth, MaskTruth) else case.truth.source if case.truth else ""
    return " ".join([case.case_id, case.patient_id, *case.images.values(), truth])


def nothing_usable(root: Path, index: DatasetIndex) -> str:
    """The line for a folder without a single usable case."""
    skipped = [problem for problem in index.problems if problem.level == "skipped"]
    if not skipped:
        return (
            f"{root}: no case of the layout {index.kind} found; see docs/datasets.md, or give another --kind"
        )
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    return f"{root}: no case can be used: {skipped[0].where}: {skipped[0].what}{more}"


def guess_kind(root: Path) -> Kind:
    """The kind whose layout a folder has.

    Raises:
        UserError: it has none, or more than one.
    """
    fitting: list[Kind] = [kind for kind, looks_like in _SIGNS.items() if looks_like(root)]
    if len(fitting) > 1:
        raise UserError(f"{root}: has the layout of {' and of '.join(fitting)}; say which with --kind")
    if fitting:
        return fitting[0]
    if (root / "dataset_description.json").is_file() and any(root.glob("sub-*/")):
        return "bids"  # behind the others: such a file beside VALDO's folders does not make them BIDS
    if any(is_nifti(path) for path in walk(root)):
        return "folder"
    raise UserError(
        f"{root}: no NIfTI images below it; convert DICOM first, or give --kind ({', '.join(KINDS)})"
    )


def _is_valdo(root: Path) -> bool:
    tops = [root, child(root, "Task2")]
    folders = [entry for top in tops if top is not None and top.is_dir() for entry in visible(top)]
    return any(
        "space-t2s_" in entry.name.casefold() and is_nifti(entry)
        for folder_ in folders
        if folder_.is_dir()
        for entry in visible(folder_)
    )


def _is_csiro(root: Path) -> bool:
    top = csiro.top_folder(root)
    return any(child(top, name) is not None for name in csiro.TABLES)


def _is_dou(root: Path) -> bool:
    return child(root, "nii") is not None and child(root, "ground_truth") is not None


def _is_yonsei(root: Path) -> bool:
    if _is_csiro(root):
        return False
    files = list(walk(root))
    swi = any(is_nifti(path) and yonsei.subject_and_role(path, root)[1] == "swi" for path in files)
    tables = any(path.suffix.lower() == ".xlsx" and stem(path.name) for path in files)
    return swi and tables


_SIGNS: dict[Kind, Callable[[Path], bool]] = {
    "valdo": _is_valdo,
    "csiro": _is_csiro,
    "dou": _is_dou,
    "yonsei": _is_yonsei,
}
