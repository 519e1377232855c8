"""Which sign of the stored phase is paramagnetic, determined from the images themselves.

A susceptibility-weighted image shows it best: it is the magnitude times a mask that falls with paramagnetic
phase, so that even the noise in tissue follows the phase, on that side alone. In a plain magnitude the noise
of magnitude and phase is independent, and this shows nothing. Then the veins must decide.

Veins, iron-rich nuclei and microbleeds are dark and paramagnetic. Taken as a susceptibility map, thin dark
structures predict a field pattern (the dipole kernel); the measured high-passed phase follows that pattern
with the sign that is sought. The pattern matters: veins across the main field have the opposite phase inside,
so darkness and phase alone correlate poorly. Ordinary contrast between tissues is regressed out first: white
matter is darker than gray but diamagnetic, and would vote the wrong way.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import fft, ndimage

from cmb_jax.scan.swi import high_pass, homodyne_phase, low_pass

_HIGH_PASS_MM = 4.0  # veins and microbleeds are thinner; slow fields and filter edges are gone
_CLOSING_MM = 5.0  # dark structures thinner than this count
_DARKNESS = 0.1  # least darkness against the surroundings that counts ...
_DARK_SHARE = 95.0  # ... and only this percentile on
_COARSE_MM = 1.0  # grid of the brain mask
_RIM_MM = 4.0  # as thick as the skin and bone that bridge brain and scalp in a mask, and as the rim left out
_BLOCKS = (4, 4, 4)  # blocks per axis of the box about the brain; each gives one vote
_MIN_VOTES = 8
_FINE_VOXELS = (3, 3, 1)  # detail is the difference from the mean of these: mostly noise
_LEAST_RAD, _LARGEST_RAD = 0.02, 1.0  # of high-passed phase that has a side, without veins
_LARGEST_DETAIL = (0.3, 0.5)  # of intensity (relative) and phase (rad): noise, not vessels or edges
_MIN_VOXELS = 5000  # on either side
# Of intensity on phase: a mask to the power n has the slope n / pi per radian on one side, none on the other.
# In simulated heads SWI gave 0.66 to 1.03 (correlation 0.54 to 0.72), magnitudes at most 0.17 (0.18).
_MIN_SLOPE, _MIN_CORRELATION, _MAX_OTHER_SIDE = 0.3, 0.25, 0.7
_MIN_T, _MIN_SHARE, _MIN_R = 3.5, 0.65, 0.06  # simulations without veins reach |r| 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignDecision:
    """The sign of paramagnetic phase in an image as stored."""

    sign: int  # +1: paramagnetic is positive as stored; -1: negative
    confident: bool  # False: the data leave it open, and sign means nothing
    reason: str  # one line for people


def decide_phase_sign(
    phase_rad: np.ndarray,
    magnitude_or_swi: np.ndarray,
    spacing_mm: Sequence[float],
    b0_direction: Sequence[float] = (0.0, 0.0, 1.0),
) -> SignDecision:
    """Find the sign by the phase mask in a susceptibility-weighted image; without a mask by the veins.

    For the latter, high-passed phase is correlated with the field that thin dark structures would make. Each
    of up to 64 blocks of the brain gives one correlation; their mean must stand out from their spread.

    Args:
        phase_rad: (X, Y, Z) in radians, wrapped or high-passed, as stored.
        magnitude_or_swi: (X, Y, Z), any unit.
        spacing_mm: voxel edge lengths along (x, y, z) in mm.
        b0_direction: unit vector of the main field in array axes.

    Returns:
        The decision; not confident where too little tissue, too few veins or calcifications leave it open.
    """
    magnitude = np.asarray(magnitude_or_swi, np.float32)
    inside = _inside_of_brain(magnitude, spacing_mm)
    if not inside.any():
        return SignDecision(sign=1, confident=False, reason="no brain was found")
    masked = _sign_of_mask(phase_rad, magnitude, inside, spacing_mm)
    if masked is not None:
        return masked
    smooth = np.maximum(low_pass(jnp.asarray(magnitude), spacing_mm, 12.0), np.finfo(np.float32).tiny)
    darkest, contrast = _darkness(magnitude, smooth, inside, spacing_mm)

    # the predicted field goes through the same high-pass as the measured phase, or slow fields would not
    # match
    def expected(susceptibility: np.ndarray) -> np.ndarray:
        field = _field(susceptibility, spacing_mm, b0_direction)
        brain = jnp.asarray(inside, jnp.float32)
        return np.asarray(high_pass(jnp.asarray(field), spacing_mm, brain, _HIGH_PASS_MM))

    measured = np.asarray(
        homodyne_phase(jnp.asarray(phase_rad, jnp.float32), jnp.asarray(magnitude), spacing_mm, _HIGH_PASS_MM)
    )
    weights = np.where(inside, np.minimum(magnitude / smooth, 1.0), 0.0)  # phase noise is 1 / signal
    votes = _block_correlations(measured, expected(darkest), expected(contrast), weights)
    if len(votes) < _MIN_VOTES:
        return SignDecision(sign=1, confident=False, reason="too little tissue to tell")
    # A one-sample t test over the blocks, and with it a least effect and a majority: with 64 blocks a trace
    # of contrast between tissues alone could be significant.
    mean, spread = float(votes.mean()), float(votes.std(ddof=1))
    t = mean / max(spread / len(votes) ** 0.5, 1e-6)
    share = float(np.mean(votes > 0))
    evidence = (
        f"phase against the field of thin dark structures: r {mean:+.3f}, t {t:+.1f}, "
        f"{share:.0%} of {len(votes)} blocks positive"
    )
    if abs(t) >= _MIN_T and abs(mean) >= _MIN_R and max(share, 1 - share) >= _MIN_SHARE:
        sign = 1 if mean > 0 else -1
        return SignDecision(sign=sign, confident=True, reason=evidence)
    return SignDecision(sign=1, confident=False, reason=f"the data do not tell: {evidence}")


def _sign_of_mask(
    phase_rad: np.ndarray, image: np.ndarray, inside: np.ndarray, spacing_mm: Sequence[float]
) -> SignDecision | None:
    """The side of phase on which a mask has darkened the image (X, Y, Z); None if there is no such side."""
    # Only the finest detail is compared, which is mostly noise: anatomy makes phase and brightness go
    # together on both sides, a mask makes their noise go together on one side alone.
    filtered = np.asarray(homodyne_phase(jnp.asarray(phase_rad, jnp.float32), jnp.asarray(image), spacing_mm))
    tissue = ndimage.uniform_filter(image, _FINE_VOXELS)
    darkness = np.where(tissue > 0, 1 - image / np.where(tissue > 0, tissue, 1), 0)
    phase_detail = filtered - ndimage.uniform_filter(filtered, _FINE_VOXELS)
    usable = inside & (tissue > 0) & (np.abs(darkness) < _LARGEST_DETAIL[0])
    usable &= (np.abs(phase_detail) < _LARGEST_DETAIL[1]) & (np.abs(filtered) < _LARGEST_RAD)
    slopes, correlations, of_slice = {}, {}, {}
    for side in (1, -1):
        here = usable & (side * filtered > _LEAST_RAD)
        # regression through the origin, as both details have mean 0; of each slice too, since some
        # reconstructions turn the sign from slice to slice
        x, y = np.where(here, side * phase_detail, 0), np.where(here, darkness, 0)
        products, powers = (x * y).sum(axis=(0, 1)), (x * x).sum(axis=(0, 1))
        counts, power = np.count_nonzero(here, axis=(0, 1)), float(powers.sum())
        if counts.sum() < _MIN_VOXELS or not power:
            return None
        slopes[side] = float(products.sum()) / power
        correlations[side] = float(products.sum()) / max((power * float((y * y).sum())) ** 0.5, 1e-12)
        of_slice[side] = np.where(counts < _MIN_VOXELS, np.nan, products / np.maximum(powers, 1e-12))
    sign = max(slopes, key=lambda side: slopes[side])
    other = abs(slopes[-sign])
    if slopes[sign] < _MIN_SLOPE or correlations[sign] < _MIN_CORRELATION:
        return None
    flipped_slices = (of_slice[-sign] > _MIN_SLOPE) & (of_slice[sign] < _MAX_OTHER_SIDE * of_slice[-sign])
    if flipped_slices.any():
        reason = "the mask of some slices lies on the other side of the phase than that of others"
        return SignDecision(sign=1, confident=False, reason=reason)
    if other > _MAX_OTHER_SIDE * slopes[sign]:
        return None
    side_name = "positive" if sign > 0 else "negative"
    reason = (
        f"the image is darkened by a mask where the stored phase is {side_name}: "
        f"{slopes[sign]:.2f} per radian there, {other:.2f} on the other side"
    )
    return SignDecision(sign=sign, confident=True, reason=reason)


def field_direction(affine: np.ndarray) -> tuple[float, float, float]:
    """Unit vector of the main field (RAS z: supine, head first) in the array axes of an affine (4, 4)."""
    columns = affine[:3, :3] / voxel_sizes(affine)
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
    # Tissue eroded by the rim falls apart where only skin and bone bridged brain and scalp. The largest piece
    # is grown back by as much, filled slice by slice, and its rim is left out: skull and scalp are outside.
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


def _darkness(
    magnitude: np.ndarray, smooth: np.ndarray, inside: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """How dark the darkest thin structures are, and the ordinary contrast between tissues, both (X, Y, Z)."""
    # boxes with odd edges are centered on their voxel
    odd = [max(1, int(_CLOSING_MM / spacing) // 2 * 2 + 1) for spacing in spacing_mm]
    # A closing fills what is dark and thinner than its box: by how much, is how dark it was.
    closed = ndimage.grey_closing(magnitude, (odd[0], odd[1], min(odd[2], 3)))
    dark = np.where(inside, (closed - magnitude) / np.maximum(closed, np.finfo(np.float32).tiny), 0.0)
    threshold = max(_DARKNESS, float(np.percentile(dark[inside], _DARK_SHARE)))
    contrast = np.where(inside, np.clip(1.0 - magnitude / smooth, -threshold, threshold), 0.0)
    return np.clip(dark - threshold, 0.0, 0.5), contrast


def _field(
    susceptibility: np.ndarray, spacing_mm: Sequence[float], b0_direction: Sequence[float]
) -> np.ndarray:
    """The field (X, Y, Z) of a susceptibility map: the dipole kernel in k-space, periodic."""
    shape = susceptibility.shape
    axes = [fft.fftfreq(length, spacing) for length, spacing in zip(shape, spacing_mm, strict=True)]
    axes[2] = fft.rfftfreq(shape[2], spacing_mm[2])
    kx, ky, kz = np.meshgrid(*[axis.astype(np.float32) for axis in axes], indexing="ij", sparse=True)
    square = kx**2 + ky**2 + kz**2
    along = kx * b0_direction[0] + ky * b0_direction[1] + kz * b0_direction[2]
    # at k = 0 the kernel depends on the direction of approach; its mean over them is 0
    square[0, 0, 0] = 1.0
    dipole = 1.0 / 3.0 - along**2 / square
    dipole[0, 0, 0] = 0.0
    spectrum = fft.rfftn(susceptibility.astype(np.float32)) * dipole.astype(np.float32)
    return np.asarray(fft.irfftn(spectrum, s=shape), np.float32)


def _block_correlations(
    measured: np.ndarray, expected: np.ndarray, nuisance: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weighted partial correlation, the nuisance held fixed, in each block that is at least half full."""
    # Blocks cut the box about the brain, not the field of view, so that every head has about as many votes.
    # In each, what the nuisance explains of both sides is taken away before they are compared.
    spans = [np.arange(axis.min(), axis.max() + 1) for axis in np.nonzero(weights)]
    cuts = [np.array_split(span, count) for span, count in zip(spans, _BLOCKS, strict=True)]
    votes = []
    for xs, ys, zs in itertools.product(*cuts):
        if not (len(xs) and len(ys) and len(zs)):
            continue
        block = (slice(xs[0], xs[-1] + 1), slice(ys[0], ys[-1] + 1), slice(zs[0], zs[-1] + 1))
        w = weights[block]
        if np.mean(w > 0) < 0.5:
            continue
        a, b, c = (x[block] - np.average(x[block], weights=w) for x in (measured, expected, nuisance))
        power = max(float(np.sum(w * c * c)), float(np.finfo(np.float32).tiny))
        a, b = (x - c * (np.sum(w * x * c) / power) for x in (a, b))
        norm = np.sqrt(np.sum(w * a * a) * np.sum(w * b * b))
        if norm > 0:
            votes.append(float(np.sum(w * a * b) / norm))
    return np.array(votes)
