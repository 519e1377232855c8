"""Own scans for training and evaluation: an index, its split, and its cases prepared once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cmb_jax.config import DataConfig
from cmb_jax.data.prepare import (
    boxes_of_lesions,
    boxes_on_working_grid,
    edge_coordinates,
)
from cmb_jax.data.subjects import STORE_VERSION, StoredSubject, is_stored, store_scan
from cmb_jax.datasets.cases import Case, DatasetIndex, MaskTruth
from cmb_jax.datasets.images import read_scan
from cmb_jax.datasets.index import SPLITS, read_index, read_split, split_by_patient
from cmb_jax.datasets.lesions import CONNECTIVITY, DEFAULT_DIAMETER_MM, lesions_of
from cmb_jax.errors import UserError
from cmb_jax.inference.scan import prepare_scan
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.weights import INPUT_VERSION
from cmb_jax.regions.predict import BUNDLED_WEIGHTS as REGION_WEIGHTS
from cmb_jax.scan import VERSION as JUDGE_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnData:
    """An index with its cases dealt out; patients never straddle parts."""

    index: DatasetIndex
    root: Path  # that the index' paths are relative to
    parts: Mapping[str, tuple[Case, ...]]  # by name in SPLITS; cases with a truth alone
    notes: tuple[str, ...]  # what is left out and why, for people


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPart:
    """The cases of one part that could be prepared."""

    cases: tuple[Case, ...]
    subjects: tuple[StoredSubject, ...]  # one per case
    image_sha256: tuple[str, ...]  # one per case, of the file of the image that lesions are given on
    skipped: tuple[tuple[str, str], ...]  # case ID and reason
    notes: tuple[tuple[str, str], ...]  # case ID and what is to be known, of those prepared now

    @property
    def lesions(self) -> int:
        """True lesions of all its scans."""
        return sum(len(subject.boxes()) for subject in self.subjects)


def open_data(config: DataConfig) -> OwnData:
    """Read the index that a configuration names, and deal its cases out.

    Cases without a truth (nobody has looked) are in no part.

    Raises:
      UserError: a bad index, a file of it that is gone, a bad split, or no case with a truth.
      ValueError: the configuration names no index.
    """
    if config.index is None:
        raise ValueError("data.index is not set")
    path = Path(config.index)
    index, root = read_index(path)
    known = [case for case in index.cases if case.truth is not None]
    notes = []
    unread = len(index.cases) - len(known)
    if unread:
        notes.append(f"not used, because they have no truth: {unread} of {len(index.cases)} cases")
    if not known:
        raise UserError(f"{path}: no case has a truth; add masks or tables of centers and make it again")
    if config.split_file is None:
        fractions = dict(zip(SPLITS, config.split_fractions, strict=True))
        parts = split_by_patient(known, fractions, seed=config.split_seed)
    else:
        named = read_split(Path(config.split_file), index.cases)
        parts = {name: tuple(case for case in part if case.truth is not None) for name, part in named.items()}
        unnamed = len(known) - sum(map(len, parts.values()))
        if unnamed:
            notes.append(
                f"not used, because the split file lacks them: {unnamed} of {len(known)} cases with a truth"
            )
    return OwnData(index=index, root=root, parts=parts, notes=tuple(notes))


def prepare_cases(
    cases: Sequence[Case],
    root: Path,
    cache: Path,
    spacing_mm: tuple[float, float, float],
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> PreparedPart:
    """Prepare cases that the cache does not hold yet. One that cannot be is listed, not fatal.

    Args:
      cases: with a truth.
      root: of the data set.
      cache: folder of prepared scans; a scan is found again as long as its files, its truth and the settings
        are the same.
      spacing_mm: working grid (z, y, x).
      progress: wraps the cases, such as a progress bar.
    """
    kept: list[Case] = []
    subjects: list[StoredSubject] = []
    hashes: list[str] = []
    skipped: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    region_weights = sha256_file(REGION_WEIGHTS)
    for case in progress(cases):
        try:
            files = file_hashes(case, root)
            key = _key(case, files, spacing_mm, region_weights)
            stored = StoredSubject(folder=cache / key[:16])
            if not is_stored(stored.folder):
                found = _prepare_case(case, root, stored.folder, spacing_mm, seed=int(key[:8], 16))
                notes += [(case.case_id, note) for note in found]
        except UserError as error:
            skipped.append((case.case_id, str(error).replace(f"{root}/", "")))
            continue
        kept.append(case)
        subjects.append(stored)
        hashes.append(files[case.images[case.reference]])
    return PreparedPart(
        cases=tuple(kept),
        subjects=tuple(subjects),
        image_sha256=tuple(hashes),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def file_hashes(case: Case, root: Path) -> dict[str, str]:
    """SHA-256 of every file of a case by its path in the index.

    Raises:
      UserError: one of them cannot be read.
    """
    names = [*case.images.values(), *([case.truth.path] if isinstance(case.truth, MaskTruth) else [])]
    try:
        return {name: sha256_file(root / name) for name in names}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _key(
    case: Case, files: Mapping[str, str], spacing_mm: tuple[float, float, float], region_weights: str
) -> str:
    """Tells apart what is stored: settings, region network, content of images and truth; not their names."""
    truth = dataclasses.asdict(case.truth) if case.truth is not None else {}
    if "path" in truth:
        truth["path"] = files[truth["path"]]
    truth.pop("source", None)
    described = [
        STORE_VERSION,
        INPUT_VERSION,
        JUDGE_VERSION,
        spacing_mm,
        region_weights,
        CONNECTIVITY,
        DEFAULT_DIAMETER_MM,
        {role: files[name] for role, name in case.images.items()},
        truth,
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _prepare_case(
    case: Case, root: Path, folder: Path, spacing_mm: tuple[float, float, float], seed: int
) -> list[str]:
    """Write one prepared scan; what is to be known about it."""
    lesions = lesions_of(case, root)  # first, because the rest takes seconds
    images = read_scan(case, root)
    scan = prepare_scan(images, spacing_mm=spacing_mm)
    if lesions.labels is None:
        boxes = boxes_of_lesions(lesions.centers_mm, lesions.diameters_mm, scan.prepared)
    else:
        boxes = boxes_on_working_grid(lesions.boxes, lesions.grid.affine, scan.prepared)
    store_scan(
        folder,
        scan.prepared,
        boxes=boxes,
        mimics_mm=lesions.mimics_mm,
        brain_mask=scan.brain_mask,
        affine=images.swi.affine,
        seed=seed,
    )
    centers = edge_coordinates(lesions.centers_mm, scan.prepared.affine)
    lost = int((~((centers >= 0) & (centers < scan.prepared.image.shape[:3])).all(axis=1)).sum())
    notes = [*scan.warnings, *lesions.notes]
    if lost:
        notes.append(f"{lost} of {len(lesions)} lesions lie outside the brain that the region network found")
    return notes
