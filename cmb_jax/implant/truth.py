"""Lesions in a scan: what they do to its signal, and their truth as labels and table."""

import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.anatomy.regions import ZONE_OF_REGION, region_of, side_of
from cmb_jax.implant.effect import effect_of_groups
from cmb_jax.implant.lesions import Lesions
from cmb_jax.implant.scan import Brain, Scan
from cmb_jax.phantom.field import phase_per_ppm
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.render import MIN_TUBE_LABEL_MM, draw_labels, stamp_half_width
from cmb_jax.phantom.types import CMB_KIND, LesionRow, place_names, truth_rows
from cmb_jax.phantom.visibility import visibility
from cmb_jax.scan.phase_sign import field_direction
from cmb_jax.scan.swi import susceptibility_weighted

UNKNOWN = "unknown"
"""Region, side and zone of a lesion where the brain's regions cannot be told."""


def put_in(
    scan: Scan, brain: Brain, bodies: Lesions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[LesionRow]]:
    """Gain and phase shift of the echoes (E, X, Y, Z), instance labels and kinds (X, Y, Z), truth rows."""
    gain, shift = effect_of_groups(
        [bodies.implants(rows) for rows in bodies.groups()],
        scan.te_ms,
        scan.b0_t,
        scan.sign.sign,
        field_direction(scan.like.affine),
        scan.like.shape,
        scan.like.spacing_mm,
    )
    apparent = bodies.apparent_mm(max(scan.te_ms), scan.b0_t)
    labels, kinds = truth_labels(bodies, apparent, scan.grid)
    tissue = (brain.mask if brain.solid is None else brain.solid) & (labels == 0) & (kinds == 0)
    cnr = _contrast_to_noise(scan, brain, bodies, apparent, gain[scan.last], shift[scan.last], tissue)
    index = bodies.center_mm / np.array(scan.like.spacing_mm)
    center, ids = apply_affine(scan.like.affine, index), np.arange(1, len(bodies) + 1)
    sizes = (2 * bodies.radius_mm, apparent, bodies.chi_ppm, cnr)
    rows = truth_rows(ids, bodies.kind, center, *sizes, _places(brain, index))
    return gain, shift, labels, kinds, rows


def _places(brain: Brain, index: np.ndarray) -> list[tuple[str, str, str]]:
    """Region, side and zone at voxel indices (N, 3)."""
    if brain.code is None:
        return [(UNKNOWN,) * 3] * len(index)
    codes = brain.code[tuple(np.rint(index).astype(int).T)].tolist()
    return [place_names(region_of(c), side_of(c), ZONE_OF_REGION[region_of(c)]) for c in codes]


def changes(scan: Scan, brain: Brain, bodies: Lesions) -> np.ndarray:
    """(N,) how much each lesion by itself changes the last echo's signal, over the noise.

    At its poles a ball turns the phase by 2/3 of its susceptibility's; one smaller than a voxel does so in a
    part of it.
    """
    signal = scan.magnitude[scan.last]
    noise = noise_sd(signal, brain.mask)
    if noise <= 0:
        return np.full(len(bodies), np.inf)
    per_ppm = float(phase_per_ppm(jnp.float32(max(scan.te_ms)), jnp.float32(scan.b0_t)))
    turn = 2 / 3 * per_ppm * np.abs(bodies.chi_ppm)
    share = np.minimum(4 / 3 * np.pi * bodies.radius_mm**3 / np.prod(scan.like.spacing_mm), 1.0)
    return np.minimum(turn, 2.0) * share * float(np.median(signal[brain.mask])) / noise


def outside_brain(scan: Scan, brain: Brain, bodies: Lesions, masked: bool) -> list[str]:
    """A warning about lesions that do not lie in the brain, whose mask was given if `masked`."""
    index = np.rint(bodies.center_mm / np.array(scan.like.spacing_mm)).astype(int)
    beyond = np.flatnonzero(~brain.mask[tuple(index.T)])
    if not len(beyond):
        return []
    what = "the given brain mask" if masked else "what was taken for brain"
    return [f"lesions {', '.join(str(i + 1) for i in beyond)} of truth.csv lie outside {what}"]


def truth_labels(lesions: Lesions, apparent_mm: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Apparent extent of the microbleeds as their ids (uint16) and of the mimics as their kinds (uint8).

    apparent_mm (N,); grid: of the volume, in array mm. Each (X, Y, Z).
    """
    ids = jnp.arange(1, len(lesions) + 1)
    bleed = lesions.kind == CMB_KIND
    labels = jnp.zeros(grid.shape, jnp.uint16)
    mimics = jnp.zeros(grid.shape, jnp.uint8)
    ball = lesions.length_mm == 0
    balls = np.flatnonzero(ball)
    if len(balls):
        half = stamp_half_width(float(apparent_mm[ball].max()) / 2, grid.spacing_mm)
        center = jnp.asarray(lesions.center_mm[balls], jnp.float32)
        radii = jnp.asarray(np.repeat(apparent_mm[balls, None] / 2, 3, axis=1), jnp.float32)
        labels = draw_labels(labels, grid, center, radii, jnp.where(bleed[balls], ids[balls], 0), half)
        kinds = jnp.where(bleed[balls], 0, jnp.asarray(lesions.kind[balls]))
        mimics = draw_labels(mimics, grid, center, radii, kinds, half)
    for row in np.flatnonzero(~ball):
        steps = 1 + int(np.ceil(lesions.length_mm[row] / min(grid.spacing_mm)))
        along = np.linspace(-0.5, 0.5, steps)[:, None] * (lesions.length_mm[row] * lesions.direction[row])
        radius = max(float(lesions.radius_mm[row]), MIN_TUBE_LABEL_MM, max(grid.spacing_mm[:2]) / 2)
        mimics = draw_labels(
            mimics,
            grid,
            jnp.asarray(lesions.center_mm[row] + along, jnp.float32),
            jnp.full((steps, 3), radius),
            jnp.full(steps, int(lesions.kind[row])),
            stamp_half_width(radius, grid.spacing_mm),
        )
    return np.asarray(labels), np.asarray(jnp.where(labels > 0, 0, mimics).astype(jnp.uint8))


def noise_sd(magnitude: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the noise of a magnitude image (X, Y, Z) within a mask, in its own unit.

    From the median of |a - b - c + d| over in-plane blocks of four voxels, which structure hardly reaches:
    its standard deviation is twice that of one voxel. An image that was interpolated has less.
    """
    m = np.asarray(magnitude, np.float64)
    cross = np.abs(m[1:, 1:] - m[1:, :-1] - m[:-1, 1:] + m[:-1, :-1])
    inside = mask[1:, 1:] & mask[:-1, :-1]
    return float(1.4826 * np.median(cross[inside]) / 2) if inside.any() else 0.0


def _contrast_to_noise(
    scan: Scan,
    brain: Brain,
    bodies: Lesions,
    apparent_mm: np.ndarray,
    gain: np.ndarray,
    shift: np.ndarray,
    tissue: np.ndarray,
) -> np.ndarray:
    """(N,) contrast on the SWI of the last echo over its noise, as in `phantom.visibility`; NaN: no noise.

    gain, shift (X, Y, Z): the lesions' effect on that echo; tissue (X, Y, Z) bool, the brain without them.
    """
    before = scan.magnitude[scan.last]
    sigma = noise_sd(before, brain.mask)
    if sigma <= 0 or not len(bodies):
        return np.full(len(bodies), np.nan)
    phase = jnp.angle(jnp.exp(1j * (scan.phase[scan.last] + shift)))
    image = susceptibility_weighted(
        jnp.asarray(before * gain, jnp.float32), phase, scan.grid.spacing_mm, sign=scan.sign.sign
    )
    seen = visibility(
        image.swi,
        jnp.asarray(tissue),
        jnp.float32(sigma),
        jnp.asarray(bodies.center_mm, jnp.float32),
        jnp.asarray(apparent_mm, jnp.float32),
        grid=scan.grid,
    )
    return np.asarray(seen.cnr, np.float64)
