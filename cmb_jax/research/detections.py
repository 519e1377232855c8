"""Detections of a run on prepared subjects, kept in a file, so that tables need no inference again.

Such a file says what it was made of, and is made anew when that changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cmb_jax.data.subjects import StoredSubject
from cmb_jax.errors import UserError
from cmb_jax.evaluation.breakdown import name_by_mimic
from cmb_jax.evaluation.records import SubjectDetections, SubjectTruth
from cmb_jax.inference.bundle import load_bundle
from cmb_jax.inference.proposals import ProposalFinder, detect, mimics_of, truth_of
from cmb_jax.io.atomic import atomic_write_bytes, sha256_file
from cmb_jax.io.outside import read_arrays
from cmb_jax.progress import track

_MADE_OF = "made_of"


def write_kept(path: Path, made_of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays in the place of older ones.

    Raises:
      UserError: the file cannot be written.
    """
    blob = io.BytesIO()
    # NumPy's own annotation takes no names of arrays
    np.savez_compressed(blob, **{_MADE_OF: np.array(made_of), **arrays})  # type: ignore[arg-type]
    atomic_write_bytes(path, blob.getvalue(), overwrite=True)


def read_kept(path: Path, made_of: str) -> dict[str, np.ndarray] | None:
    """What `write_kept` wrote; None if there is nothing, of something else, or damaged: make it anew."""
    try:
        arrays = read_arrays(path)
    except UserError:
        return None
    if str(arrays.pop(_MADE_OF, "")) != made_of:
        return None
    return arrays


FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetDetections:
    """What one run found in S subjects."""

    scans: tuple[SubjectDetections, ...]
    mimics: tuple[tuple[str, ...], ...]  # of each scan's detections: the kind of the mimic there, or "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectSet:
    """Prepared subjects with their truth."""

    name: str  # "validation" or "test"
    subjects: tuple[StoredSubject, ...]
    truths: tuple[SubjectTruth, ...]
    spacing_mm: tuple[float, float, float]
    sha256: str  # of names and boxes: tells sets apart


def subject_set(
    name: str, subjects: Sequence[StoredSubject], spacing_mm: tuple[float, float, float]
) -> SubjectSet:
    """A set with its truth read."""
    truths = tuple(truth_of(stored, spacing_mm) for stored in subjects)
    digest = hashlib.sha256(repr((FORMAT, spacing_mm)).encode())
    for truth in truths:
        digest.update(truth.subject.encode() + truth.centers_mm.tobytes() + truth.diameters_mm.tobytes())
    return SubjectSet(
        name=name,
        subjects=tuple(subjects),
        truths=truths,
        spacing_mm=spacing_mm,
        sha256=digest.hexdigest(),
    )


def detections_of(weights: Path, subjects: SubjectSet, say: Callable[[str], None]) -> SetDetections:
    """What weights find in a set: read from the file beside them if it is of both, else found and written.

    Args:
      weights: of a run.
      subjects: to look at.
      say: is told when there is inference to do.

    Raises:
      UserError: weights that cannot be read, or a file that cannot be written.
    """
    path = weights.parent / f"detections-{subjects.name}.npz"
    sha256 = sha256_file(weights)
    made_of = f"{sha256} {subjects.sha256}"
    names = [truth.subject for truth in subjects.truths]
    stored = read_kept(path, made_of)
    if stored is not None:
        return _from_arrays(stored, names)
    say(f"{weights.parent.name}: looking at {len(names)} {subjects.name} subjects")
    finder = _finder_of(weights, sha256)
    scans, mimics = [], []
    for stored_subject in track(subjects.subjects, weights.parent.name):
        found = detect(finder, stored_subject)
        scans.append(found)
        mimics.append(tuple(name_by_mimic(found.centers_mm, mimics_of(stored_subject, subjects.spacing_mm))))
    result = SetDetections(scans=tuple(scans), mimics=tuple(mimics))
    write_kept(path, made_of, _arrays(result))
    return result


@functools.lru_cache(maxsize=1)
def _finder_of(weights: Path, sha256: str) -> ProposalFinder:
    """Compiled once for the sets of one run; `sha256` tells weights apart that were written anew."""
    bundle = load_bundle(weights)
    return ProposalFinder(bundle.config, bundle.params)


def _arrays(found: SetDetections) -> dict[str, np.ndarray]:
    return {
        "counts": np.array([len(scan.scores) for scan in found.scans]),
        "centers_mm": np.concatenate([scan.centers_mm for scan in found.scans]),
        "diameters_mm": np.concatenate([scan.diameters_mm for scan in found.scans]),
        "scores": np.concatenate([scan.scores for scan in found.scans]),
        "mimics": np.array([name for names in found.mimics for name in names], dtype=np.str_),
    }


def _from_arrays(arrays: dict[str, np.ndarray], names: Sequence[str]) -> SetDetections:
    """Inverse of `_arrays`, for subjects of these names."""
    ends = np.cumsum(arrays["counts"])[:-1]
    centers, diameters, scores, mimics = (
        np.split(arrays[name], ends) for name in ("centers_mm", "diameters_mm", "scores", "mimics")
    )
    return SetDetections(
        scans=tuple(
            SubjectDetections(subject=name, centers_mm=c, diameters_mm=d, scores=s)
            for name, c, d, s in zip(names, centers, diameters, scores, strict=True)
        ),
        mimics=tuple(tuple(map(str, part)) for part in mimics),
    )
