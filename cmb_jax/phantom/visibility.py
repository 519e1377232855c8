"""Whether a reader would see a lesion on the simulated SWI: the rule of what counts as a microbleed.

A lesion counts where a reader would see it, whatever the tier. That is judged by its detectability, the d'
of a matched filter that knows place and size: contrast over the spread of the surroundings, times the square
root of the number of voxels in its cross-section (white noise averages out over them). An ideal observer
needs a d' of 5 to name a spot for sure among the many places of a picture (Rose 1973, Vision: Human and
Electronic), and people use about half of the information that such an observer has (Burgess et al. 1981,
Science 214:93), which costs a factor sqrt(2): `MIN_DETECTABILITY` is 5 sqrt(2), about 7.

The matched filter takes the structure of the surroundings for noise. A reader does not: a black spot is seen
between sulci and near a cavity, where the surroundings vary. So noise alone sets the limit for a spot that is
darker by `OBVIOUS_CONTRAST` or more.

All other simulated microbleeds, those in a signal void and those at the border of what can be seen among
them, are ignored: neither truth nor negative.

At the end of the file: spots of a finished scan that look like microbleeds but are not, which tell how hard
a subject is.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.types import MimicKind

MIN_DETECTABILITY = 5.0 * math.sqrt(2.0)
"""d' from which a reader sees a lesion."""

MIN_CONTRAST = 0.05
"""Darker than its surroundings by less than this share of them, a spot is not seen however large it is."""

OBVIOUS_CONTRAST = 0.5
"""Darker by this share than its surroundings, a spot is seen whatever their structure."""

MIN_SURROUNDINGS = 0.4
"""Where the surroundings are darker than this share of the brain's median, near air-filled cavities, the
signal is lost: a dark spot in the dark is nobody's microbleed."""

_RING_MM = (1.0, 3.5)  # beyond the apparent radius
_WINDOW_MM = 9.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """How well each of N lesions shows."""

    cnr: jax.Array  # (N,) surroundings minus core over the noise of one channel; below 0: it is brighter
    contrast: jax.Array  # (N,) surroundings minus core over the surroundings
    surroundings: jax.Array  # (N,) median SWI around it
    detectability: jax.Array  # (N,) d' of the matched filter, see the head of this file
    against_noise: jax.Array  # (N,) d' if the surroundings were uniform


@functools.partial(jax.jit, static_argnames=("grid",))
def visibility(
    swi: jax.Array,
    tissue: jax.Array,
    sigma: jax.Array,
    center_mm: jax.Array,
    apparent_mm: jax.Array,
    *,
    grid: Grid,
) -> Visibility:
    """Contrast-to-noise ratio, surroundings and detectability of lesions.

    Core: voxels within half the apparent radius, the nearest voxel at least. Surroundings: `tissue` (brain
    without CSF and lesions) in the same slices, as a reader looks at them, 1 to 3.5 mm beyond the apparent
    radius, or all of that ring where none is left. Their level is the median and their spread 1.4826 times
    the median absolute deviation, at least the noise, so that a vessel or a lesion beside costs nothing. The
    cross-section is that of the apparent diameter in the slice, one voxel at least.

    swi and tissue (X, Y, Z); sigma () noise of one channel, in units of swi; center_mm (N, 3) image frame;
    apparent_mm (N,) diameters.
    """
    # Every lesion is looked at in a window of one static size, which keeps the program small and its shapes
    # fixed.
    spacing = jnp.asarray(grid.spacing_mm)
    size = [
        min(n, 2 * int(np.ceil(_WINDOW_MM / h)) + 1) for n, h in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    steps = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in size), indexing="ij"), axis=-1)
    in_slice_mm2 = grid.spacing_mm[0] * grid.spacing_mm[1]

    def one(center: jax.Array, diameter: jax.Array) -> Visibility:
        position = (center - jnp.asarray(grid.origin_mm)) / spacing
        start = jnp.round(position).astype(jnp.int32) - jnp.asarray(size) // 2
        start = jnp.clip(start, 0, jnp.asarray(grid.shape) - jnp.asarray(size))
        values = jax.lax.dynamic_slice(swi, start, size)
        solid = jax.lax.dynamic_slice(tissue, start, size)
        offset = (start + steps - position) * spacing
        distance = jnp.linalg.norm(offset, axis=-1)
        # at least the nearest voxel (and slice, below); 1e-4 mm is for rounding
        core = distance <= jnp.maximum(diameter / 4, jnp.min(distance) + 1e-4)
        through = jnp.abs(offset[..., 2])
        same_slices = through <= jnp.maximum(diameter / 4, jnp.min(through) + 1e-4)
        beyond = jnp.linalg.norm(offset[..., :2], axis=-1) - diameter / 2
        shell = same_slices & (beyond >= _RING_MM[0]) & (beyond <= _RING_MM[1])
        ring = shell & solid
        ring = jnp.where(jnp.any(ring), ring, shell)

        level = _median(values, ring)
        spread = jnp.maximum(1.4826 * _median(jnp.abs(values - level), ring), sigma)
        darker = level - jnp.sum(values * core) / jnp.maximum(jnp.sum(core), 1)
        voxels = jnp.maximum(jnp.pi * diameter**2 / 4 / in_slice_mm2, 1.0)
        return Visibility(
            cnr=darker / sigma,
            contrast=darker / jnp.maximum(level, 1e-12),
            surroundings=level,
            detectability=darker / spread * jnp.sqrt(voxels),
            against_noise=darker / sigma * jnp.sqrt(voxels),
        )

    # one after another: in a batch, the windows and their sorts would take much memory
    return jax.lax.map(lambda pair: one(*pair), (center_mm, apparent_mm))


def _median(values: jax.Array, where: jax.Array) -> jax.Array:
    """Median of the values at `where`, 0 if there are none."""
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(where, values, jnp.nan)))


def is_seen(seen: Visibility, typical: jax.Array) -> jax.Array:
    """(N,) whether a reader would see each lesion.

    typical: () median SWI of the brain, in the units that `seen` was measured in.
    """
    d_prime = jnp.where(seen.contrast >= OBVIOUS_CONTRAST, seen.against_noise, seen.detectability)
    return (
        (d_prime >= MIN_DETECTABILITY)
        & (seen.contrast >= MIN_CONTRAST)
        & (seen.surroundings >= MIN_SURROUNDINGS * typical)
    )


SPOT_MM = 5.0  # edge of the cube in which a spot is the darkest voxel
SURROUNDINGS_MM = 9.0  # edge of the cube that it is compared with
DARKER = 0.7  # a spot is darker than this share of its surroundings
CLEARER = 5.0  # and stands out by so many standard deviations of the texture and noise of the brain
_SMOOTHING_MM = 0.5  # sigma, against noise
NAMED_MM = 2.0  # a mimic's label within this distance gives the spot its name
_KEEP_OFF_MM = 4.0  # from microbleeds


def mimic_candidates(
    swi: np.ndarray,
    spacing_mm: tuple[float, float, float],
    region_code: np.ndarray,
    cmb_labels: np.ndarray,
    mimic_labels: np.ndarray,
) -> Mapping[MimicKind, int]:
    """Dark spots on mimics, by kind; `MimicKind.NONE` counts those on nothing that is labeled.

    A spot is a voxel of the brain, sulci included, that is the darkest within a cube of `SPOT_MM`, has less
    than `DARKER` of the mean signal of the brain in the cube of `SURROUNDINGS_MM` around that one, stands out
    by `CLEARER` standard deviations (robust: median absolute deviation from the local mean), and lies more
    than 4 mm from every microbleed. All arrays (X, Y, Z) on one grid.
    """
    spacing = np.array(spacing_mm)

    def voxels(edge_mm: float) -> tuple[int, ...]:
        return tuple(2 * int(n) + 1 for n in np.floor(edge_mm / 2 / spacing))

    # Means over boxes are running sums: the surroundings are a large box less the small one around the spot,
    # and both are divided by the brain voxels that they hold, so that what lies outside the brain does not
    # count.
    brain = (region_of(region_code) > Region.OUTSIDE) & (region_of(region_code) != Region.VENTRICLE)
    image = swi.astype(np.float32)
    smooth = ndimage.gaussian_filter(image, _SMOOTHING_MM / spacing)
    darkest = smooth == ndimage.minimum_filter(smooth, voxels(SPOT_MM))
    near, far = voxels(SPOT_MM), voxels(SURROUNDINGS_MM)
    weight = brain.astype(np.float32)
    total = [ndimage.uniform_filter(image * weight, n) * np.prod(n) for n in (far, near)]
    count = [ndimage.uniform_filter(weight, n) * np.prod(n) for n in (far, near)]
    around = (total[0] - total[1]) / np.maximum(count[0] - count[1], 1.0)
    spread = 1.4826 * np.median(np.abs(smooth - around)[brain]) if brain.any() else 0.0
    dark = (smooth < DARKER * around) & (around - smooth > CLEARER * spread)
    spot = darkest & brain & dark & (count[0] - count[1] > 0.3 * np.prod(far))
    index = np.argwhere(spot)
    if (cmb_labels > 0).any():
        away = ndimage.distance_transform_edt(cmb_labels == 0, sampling=spacing_mm)
        index = index[away[tuple(index.T)] > _KEEP_OFF_MM]
    names = np.zeros(len(index), int)
    if (mimic_labels > 0).any():
        away, nearest = ndimage.distance_transform_edt(
            mimic_labels == 0, sampling=spacing_mm, return_indices=True
        )
        at = tuple(index.T)
        kinds = mimic_labels[tuple(axis[at] for axis in nearest)]
        names = np.where(away[at] <= NAMED_MM, kinds, 0)
    return {MimicKind(k): int(n) for k, n in zip(*np.unique(names, return_counts=True), strict=True)}
