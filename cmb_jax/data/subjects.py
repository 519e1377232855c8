"""Prepared training subjects, simulated or scanned, on disk as plain arrays that are memory-mapped."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.anatomy.regions import region_of
from cmb_jax.config import PROPOSAL_STRIDE
from cmb_jax.data.prepare import PreparedVolume, boxes_of_lesions, points_from_edges, prepare
from cmb_jax.errors import UserError
from cmb_jax.io.atomic import replace_directory
from cmb_jax.io.outside import read_array, read_json_object
from cmb_jax.phantom import MimicKind, PhantomSubject
from cmb_jax.phantom.tree import VERSION
from cmb_jax.progress import track

# Part of every cache folder's name: raise it when the stored form changes.
STORE_VERSION = 3
_REMEDY = "remove this folder: it is made again"
STORE_FILE = "store.json"  # in every folder: which form it has, and which CMB-Phantom was simulated
POINTS_PER_KIND = 400
BRAIN_POINTS = 2000
READERS_MIMIC = 255  # code of what a reader rejected as a microbleed; not a `MimicKind`
READERS_MIMIC_MM = 3.0  # its diameter, the same as of a microbleed given as a point


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSubject:
    """One prepared subject on disk. Z Y X are voxels of the working grid."""

    folder: Path

    def image(self) -> np.ndarray:
        """(Z, Y, X, 2) float16, memory-mapped."""
        return read_array(self.folder / "image.npy", _REMEDY, mapped=True)

    def boxes(self) -> np.ndarray:
        """(M, 6) float32 boxes of the microbleeds."""
        return read_array(self.folder / "boxes.npy", _REMEDY)

    def ignored_boxes(self) -> np.ndarray:
        """(K, 6) float32 boxes of what is neither a microbleed to be found nor background."""
        return read_array(self.folder / "ignored_boxes.npy", _REMEDY)

    def mimics(self) -> np.ndarray:
        """(Z, Y // 2, X // 2) uint8 `MimicKind` or `READERS_MIMIC` on the proposal grid, memory-mapped."""
        return read_array(self.folder / "mimics.npy", _REMEDY, mapped=True)

    def mimic_points(self) -> np.ndarray:
        """(P, 3) int32 proposal-grid cells that lie on mimics, every kind about equally often."""
        return read_array(self.folder / "mimic_points.npy", _REMEDY)

    def brain_points(self) -> np.ndarray:
        """(P, 3) int32 proposal-grid cells in the brain, drawn at random."""
        return read_array(self.folder / "brain_points.npy", _REMEDY)


def is_stored(folder: Path) -> bool:
    """Whether a subject lies there; its folder appears whole or not at all."""
    return (folder / "image.npy").exists()


def _versions() -> dict[str, int]:
    return {"store": STORE_VERSION, "phantom": VERSION}


def _check_versions(folder: Path) -> None:
    """Refuse a stored subject of another form, or simulated by another version."""
    path = folder / STORE_FILE
    found = read_json_object(path, _REMEDY) if path.exists() else {"store": "2 or older", "phantom": 1}
    if found != _versions():
        raise UserError(
            f"{folder}: was prepared from CMB-Phantom {found.get('phantom')} (form {found.get('store')}), "
            f"but this cmb-jax trains on CMB-Phantom {VERSION} (form {STORE_VERSION}); prepare it again"
        )


def _cells_of(labels: np.ndarray, labels_affine: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
    """Nearest label (X, Y, Z) at the center of every proposal cell: (Z, Y // 2, X // 2).

    Both grids have parallel axes, so that one index array per axis is enough.
    """
    cells = tuple(size // step for size, step in zip(prepared.image.shape[:3], PROPOSAL_STRIDE, strict=True))
    inverse = np.linalg.inv(labels_affine)
    index = []
    for axis in range(3):
        centers = np.zeros((cells[axis], 3))
        centers[:, axis] = (np.arange(cells[axis]) + 0.5) * PROPOSAL_STRIDE[axis]
        points = points_from_edges(centers, prepared.affine)
        native = apply_affine(inverse, points)
        native_axis = 2 - axis
        index.append(np.clip(np.rint(native[:, native_axis]), 0, labels.shape[native_axis] - 1).astype(int))
    z, y, x = index
    return labels.transpose(2, 1, 0)[np.ix_(z, y, x)]


def _cells_in_balls(boxes: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Cells (Z, Y // 2, X // 2): `READERS_MIMIC` where the center lies in the ellipsoid of a box (K, 6)."""
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(cells, PROPOSAL_STRIDE, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = np.zeros(cells, bool)
    for box in boxes:
        middle, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
        scaled = [((axis - m) / h) ** 2 for axis, m, h in zip((z, y, x), middle, half, strict=True)]
        inside |= scaled[0] + scaled[1] + scaled[2] <= 1.0
    return np.where(inside, np.uint8(READERS_MIMIC), np.uint8(0))


def _points_by_kind(mimics: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    points = []
    for kind in np.unique(mimics[mimics != MimicKind.NONE]):
        cells = np.argwhere(mimics == kind)
        chosen = rng.choice(len(cells), min(POINTS_PER_KIND, len(cells)), replace=False)
        points.append(cells[chosen])
    return np.concatenate(points).astype(np.int32) if points else np.zeros((0, 3), np.int32)


def prepare_phantom(subject: PhantomSubject, spacing_mm: tuple[float, float, float]) -> PreparedVolume:
    """The network's view of a simulated subject, with its true brain and its protocol's phase sign."""
    brain = region_of(subject.region_code) > 0
    phase = None if subject.phase is None else subject.phase.data * subject.phase_sign
    return prepare(subject.swi, phase, brain, spacing_mm=spacing_mm)


def store_subject(
    subject: PhantomSubject, folder: Path, spacing_mm: tuple[float, float, float]
) -> StoredSubject:
    """Prepare a simulated subject and write it, whole or not at all."""
    prepared = prepare_phantom(subject, spacing_mm)
    affine = subject.swi.affine
    lesions = subject.lesions
    boxes = boxes_of_lesions(lesions.center_mm, lesions.apparent_diameter_mm, prepared)
    return _store(
        folder,
        prepared,
        boxes=boxes[lesions.is_cmb],
        ignored_boxes=boxes[lesions.is_ignored],
        mimics=_cells_of(subject.mimic_labels.astype(np.uint8), affine, prepared),
        brain=region_of(_cells_of(subject.region_code, affine, prepared)) > 0,
        seed=subject.seed,
    )


def store_scan(
    folder: Path,
    prepared: PreparedVolume,
    *,
    boxes: np.ndarray,
    mimics_mm: np.ndarray,
    brain_mask: np.ndarray,
    affine: np.ndarray,
    seed: int,
) -> StoredSubject:
    """Write a prepared scan, whole or not at all.

    Args:
      folder: to make or to replace.
      prepared: what the network sees.
      boxes: (M, 6) of the microbleeds, working voxels.
      mimics_mm: (K, 3) centers of what a reader took for no microbleed, RAS mm; training mines others.
      brain_mask: (X, Y, Z) bool on the scan's grid; empty means that the brain is unknown and all is used.
      affine: (4, 4) of the scan's grid.
      seed: of the choice of points in the brain.
    """
    brain = _cells_of(brain_mask, affine, prepared)
    spheres = boxes_of_lesions(mimics_mm, np.full(len(mimics_mm), READERS_MIMIC_MM), prepared)
    return _store(
        folder,
        prepared,
        boxes=boxes,
        ignored_boxes=np.zeros((0, 6)),
        mimics=_cells_in_balls(spheres, brain.shape),
        brain=brain if brain.any() else ~brain,
        seed=seed,
    )


def _store(
    folder: Path,
    prepared: PreparedVolume,
    *,
    boxes: np.ndarray,
    ignored_boxes: np.ndarray,
    mimics: np.ndarray,
    brain: np.ndarray,
    seed: int,
) -> StoredSubject:
    """Draw the points that patches are centered on and write all arrays; `mimics` and `brain` are by cell."""
    rng = np.random.default_rng(seed)
    arrays = {
        "image": prepared.image,
        "boxes": boxes.astype(np.float32),
        "ignored_boxes": ignored_boxes.astype(np.float32),
        "mimics": mimics,
        "mimic_points": _points_by_kind(mimics, rng),
        "brain_points": rng.permutation(np.argwhere(brain))[:BRAIN_POINTS].astype(np.int32),
    }

    def fill(temporary: Path) -> None:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / STORE_FILE).write_text(json.dumps(_versions()) + "\n", encoding="utf-8")

    replace_directory(folder, fill)
    return StoredSubject(folder=folder)


def stored_subjects(
    folders: Sequence[Path],
    seeds: Sequence[int],
    simulate: Callable[[int, int], PhantomSubject],
    spacing_mm: tuple[float, float, float],
    what: str,
) -> tuple[StoredSubject, ...]:
    """The subjects of `seeds`, simulated where the cache does not hold them yet, with progress.

    Args:
      folders: one per subject; its name must tell the settings apart.
      seeds: one per subject.
      simulate: (index, seed) -> simulated subject.
      spacing_mm: working grid (z, y, x).
      what: shown beside the progress bar.
    """
    subjects = []
    pairs = list(zip(folders, seeds, strict=True))
    for index, (folder, seed) in enumerate(track(pairs, f"{what} subjects")):
        if is_stored(folder):
            subjects.append(StoredSubject(folder=folder))
        else:
            subjects.append(store_subject(simulate(index, seed), folder, spacing_mm))
    return tuple(subjects)


def subjects_in(folder: Path) -> tuple[StoredSubject, ...]:
    """The subjects that a folder holds, in the order of their seeds.

    Raises:
      UserError: no such folder, no prepared subject in it, or one of an older version.
    """
    found = [path for path in folder.glob("seed-*") if is_stored(path)]
    if not found:
        raise UserError(f"{folder}: holds no prepared subject (a folder seed-NUMBER with image.npy in it)")
    for path in found:
        _check_versions(path)
    found.sort(key=lambda path: (len(path.name), path.name))  # seed-9 before seed-10
    return tuple(StoredSubject(folder=path) for path in found)
