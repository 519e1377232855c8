"""Tissue fractions of the whole head from T1 intensity and tissue priors, on the pack's 1 mm grid."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.shapes import Ellipsoid

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]

BRAIN_THRESHOLD = 0.05  # of the skull-stripped T1: everything that its mask kept
_CSF_LIMIT = 0.60  # T1 of the rim about the brain: brighter is not CSF
_LOCAL_MM = 8.0  # sigma of the neighbourhood in which a tissue has one intensity
_MISFIT = 0.03  # T1 units: intensity noise within a tissue, not to be explained by fractions
_SHARPNESS = 1.6  # exponent: takes back some of the blur that averaging 152 people left

# T1 of the whole head: below DARK is air, above BRIGHT is not; linear between.
_DARK, _BRIGHT = 0.11, 0.20
_HEAD_THRESHOLD = 0.25  # T1 at the skin, half of what the scalp has
# Where dark means air and not bone, with the share of the dark space that is air; right side, in mm.
_AIR_SPACES = (
    (1.0, Ellipsoid((0, 72, -12), (34, 16, 24))),  # frontal sinus
    (1.0, Ellipsoid((0, 45, -38), (26, 42, 26))),  # ethmoid cells and nasal cavity
    (1.0, Ellipsoid((0, 10, -42), (24, 24, 16))),  # sphenoid sinus
    (1.0, Ellipsoid((30, 38, -64), (24, 30, 24))),  # maxillary sinus
    (1.0, Ellipsoid((0, 15, -74), (24, 40, 24))),  # pharynx
    (0.5, Ellipsoid((52, -35, -42), (30, 26, 22))),  # ear canal and mastoid: cells between walls of bone
)


def intracranial_mask(brain_t1: np.ndarray, head_t1: np.ndarray, axes: Axes) -> np.ndarray:
    """Fraction of each voxel inside the skull, (X, Y, Z) float32.

    The skull-stripped template's own mask, holes filled, and one voxel more where the head's T1 is as dark as
    CSF: the mask hugs the gyri and leaves out the outer subarachnoid space. Below the cribriform plate it is
    cut, since the template kept a piece of the nose there.
    """
    x, y, z = axes
    nose = (np.abs(x) < 16.0) & (y > 15.0) & (z < -27.0)
    mask = ndimage.binary_fill_holes((brain_t1 > BRAIN_THRESHOLD) & ~nose)
    mask = ndimage.binary_opening(mask)
    rim = ndimage.binary_dilation(mask) & (head_t1 < _CSF_LIMIT) & ~nose
    return np.clip(ndimage.gaussian_filter((mask | rim).astype(np.float32), 0.5), 0.0, 1.0)


def sharpen_tissues(priors: np.ndarray, t1: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Grey, white and CSF fractions that explain the T1 intensity with the least change of the prior.

    In each voxel f minimises sum_c (f_c - p_c)^2 / p_c subject to sum f = 1 and sum_c f_c m_c = t1, with m_c
    the tissue's mean intensity in the neighbourhood: tissues absent from the prior stay absent, and a voxel
    with a mixture takes the mixture that its intensity shows. A power > 1 then sharpens.

    Args:
        priors: (3, X, Y, Z) probabilities of grey, white, CSF.
        t1: (X, Y, Z) intensity, about 1 in white matter.
        inside: (X, Y, Z) bool, where the intensity tells; elsewhere the prior alone does.

    Returns:
        (3, X, Y, Z) float32, summing to 1.
    """
    prior = np.clip(priors, 0.0, 1.0) + 1e-3
    prior /= prior.sum(axis=0)
    means = np.stack([_local_mean(t1, (p > 0.8) & inside) for p in prior])
    expected = (prior * means).sum(axis=0)
    spread = (prior * (means - expected) ** 2).sum(axis=0)
    gain = np.where(inside, (t1 - expected) / (spread + _MISFIT**2), 0.0)
    fractions = np.maximum(prior * (1.0 + gain * (means - expected)), 1e-6)
    fractions = (fractions / fractions.sum(axis=0)) ** _SHARPNESS
    return (fractions / fractions.sum(axis=0)).astype(np.float32)


def _local_mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of `values` over `where`; their global mean far from any of them."""
    weight = ndimage.gaussian_filter(where.astype(np.float32), _LOCAL_MM, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(where, values, 0.0).astype(np.float32), _LOCAL_MM, truncate=3.0)
    trust = 1e-3
    return (total + trust * values[where].mean()) / (weight + trust)


def head_air(head_t1: np.ndarray, cranium: np.ndarray, axes: Axes) -> np.ndarray:
    """Fraction of air in each voxel that is not intracranial, (X, Y, Z) float32.

    Outside the head all is air. Inside, bone and air are both dark on T1: a dark voxel counts as air only in
    the spaces where the skull is hollow (paranasal sinuses, nose, pharynx, ear and mastoid); the vault's
    dark bone counts as soft tissue.
    """
    solid = ndimage.binary_closing(np.pad((head_t1 > _HEAD_THRESHOLD) | (cranium > 0.5), 6), iterations=5)
    solid = solid[6:-6, 6:-6, 6:-6]
    for index in range(solid.shape[2]):  # axial slices: the neck leaves the volume open at the bottom
        solid[:, :, index] = ndimage.binary_fill_holes(solid[:, :, index])
    pieces, _ = ndimage.label(solid)
    solid = pieces == np.bincount(pieces[pieces > 0]).argmax()
    outside = ndimage.gaussian_filter((~solid).astype(np.float32), 0.7)

    right: Axes = (np.abs(axes[0]), axes[1], axes[2])
    hollow = np.maximum.reduce([share * space.inside(right, 3.0) for share, space in _AIR_SPACES])
    dark = np.clip((_BRIGHT - head_t1) / (_BRIGHT - _DARK), 0.0, 1.0)
    return np.maximum(outside, dark * hollow)
