"""Finds the reader for a folder by its layout."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from cmb_jax.datasets import cases, csiro, dou, folder, valdo, yonsei
from cmb_jax.datasets.bids import reader as bids
from cmb_jax.errors import UserError

_READERS: dict[cases.Kind, Callable[[Path], cases.DatasetIndex]] = {
    "valdo": valdo.find,
    "csiro": csiro.find,
    "dou": dou.find,
    "yonsei": yonsei.find,
    "bids": bids.find,
    "folder": folder.find,
}
_SIGNS: dict[cases.Kind, Callable[[Path], bool]] = {
    "valdo": valdo.looks_like,
    "csiro": csiro.looks_like,
    "dou": dou.looks_like,
    "yonsei": yonsei.looks_like,
}


def find(root: Path, kind: cases.Kind | None = None) -> cases.DatasetIndex:
    """The cases of a data set, from names and tables; images are not opened.

    Args:
        root: its folder.
        kind: None: guessed from the layout.

    Raises:
        UserError: the folder is missing or empty, its layout is unknown or ambiguous, a table that the whole
            set depends on is bad, or no case can be used: the message gives the first reason.
    """
    root = cases.check_root(root)
    try:
        index = _printable(_READERS[kind or guess_kind(root)](root))
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error
    if not index.cases:
        raise UserError(nothing_usable(root, index))
    return index


def _printable(index: cases.DatasetIndex) -> cases.DatasetIndex:
    """The index without cases whose names cannot be written as text: undecodable bytes, line breaks."""
    kept, problems = [], list(index.problems)
    for case in index.cases:
        names = _names(case)
        if names.isprintable():
            kept.append(case)
            continue
        what = f"rename its files, the names cannot be written: {names!a}"
        problems.append(cases.Problem(ascii(case.case_id), what))
    return dataclasses.replace(index, cases=tuple(kept), problems=tuple(problems))


def _names(case: cases.Case) -> str:
    truth = ""
    if case.truth is not None:
        truth = case.truth.path if isinstance(case.truth, cases.MaskTruth) else case.truth.source
    return " ".join([case.case_id, case.patient_id, *case.images.values(), truth])


def nothing_usable(root: Path, index: cases.DatasetIndex) -> str:
    """The error message for a folder without a single usable case."""
    skipped = [problem for problem in index.problems if problem.level == "skipped"]
    if not skipped:
        return (
            f"{root}: no case of the layout {index.kind} found; see docs/datasets.md, or give another --kind"
        )
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    return f"{root}: no case can be used: {skipped[0].where}: {skipped[0].what}{more}"


def guess_kind(root: Path) -> cases.Kind:
    """The kind of data set that has the layout of a folder.

    Raises:
        UserError: none has, or more than one.
    """
    # each public set has a distinctive sign; a folder of images without any is the user's own
    fitting: list[cases.Kind] = [kind for kind, looks_like in _SIGNS.items() if looks_like(root)]
    if "csiro" in fitting and "yonsei" in fitting:
        fitting.remove("yonsei")  # CSIRO also has workbooks beside SWI
    if len(fitting) > 1:
        raise UserError(f"{root}: has the layout of {' and of '.join(fitting)}; say which with --kind")
    if fitting:
        return fitting[0]
    # after the public sets: VALDO comes with a dataset_description.json and is not BIDS
    if (root / "dataset_description.json").is_file() and any(root.glob("sub-*/")):
        return "bids"
    if any(cases.is_nifti(path) for path in cases.walk(root)):
        return "folder"
    raise UserError(
        f"{root}: no NIfTI images below it; convert DICOM first, or give --kind ({', '.join(cases.KINDS)})"
    )
