"""Brain regions of any SWI, T2*-weighted or magnitude volume, and whether they can be trusted.

The network labels a 2 mm grid along the volume's own axes (`cmb_jax.regions.grid`). Its labels are cleaned,
and checks decide whether the map is trusted. Where the field of view is too small to tell where in the brain
it lies, an intensity threshold gives a brain mask and the map is not trusted: zones must then not be
reported. Arrays of the grid are (Z, Y, X), x to the right.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import ndimage

from cmb_jax.anatomy.regions import (
    NUM_REGIONS,
    ZONE_OF_REGION,
    Region,
    RegionMap,
    Side,
    Zone,
    encode,
    region_of,
)
from cmb_jax.detector.network import Template
from cmb_jax.io.volume import Volume, content_bounds
from cmb_jax.io.weights import load_weights
from cmb_jax.regions import grid
from cmb_jax.regions.network import RegionNet

BUNDLED_WEIGHTS = Path(__file__).parent.parent / "weights" / "region.safetensors"

_SMALLEST_VIEW_MM = 60.0  # below this along any axis a volume does not show where in the brain it lies
# A second pass is worth its time from this shift on. Shifts are whole millimeters along each axis: just under
# 3 mm, so that the rounding of an affine never decides.
_RECENTER_MM = 2.99

# (Z, Y, X) image, weights -> region, region without OUTSIDE, side logit
_Labeler = Callable[[np.ndarray, Any], tuple[jax.Array, jax.Array, jax.Array]]

BRAIN_CM3 = (700.0, 2400.0)  # intracranial volumes of adults, with room to spare
SMALLEST_ZONE_CM3 = {Zone.LOBAR: 300.0, Zone.DEEP: 40.0, Zone.INFRATENTORIAL: 50.0}
SIDE_SHARE = (0.4, 0.6)  # of the brain that may lie on the right
LARGEST_CUT_CM2 = 50.0  # a centimeter of the vertex or of the cerebellum may be missing

# Wrong headers rotate a head by 180 degrees or flip it: axes (Z, Y, X) to flip, and what the head then is.
TURNS: dict[str, tuple[int, ...]] = {"upside down": (0,), "back to front": (1,), "turned over": (0, 1)}
# Least margin of the network's confidence over that on the flipped image. Images that are not heads have
# none.
LEAST_MARGIN = 0.006

_VOXEL_CM3 = grid.GRID_MM**3 / 1000
_FACE_CM2 = grid.GRID_MM**2 / 100
_FACES = (("bottom", "top"), ("back", "front"), ("left", "right"))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected part of a mask (ties: the first); all False when the mask is empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask, bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def clean_labels(
    region: np.ndarray, inner: np.ndarray, side_logit: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One brain without holes, and one connected half for each side.

    Args:
        region: region with the highest logit.
        inner: region with the highest logit, OUTSIDE left out; fills the holes.
        side_logit: positive = right.
        view: bool, inside the field of view.

    Returns:
        region and side, int arrays; both 0 outside the brain.
    """
    found = (region != Region.OUTSIDE) & view
    # Opening cuts thin bridges to the eyes and the neck; what touches the opened brain comes back.
    core = largest_component(ndimage.binary_opening(found))
    brain = ndimage.binary_dilation(core) & found
    brain = ndimage.binary_fill_holes(brain) & view
    cleaned = np.where(brain, np.where(region == Region.OUTSIDE, inner, region), Region.OUTSIDE)
    return cleaned, split_sides(side_logit, brain)


def split_sides(side_logit: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Side of every brain voxel: the sign of the smoothed logit, islands given to the other side."""
    # The logit is near 0 along the midline, where single voxels would flicker from side to side. Smoothed
    # within the brain alone (divided by the smoothed mask), it crosses 0 on one surface.
    weight = ndimage.gaussian_filter(brain.astype(np.float32), 2.0)
    smooth = ndimage.gaussian_filter(np.where(brain, np.clip(side_logit, -8, 8), 0.0).astype(np.float32), 2.0)
    right = brain & (smooth / np.maximum(weight, 1e-6) > 0)
    left = brain & ~right
    right_island = right & ~largest_component(right)
    left_island = left & ~largest_component(left)
    right = (right & ~right_island) | left_island
    return np.where(right, Side.RIGHT, np.where(brain, Side.LEFT, Side.NONE))


def trust_messages(region: np.ndarray, side: np.ndarray, view: np.ndarray) -> tuple[str, ...]:
    """Reasons not to report the zones of this map, one line each; empty if there are none.

    Args:
        region: cleaned regions.
        side: cleaned sides.
        view: bool, inside the field of view (a box).
    """
    brain = region != Region.OUTSIDE
    volume = float(brain.sum() * _VOXEL_CM3)
    messages = []
    if not BRAIN_CM3[0] <= volume <= BRAIN_CM3[1]:
        messages.append(
            f"The brain found measures {volume:.0f} cm3; "
            f"{BRAIN_CM3[0]:.0f} to {BRAIN_CM3[1]:.0f} are plausible."
        )
    for face, area in _cut_areas(brain, view).items():
        if area > LARGEST_CUT_CM2:
            messages.append(
                f"The field of view is partial: it cuts the brain at the {face} "
                f"({area:.0f} cm2 lie on its border)."
            )
    for zone, smallest in SMALLEST_ZONE_CM3.items():
        size = float((ZONE_OF_REGION[region] == zone).sum() * _VOXEL_CM3)
        if size < smallest:
            messages.append(
                f"Only {size:.0f} cm3 of the {zone.name.lower()} zone were found; "
                f"at least {smallest:.0f} are expected."
            )
    if volume > 0:
        share = float((side == Side.RIGHT).sum() / brain.sum())
        if not SIDE_SHARE[0] <= share <= SIDE_SHARE[1]:
            messages.append(
                f"{100 * share:.0f} % of the brain were labeled right; the two sides should be about equal."
            )
        elif _mean_x(side == Side.RIGHT) < _mean_x(side == Side.LEFT):
            messages.append("Left and right were found on the wrong sides of each other.")
    return tuple(messages)


def doubt_messages(confidence: float, turned: Mapping[str, float]) -> tuple[str, ...]:
    """Reasons to doubt an image or its header, one line each; empty if there are none.

    Args:
        confidence: of the network in the brain that it found, 0 to 1.
        turned: the same for the image flipped as in `TURNS`.
    """
    best = max(turned, key=lambda name: turned[name])
    margin = confidence - turned[best]
    if margin >= LEAST_MARGIN:
        return ()
    if margin <= -LEAST_MARGIN:
        return (f"The head seems to be {best}: check the orientation in the image's header.",)
    return ("This does not look like a head: the region network knows it as well turned as it is.",)


def _cut_areas(brain: np.ndarray, view: np.ndarray) -> dict[str, float]:
    """Area (cm2) of the brain on each face of the field of view."""
    areas = {}
    for axis, names in enumerate(_FACES):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(view.any(axis=others))
        if inside.size:
            for name, index in zip(names, inside[[0, -1]], strict=True):
                areas[name] = float(np.take(brain, index, axis=axis).sum() * _FACE_CM2)
    return areas


def _mean_x(mask: np.ndarray) -> float:
    return float(np.nonzero(mask)[2].mean())


def intensity_mask(image: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Tissue by Otsu's threshold (1979) on the smoothed image; without air, all that is not dark.

    Args:
        image: intensities, 0 outside the field of view.
        view: bool, inside the field of view.
    """
    weight = ndimage.gaussian_filter(view.astype(np.float32), 1.0)
    smooth = ndimage.gaussian_filter(np.where(view, image, 0).astype(np.float32), 1.0) / np.maximum(
        weight, 1e-6
    )
    values = smooth[view]
    if values.size == 0 or values.max() <= 0:
        return np.zeros_like(view)
    counts, edges = np.histogram(values, 128)
    centers = (edges[:-1] + edges[1:]) / 2
    # The variance between the two classes, for all thresholds at once: running sums give the size and the
    # mean of what lies below each edge, and the rest lies above.
    below = np.cumsum(counts)
    total, first = below[-1], np.cumsum(counts * centers)
    above = total - below
    mean_below = first / np.maximum(below, 1)
    mean_above = (first[-1] - first) / np.maximum(above, 1)
    best = int(np.argmax(below * above * (mean_above - mean_below) ** 2))
    # Two classes that differ by less than this are two tissues, or tissue and veins, not tissue and air.
    has_background = mean_below[best] < 0.35 * mean_above[best]
    threshold = edges[best + 1] if has_background else 0.25 * float(np.median(values))
    return ndimage.binary_fill_holes(largest_component((smooth > threshold) & view)) & view


def predict_regions(volume: Volume, weights: Path | None = None) -> RegionMap:
    """Label the regions and sides of a brain.

    The volume is resampled to the 2 mm grid, centered on the head's foreground and then, where that lies
    elsewhere, on the brain that the first pass found. Each pass averages the volume and its mirror image.

    Args:
        volume: magnitude, T2*-weighted or SWI; any orientation and spacing.
        weights: file of region weights; default: those that come with the package.

    Returns:
        Region codes on the 2 mm grid, whose affine is in RAS mm. `trusted` is False, with the reasons in
        `messages`, when the field of view is small or cuts the brain, when volumes are implausible, or when
        the network is more confident on the flipped image, or on neither. Left-right mirroring cannot be
        detected. In a small field of view all tissue is labeled deep white matter without side, as a
        placeholder for "brain".

    Raises:
        UserError: the weights file is missing, damaged or of another network.
    """
    given, bounds = volume, content_bounds(volume.data)
    volume = volume.cut(bounds)  # zeros around the head decide nothing
    center = grid.foreground_center(volume.data, volume.affine)
    extent = np.array(volume.shape) * volume.spacing_mm
    if extent.min() < _SMALLEST_VIEW_MM:
        size = " x ".join(f"{edge:.0f}" for edge in extent)
        return _by_intensity(
            volume,
            (np.array(volume.shape) - 1) / 2,
            f"The field of view is small ({size} mm): where in the brain it lies cannot be told.",
        )
    params, _ = load_weights(weights or BUNDLED_WEIGHTS, expected=_template().shapes())
    region, side, _ = _label(volume, center, params)
    found = np.argwhere(region != Region.OUTSIDE)
    if len(found):
        middle = (found.min(axis=0) + found.max(axis=0)) / 2
        shift = (middle - (np.array(grid.GRID_SHAPE) - 1) / 2)[::-1]  # (x, y, z) in grid voxels
        to_volume = np.linalg.inv(volume.affine) @ grid.grid_affine(volume.affine, center)
        shift_voxels = to_volume[:3, :3] @ shift
        if np.linalg.norm(shift_voxels * volume.spacing_mm) > _RECENTER_MM:
            center = center + shift_voxels
            region, side, _ = _label(volume, center, params)
    # the zeros count as field of view here: a brain that ends where they begin was stripped, not cut
    view = grid.field_of_view(given.shape, given.affine, center + bounds[:, 0])
    messages = (*trust_messages(region, side, view), *_doubts(volume, center, params))
    if not (region != Region.OUTSIDE).any():
        return _by_intensity(volume, center, "No brain was recognized.")
    return RegionMap(
        code=np.ascontiguousarray(encode(region, side).transpose(2, 1, 0)),
        affine=grid.grid_affine(volume.affine, center),
        trusted=not messages,
        messages=messages,
    )


def brain_mask_on(volume: Volume, region_map: RegionMap) -> np.ndarray:
    """(X, Y, Z) bool on the volume's grid: the space inside the skull, CSF included."""
    return region_of(region_code_on(volume, region_map)) != Region.OUTSIDE


def region_code_on(volume: Volume, region_map: RegionMap) -> np.ndarray:
    """(X, Y, Z) uint8 region codes on the volume's grid, by nearest neighbor; 0 beyond the map."""
    to_map = np.linalg.inv(region_map.affine) @ volume.affine
    matrix, offset = to_map[:3, :3], to_map[:3, 3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-6):
        x, y, z = (
            _nearest(matrix[a, a] * np.arange(volume.shape[a]) + offset[a], region_map.code.shape[a])
            for a in range(3)
        )
        padded = np.pad(region_map.code, ((0, 1),) * 3)
        return padded[np.ix_(x, y, z)]
    return ndimage.affine_transform(
        region_map.code, matrix, offset, output_shape=volume.shape, order=0, mode="grid-constant"
    )


def _nearest(position: np.ndarray, length: int) -> np.ndarray:
    """Nearest index of each position; `length` (the padding) beyond the ends."""
    index = np.floor(position + 0.5).astype(np.int64)
    return np.where((index >= 0) & (index < length), index, length)


def _by_intensity(volume: Volume, center: np.ndarray, message: str) -> RegionMap:
    """An untrusted map whose mask is by intensity; its label is a placeholder."""
    view = grid.field_of_view(volume.shape, volume.affine, center)
    mask = intensity_mask(grid.to_grid(volume.data, volume.affine, center), view)
    region = np.where(mask, Region.DEEP_WHITE_MATTER, Region.OUTSIDE)
    messages = (message, "The brain mask is by intensity alone.")
    return RegionMap(
        code=np.ascontiguousarray(encode(region, np.full_like(region, Side.NONE)).transpose(2, 1, 0)),
        affine=grid.grid_affine(volume.affine, center),
        trusted=False,
        messages=messages if mask.any() else (*messages, "The volume shows no tissue."),
    )


def _label(volume: Volume, center: np.ndarray, params: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cleaned region and side and the field of view, (Z, Y, X) on the grid around `center`."""
    view = grid.field_of_view(volume.shape, volume.affine, center)
    image = grid.to_grid(volume.data, volume.affine, center)
    region, inner, side_logit = (np.asarray(a) for a in _labeler()(image, params))
    region, side = clean_labels(region, inner, side_logit, view)
    return region, side, view


def _doubts(volume: Volume, center: np.ndarray, params: Any) -> tuple[str, ...]:
    """Reasons to doubt the image or its header by the network's confidence."""
    image = grid.to_grid(volume.data, volume.affine, center)
    turned = {name: float(_confidence()(np.flip(image, axes), params)) for name, axes in TURNS.items()}
    return doubt_messages(float(_confidence()(image, params)), turned)


@functools.cache
def _confidence() -> Callable[[np.ndarray, Any], jax.Array]:
    """Image (Z, Y, X), weights -> mean over the brain found of the highest probability of a region."""
    template = _template()

    @jax.jit
    def confidence(image: jax.Array, params: Any) -> jax.Array:
        logits = template.bind(params)(grid.normalize(image)[None, ..., None])[0, ..., :NUM_REGIONS]
        brain = jnp.argmax(logits, axis=-1) != Region.OUTSIDE
        highest = jnp.max(jax.nn.softmax(logits), axis=-1)
        return jnp.sum(highest * brain) / jnp.maximum(jnp.sum(brain), 1)

    return confidence


@functools.cache
def _template() -> Template[RegionNet]:
    return Template.of(lambda: RegionNet(nnx.Rngs(0)))


@functools.cache
def _labeler() -> _Labeler:
    template = _template()

    @jax.jit
    def label(image: jax.Array, params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = template.bind(params)
        image = grid.normalize(image)[None, ..., None]
        logits = model(image)[0]
        mirrored = model(image[:, :, :, ::-1])[0, :, :, ::-1]
        # The network's last layer labels the eight voxels of a cell independently; smoothing makes them
        # agree.
        regions = _smooth(logits[..., :NUM_REGIONS] + mirrored[..., :NUM_REGIONS])
        # in the mirror image left is right: the logit of the side changes its sign, those of regions do not
        side = logits[..., NUM_REGIONS] - mirrored[..., NUM_REGIONS]
        inner = jnp.argmax(regions[..., 1:], axis=-1) + 1
        return jnp.argmax(regions, axis=-1), inner, side

    return label


def _smooth(maps: jax.Array) -> jax.Array:
    """Weights 1/4, 1/2, 1/4 along each axis of (Z, Y, X, C)."""
    for axis in range(3):
        ends = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(maps, ends, mode="edge")
        before = jax.lax.slice_in_dim(padded, 0, maps.shape[axis], axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, None, axis=axis)
        maps = 0.5 * maps + 0.25 * (before + after)
    return maps
