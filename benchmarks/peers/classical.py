"""The classical way: dark blobs and centers of radial symmetry as candidates, features, boosted trees."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.peers.contest import SPACING_MM, Budget, Finder, Found
from cmb_jax.data.subjects import StoredSubject
from cmb_jax.io.atomic import atomic_write_bytes

SCALES_MM = (0.5, 0.75, 1.1, 1.7, 2.5, 3.75)  # standard deviations; neighbors are subtracted
RADII_MM = (1.0, 2.0, 3.0)
MOST_CANDIDATES = 600  # per scan
LEAST_CONTRAST = 0.02  # of a blob, in units of the brain's reference intensity
REACH_MM = 2.0  # from a lesion's center, or half its diameter if that is more
TREES = 300
SHARE_FOR_FIT = 0.02  # of the budget, kept for the trees


def train(subjects: Sequence[StoredSubject], folder: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """Features of subject after subject until the budget is spent, then the trees."""
    order = np.random.default_rng(seed).permutation(len(subjects))
    tables: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for number in order:
        path = folder / "features" / f"{subjects[number].folder.name}.npz"
        if not path.exists():
            if tables and budget.left < SHARE_FOR_FIT * budget.seconds:
                break
            path.parent.mkdir(exist_ok=True)
            features, label = _labeled(subjects[number])
            np.savez(path, features=features, label=label)
            budget.save(steps=len(tables) + 1)
        with np.load(path) as stored:
            tables.append(stored["features"])
            labels.append(stored["label"])
    model = HistGradientBoostingClassifier(
        max_iter=TREES, learning_rate=0.05, max_leaf_nodes=15, l2_regularization=1.0, random_state=seed
    )
    model.fit(np.concatenate(tables), np.concatenate(labels))
    atomic_write_bytes(folder / "trees.pickle", pickle.dumps(model), overwrite=True)
    budget.save(steps=len(tables))
    nodes = sum(len(tree.nodes) for trees in model._predictors for tree in trees)
    return {"parameters": nodes, "subjects_seen": len(tables)}


def load(folder: Path) -> Finder:
    """Candidates with the trees' probability."""
    model = pickle.loads((folder / "trees.pickle").read_bytes())

    def find(image: np.ndarray) -> Found:
        centers, diameters, features = candidates(np.asarray(image, np.float32))
        scores = model.predict_proba(features)[:, 1] if len(centers) else np.zeros(0)
        return Found(centers=centers, diameters_mm=diameters, scores=scores)

    return find


def _labeled(subject: StoredSubject) -> tuple[np.ndarray, np.ndarray]:
    """Features (K, F) and label (K,) of a subject's candidates, those on ignored lesions left out."""
    centers, _, features = candidates(np.asarray(subject.image(), np.float32))
    true = _hit(centers, subject.boxes())
    keep = true | ~_hit(centers, subject.ignored_boxes())
    return features[keep], true[keep]


def _hit(centers: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which centers (K, 3) lie near the center of one of the boxes (M, 6): (K,) bool."""
    middle, half = (boxes[:, :3] + boxes[:, 3:]) / 2, (boxes[:, 3] - boxes[:, 0]) / 2 * SPACING_MM[0]
    apart = np.linalg.norm((centers[:, None] - middle) * SPACING_MM, axis=-1)
    return np.any(apart <= np.maximum(half, REACH_MM), axis=1)


def radial_symmetry(image: np.ndarray, radius_mm: float) -> np.ndarray:
    """Votes (Z, Y, X) of voxels for the center of a dark ball of that radius against their gradient.

    Loy and Zelinsky 2003, orientation alone: each voxel of the steepest tenth votes once, `radius_mm` along
    the direction in which the image darkens; votes are smoothed by a quarter of the radius.
    """
    spacing = np.array(SPACING_MM)
    slopes = np.stack([step / mm for step, mm in zip(np.gradient(image), spacing, strict=True)])
    size = np.sqrt((slopes**2).sum(0))
    steep = size > np.quantile(size[::4, ::4, ::4], 0.9)
    places = np.argwhere(steep)
    toward = -(slopes[:, steep] / size[steep]).T * radius_mm / spacing
    at = np.rint(places + toward).astype(int)
    inside = np.all((at >= 0) & (at < image.shape), axis=1)
    flat = np.ravel_multi_index(tuple(at[inside].T), image.shape)
    votes = np.bincount(flat, minlength=image.size).reshape(image.shape).astype(np.float32)
    return ndimage.gaussian_filter(votes, radius_mm / 4 / spacing)


def candidates(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dark blobs of a prepared image (Z, Y, X, 2).

    Returns:
        Centers (K, 3) in edge coordinates, diameters (K,) in mm, features (K, F) float32.
    """
    spacing = np.array(SPACING_MM)
    intensity, phase = image[..., 0], image[..., 1]
    smooth = [ndimage.gaussian_filter(intensity, mm / spacing) for mm in SCALES_MM]
    blobs = [coarse - fine for fine, coarse in itertools.pairwise(smooth)]
    symmetry = [radial_symmetry(smooth[0], radius) for radius in RADII_MM]
    best = np.max(blobs, axis=0)
    peak = (best == ndimage.maximum_filter(best, size=(3, 5, 5))) & (best > LEAST_CONTRAST)
    # beyond the brain all is dark: half of the surroundings must be tissue
    tissue = ndimage.gaussian_filter((intensity > 0.3).astype(np.float32), 3.0 / spacing)
    places = np.argwhere(peak & (tissue > 0.5))
    at = tuple(places.T)
    strength = best[at] * (1 + np.max([votes[at] for votes in symmetry], axis=0))
    places = places[np.argsort(-strength, kind="stable")[:MOST_CANDIDATES]]
    at = tuple(places.T)
    scale = np.argmax([blob[at] for blob in blobs], axis=0)
    smooth_phase = [ndimage.gaussian_filter(phase, mm / spacing) for mm in SCALES_MM[:4]]
    columns = [
        *(level[at] for level in smooth),
        *(blob[at] for blob in blobs),
        *(votes[at] for votes in symmetry),
        *(level[at] for level in smooth_phase),
        # the dipole: phase above and below in the slice direction against that in the slice
        *(_moved(smooth_phase[1], places, step) for step in ((2, 0, 0), (-2, 0, 0), (0, 4, 0), (0, 0, 4))),
        *_shape(smooth[1], places),
        *_shape(smooth[2], places),
        *_shape(smooth_phase[1], places),
        tissue[at],
        scale,
        np.full(len(places), float(np.any(phase[::4, ::4, ::4]))),
        *(places / np.array(intensity.shape)).T,
    ]
    features = np.stack(columns, axis=1).astype(np.float32)
    # the widest Gaussian difference answers most to a ball of radius sqrt(3) standard deviations
    diameters = 2 * np.sqrt(3) * np.array(SCALES_MM)[scale]
    return places + 0.5, diameters, features


def _moved(image: np.ndarray, places: np.ndarray, step: Sequence[int]) -> np.ndarray:
    """Values (K,) at places (K, 3) moved by a step, at the border where it leads outside."""
    moved: np.ndarray = image[tuple(np.clip(places + step, 0, np.array(image.shape) - 1).T)]
    return moved


def _shape(image: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
    """Eigenvalues (3 arrays of (K,), rising) of the second derivatives over 1 mm: ball, tube or sheet."""
    steps = np.rint(1.0 / np.array(SPACING_MM)).astype(int) * np.eye(3, dtype=int)
    middle = _moved(image, places, (0, 0, 0))
    hessian = np.zeros((len(places), 3, 3))
    for i in range(3):
        hessian[:, i, i] = _moved(image, places, steps[i]) + _moved(image, places, -steps[i]) - 2 * middle
        for j in range(i):
            both, apart = steps[i] + steps[j], steps[i] - steps[j]
            hessian[:, i, j] = hessian[:, j, i] = (
                _moved(image, places, both)
                + _moved(image, places, -both)
                - _moved(image, places, apart)
                - _moved(image, places, -apart)
            ) / 4
    return list(np.linalg.eigvalsh(hessian).T) if len(places) else [np.zeros(0)] * 3
