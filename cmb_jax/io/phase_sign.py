"""Which sign of the stored phase is paramagnetic: read from the image itself.

Veins, iron-rich nuclei and microbleeds are dark and paramagnetic. Taken as a susceptibility map, thin dark
structures predict a field pattern (the dipole kernel); the measured high-passed phase follows that pattern
with the sign that is sought. The pattern matters: veins across the main field have the opposite phase inside,
so darkness and phase alone correlate poorly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from scipy import fft, ndimage

from cmb_jax.swi import high_pass, homodyne_phase, low_pass

_HIGH_PASS_MM = 4.0  # veins and microbleeds are thinner; slow fields and filter edges are gone
_CLOSING_MM = 5.0  # dark structures thinner than this count
_DARKNESS = 0.1  # least darkness against the surroundings that counts ...
_DARK_SHARE = 95.0  # ... and only this percentile on: grey against white matter would vote the wrong way
_COARSE_MM = 1.0  # grid of the brain mask
_RIM_MM = 4.0  # as thick as the skin and bone that bridge brain and scalp in a mask, and as the rim left out
_BLOCKS = (4, 4, 4)  # blocks an axis of the box about the brain; each gives one vote
_MIN_VOTES = 8
_MIN_T, _MIN_SHARE, _MIN_R = 3.5, 0.6, 0.02  # simulations without veins reach |t| 2.3, |r| 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignDecision:
    """The sign of paramagnetic phase in an image as stored."""

    sign: int  # +1: paramagnetic is positive as stored; -1: negative
    confident: bool  # False: the data do not tell, and sign is the customary +1
    reason: str  # one line for people


def decide_phase_sign(
    phase_rad: np.ndarray,
    magnitude_or_swi: np.ndarray,
    spacing_mm: Sequence[float],
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
) -> SignDecision:
    """Finds the sign by correlating high-passed phase with the field that thin dark structures would make.

    Each of up to 64 blocks of the brain gives one correlation; their mean must stand out from their spread.

    Args:
        phase_rad: (X, Y, Z) in radians, wrapped or high-passed, as stored.
        magnitude_or_swi: (X, Y, Z), any unit.
        spacing_mm: voxel edge lengths along (x, y, z) in mm.
        b0_direction: unit vector of the main field in array axes.

    Returns:
        The decision; not confident where too little tissue, too few veins or calcifications leave it open.
    """
    magnitude = np.asarray(magnitude_or_swi, np.float32)
    smooth = np.asarray(low_pass(jnp.asarray(magnitude), spacing_mm, 12.0))
    inside = _inside_of_brain(magnitude, spacing_mm)
    field = _field_of_dark_structures(magnitude, inside, spacing_mm, b0_direction)
    expected = np.asarray(
        high_pass(jnp.asarray(field), spacing_mm, jnp.asarray(inside, jnp.float32), _HIGH_PASS_MM)
    )
    measured = np.asarray(
        homodyne_phase(jnp.asarray(phase_rad, jnp.float32), jnp.asarray(magnitude), spacing_mm, _HIGH_PASS_MM)
    )
    # phase noise is the inverse of the signal
    weights = np.where(
        inside, np.minimum(magnitude / np.maximum(smooth, np.finfo(np.float32).tiny), 1.0), 0.0
    )
    votes = _block_correlations(measured, expected, weights)
    if len(votes) < _MIN_VOTES:
        return SignDecision(sign=1, confident=False, reason="too little tissue to tell, so +1 was taken")
    mean, spread = float(votes.mean()), float(votes.std(ddof=1))
    t = mean / max(spread / len(votes) ** 0.5, 1e-6)
    share = float(np.mean(votes > 0))
    found = (
        f"phase against the field of thin dark structures: r {mean:+.3f}, t {t:+.1f}, "
        f"{share:.0%} of {len(votes)} blocks positive"
    )
    if abs(t) >= _MIN_T and abs(mean) >= _MIN_R and max(share, 1 - share) >= _MIN_SHARE:
        sign = 1 if mean > 0 else -1
        return SignDecision(sign=sign, confident=True, reason=found)
    return SignDecision(sign=1, confident=False, reason=f"the data do not tell, so +1 was taken: {found}")


def field_direction(affine: np.ndarray) -> tuple[float, float, float]:
    """Unit vector of the main field (RAS z: supine, head first) in the array axes of an affine (4, 4)."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = columns[2] / np.linalg.norm(columns[2])
    return float(x), float(y), float(z)


def _inside_of_brain(magnitude: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Voxels (X, Y, Z) well inside the largest piece of tissue: without skull, scalp and the brain's rim.

    The skull is dark, thin and noisy, and would outvote every vein. Beyond the volume's faces tissue is
    taken to go on, so that a cut-out of a brain counts whole.
    """
    strides = [max(1, round(_COARSE_MM / spacing)) for spacing in spacing_mm[:2]] + [1]
    coarse = [spacing * stride for spacing, stride in zip(spacing_mm, strides, strict=True)]
    every = tuple(slice(None, None, stride) for stride in strides)
    smooth = np.asarray(low_pass(jnp.asarray(magnitude), spacing_mm, 3.0))[every]
    tissue = smooth > 0.4 * np.median(smooth[smooth >= smooth.mean()])
    pieces, count = ndimage.label(ndimage.distance_transform_edt(tissue, coarse) > _RIM_MM)
    if not count or tissue.all():
        return np.full(magnitude.shape, bool(count))
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    brain = tissue & (ndimage.distance_transform_edt(~largest, coarse) <= _RIM_MM)
    for z in range(brain.shape[2]):
        brain[:, :, z] = ndimage.binary_fill_holes(brain[:, :, z])
    inside = ndimage.distance_transform_edt(brain, coarse) > _RIM_MM
    for axis, stride in enumerate(strides):
        inside = np.repeat(inside, stride, axis=axis)
    return inside[tuple(slice(length) for length in magnitude.shape)]


def _field_of_dark_structures(
    magnitude: np.ndarray, inside: np.ndarray, spacing_mm: Sequence[float], b0_direction: Sequence[float]
) -> np.ndarray:
    """The field pattern (arbitrary unit) if darkness were susceptibility."""
    odd = [max(1, int(_CLOSING_MM / spacing) // 2 * 2 + 1) for spacing in spacing_mm]
    size = [min(length, width) for length, width in zip(odd, (99, 99, 3), strict=True)]
    closed = ndimage.grey_closing(magnitude, size)
    dark = np.where(inside, (closed - magnitude) / np.maximum(closed, np.finfo(np.float32).tiny), 0.0)
    if not inside.any():
        return np.zeros_like(magnitude)
    dark = np.clip(dark - max(_DARKNESS, float(np.percentile(dark[inside], _DARK_SHARE))), 0.0, 0.5)
    axes = [fft.fftfreq(length, spacing) for length, spacing in zip(dark.shape, spacing_mm, strict=True)]
    axes[2] = fft.rfftfreq(dark.shape[2], spacing_mm[2])
    kx, ky, kz = np.meshgrid(*[axis.astype(np.float32) for axis in axes], indexing="ij", sparse=True)
    square = kx**2 + ky**2 + kz**2
    along = kx * b0_direction[0] + ky * b0_direction[1] + kz * b0_direction[2]
    square[0, 0, 0] = 1.0
    dipole = 1.0 / 3.0 - along**2 / square
    dipole[0, 0, 0] = 0.0
    spectrum = fft.rfftn(dark.astype(np.float32)) * dipole.astype(np.float32)
    return np.asarray(fft.irfftn(spectrum, s=dark.shape), np.float32)


def _block_correlations(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation of a and b in each block that is at least half full."""
    votes = []
    used = np.nonzero(weights)
    if not used[0].size:
        return np.zeros(0)
    spans = [np.arange(axis.min(), axis.max() + 1) for axis in used]
    cuts = [np.array_split(span, count) for span, count in zip(spans, _BLOCKS, strict=True)]
    for xs in cuts[0]:
        for ys in cuts[1]:
            for zs in cuts[2]:
                if not (len(xs) and len(ys) and len(zs)):
                    continue
                block = (slice(xs[0], xs[-1] + 1), slice(ys[0], ys[-1] + 1), slice(zs[0], zs[-1] + 1))
                w = weights[block]
                if np.mean(w > 0) < 0.5:
                    continue
                p = a[block] - np.average(a[block], weights=w)
                q = b[block] - np.average(b[block], weights=w)
                norm = np.sqrt(np.sum(w * p * p) * np.sum(w * q * q))
                if norm > 0:
                    votes.append(float(np.sum(w * p * q) / norm))
    return np.array(votes)
