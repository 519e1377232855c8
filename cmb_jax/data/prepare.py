"""From images on the scanner's grid to the two channels that the network sees.

The only place where axes are reversed: outside arrays are (X, Y, Z), the network's (Z, Y, X, C).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.io.volume import Volume, content_bounds
from cmb_jax.scan.swi import low_pass, phase_trust

# Intensity that becomes 1: this percentile of the brain, which lesions, veins and bright rims do not move.
REFERENCE_PERCENTILE = 75.0
MAX_SCALED_INTENSITY = 2.0
_LENGTH_STEP = 32  # sizes are padded to multiples of it, so that few are compiled for
SMALLEST_BOX_MM = 2.0  # the slice thickness hides what is thinner
MARGIN_MM = 8.0  # around the brain, so that lesions at its edge have their surroundings
_FILTER_MARGIN_MM = 12.0  # more for the phase filter alone: beyond it lies 0.1 % of its kernel
# Typical low-passed phase (rad) below which a phase was high-passed before. Raw phase has several radians.
_FILTERED_BELOW_RAD = 0.35


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """The network's view of one scan, cut to the brain."""

    image: np.ndarray  # (Z, Y, X, 2) float16: intensity over brain reference, phase over pi (0 without phase)
    affine: np.ndarray  # (4, 4), working voxel index (x, y, z; integers are voxel centers) -> RAS mm
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    has_phase: bool
    phase_was_filtered: bool = False  # the phase came high-passed, and was not filtered again


def brain_bounds(mask: np.ndarray, spacing_mm: tuple[float, float, float], margin_mm: float) -> np.ndarray:
    """Smallest box around a mask (X, Y, Z), with a margin in mm, inside the array: (3, 2) half-open indices.

    An empty mask gives the whole array.
    """
    bounds = np.array([[0, size] for size in mask.shape])
    if not mask.any():
        return bounds
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        margin = int(np.ceil(margin_mm / spacing_mm[axis]))
        bounds[axis] = max(0, filled[0] - margin), min(mask.shape[axis], filled[-1] + 1 + margin)
    return bounds


@functools.partial(jax.jit, static_argnames="axis")
def _interpolate_axis(data: jax.Array, positions: jax.Array, *, axis: int) -> jax.Array:
    """Linear interpolation of (X, Y, Z) along an axis at fractional indices (N,) inside it."""
    moved = jnp.moveaxis(data, axis, 0)
    low = jnp.floor(positions).astype(jnp.int32)
    high = jnp.minimum(low + 1, moved.shape[0] - 1)
    weight = (positions - low)[:, None, None]
    return jnp.moveaxis(moved[low] * (1 - weight) + moved[high] * weight, 0, axis)


def resample(data: np.ndarray, positions: tuple[np.ndarray, ...]) -> np.ndarray:
    """Separable linear resampling of (X, Y, Z) at fractional indices, one (N,) array per axis; ends held.

    Every head is cut to another size: lengths are padded to multiples of `_LENGTH_STEP` on the way, so that
    few sizes are compiled for. No padded voxel has any weight.
    """
    result = jnp.asarray(_padded(np.asarray(data, np.float32)))
    for axis, (index, size) in enumerate(zip(positions, data.shape, strict=True)):
        if len(index) == size and np.array_equal(index, np.arange(size)):
            continue
        inside = _padded(np.clip(index.astype(np.float32), 0, size - 1))
        result = _interpolate_axis(result, jnp.asarray(inside), axis=axis)
    return np.asarray(result)[tuple(slice(len(index)) for index in positions)]


def _padded(array: np.ndarray) -> np.ndarray:
    return np.pad(array, [(0, -size % _LENGTH_STEP) for size in array.shape])


def working_positions(size: int, native_spacing_mm: float, working_spacing_mm: float) -> np.ndarray:
    """Fractional native indices of the working voxels that cover `size` native voxels.

    Both grids share their outer edge, so no image is shifted by the resampling.
    """
    if abs(native_spacing_mm / working_spacing_mm - 1.0) < 1e-3:
        return np.arange(size, dtype=np.float64)
    count = max(1, round(size * native_spacing_mm / working_spacing_mm))
    return -0.5 + (np.arange(count) + 0.5) * (working_spacing_mm / native_spacing_mm)


@jax.jit
def _high_passed(
    image: jax.Array, spacing_mm: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Cosine and sine of the high-passed phase, its trust and the low-passed phase's typical size in radians.

    The homodyne filter of `swi.homodyne_phase`, left out where the phase has been through one.

    Args:
      image: (X, Y, Z) complex, magnitude in units of the reference tissue.
      spacing_mm: (3,) along (x, y, z).
    """
    low = low_pass(image, spacing_mm)
    size = jnp.abs(low)
    # Whether a phase was high-passed before is seen in what a low-pass leaves of it: nearly nothing if it
    # was, several radians if not. Filtering it once more would weaken lesions too.
    weight = size**2  # of tissue: in noise the mean is small
    background = jnp.sqrt(jnp.sum(weight * jnp.angle(low) ** 2) / jnp.maximum(jnp.sum(weight), 1e-6))
    back = jnp.where(size > 0, jnp.conj(low) / jnp.where(size > 0, size, 1.0), 1.0)
    filtered = jnp.where(background < _FILTERED_BELOW_RAD, image, image * back)
    angle = jnp.angle(filtered)
    return jnp.cos(angle), jnp.sin(angle), phase_trust(filtered, spacing_mm), background


def _phase_channel(
    phase_rad: np.ndarray,
    scaled: np.ndarray,
    spacing_mm: tuple[float, float, float],
    positions: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, bool]:
    """High-passed phase over pi at fractional indices, weighed by trust; whether it came high-passed.

    Cosine and sine are interpolated, because the mean of two angles on either side of a wrap is neither.

    Args:
      phase_rad: (X, Y, Z) radians.
      scaled: (X, Y, Z) intensity in units of the reference tissue.
      spacing_mm: (x, y, z).
      positions: one (N,) array per axis.
    """
    magnitude, radians = _padded(scaled), _padded(np.asarray(phase_rad, np.float32))
    image = magnitude * np.exp(1j * radians).astype(np.complex64)
    *parts, background = _high_passed(image, jnp.asarray(spacing_mm, jnp.float32))
    inside = tuple(slice(size) for size in scaled.shape)
    cosine, sine, trust = (resample(np.asarray(part)[inside], positions) for part in parts)
    return np.arctan2(sine, cosine) / np.float32(np.pi) * trust, float(background) < _FILTERED_BELOW_RAD


def prepare(
    swi: Volume,
    phase_rad: np.ndarray | None,
    brain_mask: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 0.5, 0.5),
) -> PreparedVolume:
    """Crop to the brain, filter the phase, scale both channels and bring them to the working grid.

    Zeros around the image and a positive factor on it change nothing.

    Args:
      swi: susceptibility-weighted (or T2*-weighted magnitude) image, RAS axes.
      phase_rad: (X, Y, Z) phase in radians on the same grid, paramagnetic positive, high-passed or not;
        None gives a zero channel.
      brain_mask: (X, Y, Z) bool on the same grid; empty means that the brain is unknown and all is used.
      spacing_mm: working grid (z, y, x).

    Returns:
      The prepared volume; its affine keeps an oblique scan oblique.
    """
    native = swi.spacing_mm
    content = content_bounds(swi.data)
    bounds, filtered_bounds = (
        _overlap(brain_bounds(brain_mask, native, margin), content)
        for margin in (MARGIN_MM, MARGIN_MM + _FILTER_MARGIN_MM)
    )
    # The phase is filtered in a wider box than is kept, so that no face of the box shows in the filtered
    # phase.
    around = tuple(slice(low, high) for low, high in filtered_bounds)
    positions = tuple(
        working_positions(high - low, native[axis], spacing_mm[2 - axis]) + (low - filtered_bounds[axis, 0])
        for axis, (low, high) in enumerate(bounds)
    )

    inside = swi.data[brain_mask] if brain_mask.any() else swi.data[swi.data > 0]
    reference = float(np.percentile(inside, REFERENCE_PERCENTILE)) if inside.size else 1.0
    scaled = np.asarray(swi.data[around], np.float32) / np.float32(reference if reference > 0 else 1.0)
    scaled = np.clip(scaled, 0.0, MAX_SCALED_INTENSITY)
    intensity = resample(scaled, positions)

    phase, was_filtered = np.zeros_like(intensity), False
    if phase_rad is not None:
        phase, was_filtered = _phase_channel(phase_rad[around], scaled, native, positions)

    # From here on axes run (z, y, x, channel). The affine still maps (x, y, z) of the working grid: its first
    # voxel and its step are read off the positions that were sampled.
    image = np.stack([intensity, phase], axis=-1).transpose(2, 1, 0, 3)
    origin = np.array([index[0] for index in positions]) + filtered_bounds[:, 0]
    step = np.array([index[1] - index[0] if len(index) > 1 else 1.0 for index in positions])
    to_native = np.eye(4)
    to_native[:3, :3] = np.diag(step)
    to_native[:3, 3] = origin
    return PreparedVolume(
        image=image.astype(np.float16),
        affine=swi.affine @ to_native,
        spacing_mm=spacing_mm,
        has_phase=phase_rad is not None,
        phase_was_filtered=was_filtered,
    )


def _overlap(bounds: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The intersection of two boxes (3, 2); the second box where it is empty."""
    low, high = np.maximum(bounds[:, 0], other[:, 0]), np.minimum(bounds[:, 1], other[:, 1])
    return np.stack([low, high], axis=1) if (low < high).all() else other


def edge_coordinates(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """RAS mm (N, 3) to edge coordinates (z, y, x) of the working grid, where voxel i spans [i, i + 1)."""
    inverse = np.linalg.inv(affine)
    index = apply_affine(inverse, points_mm)
    return index[:, ::-1] + 0.5


def points_from_edges(centers_zyx: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Edge coordinates (N, 3) in (z, y, x) of the working grid to RAS mm (N, 3)."""
    index = (centers_zyx - 0.5)[:, ::-1]
    return apply_affine(affine, index)


def boxes_of_lesions(
    centers_mm: np.ndarray, diameters_mm: np.ndarray, prepared: PreparedVolume
) -> np.ndarray:
    """Cubic boxes (N, 6) in working voxels round lesions with RAS centers (N, 3) and diameters (N,) in mm.

    No edge is shorter than `SMALLEST_BOX_MM`.
    """
    if len(centers_mm) == 0:
        return np.zeros((0, 6), np.float32)
    center = edge_coordinates(centers_mm, prepared.affine)
    half = np.maximum(diameters_mm, SMALLEST_BOX_MM)[:, None] / np.array(prepared.spacing_mm) / 2
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)


def boxes_on_working_grid(boxes: np.ndarray, affine: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
    """Boxes (N, 6) in voxels of a scan's own grid, in voxels of the working grid, float32.

    Both grids have parallel axes, so that corners go to corners. Edges shorter than `SMALLEST_BOX_MM`
    are lengthened about their middle.

    Args:
      boxes: (z0, y0, x0, z1, y1, x1), half-open.
      affine: (4, 4) of the scan's grid, voxel index (x, y, z) -> RAS mm.
      prepared: the prepared scan.
    """
    low, high = (
        edge_coordinates(points_from_edges(corner, affine), prepared.affine)
        for corner in (boxes[:, :3], boxes[:, 3:])
    )
    middle = (low + high) / 2
    half = np.maximum((high - low) / 2, SMALLEST_BOX_MM / np.array(prepared.spacing_mm) / 2)
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)
