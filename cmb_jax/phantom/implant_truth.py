"""What was implanted, as labels and as lines of the phantom's truth table."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Side, Zone, region_of, side_of
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.labels import MIN_TUBE_LABEL_MM
from cmb_jax.phantom.placement import Lesions
from cmb_jax.phantom.stamps import draw_labels, stamp_half_width
from cmb_jax.phantom.types import CMB_KIND, LesionRow, MimicKind
from cmb_jax.phantom.visibility import visibility
from cmb_jax.swi import susceptibility_weighted

UNKNOWN = "unknown"
"""Region, side and zone of a lesion where the brain's regions cannot be told."""


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
        centre = jnp.asarray(lesions.centre_mm[balls], jnp.float32)
        radii = jnp.asarray(np.repeat(apparent_mm[balls, None] / 2, 3, axis=1), jnp.float32)
        labels = draw_labels(labels, grid, centre, radii, jnp.where(bleed[balls], ids[balls], 0), half)
        kinds = jnp.where(bleed[balls], 0, jnp.asarray(lesions.kind[balls]))
        mimics = draw_labels(mimics, grid, centre, radii, kinds, half)
    for row in np.flatnonzero(~ball):
        steps = 1 + int(np.ceil(lesions.length_mm[row] / min(grid.spacing_mm)))
        along = np.linspace(-0.5, 0.5, steps)[:, None] * (lesions.length_mm[row] * lesions.direction[row])
        radius = max(float(lesions.radius_mm[row]), MIN_TUBE_LABEL_MM, max(grid.spacing_mm[:2]) / 2)
        mimics = draw_labels(
            mimics,
            grid,
            jnp.asarray(lesions.centre_mm[row] + along, jnp.float32),
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


def contrast_to_noise(
    lesions: Lesions,
    apparent_mm: np.ndarray,
    magnitude: np.ndarray,
    phase_rad: np.ndarray,
    sigma: float,
    tissue: np.ndarray,
    grid: Grid,
    phase_sign: int,
) -> np.ndarray:
    """(N,) contrast on the SWI of one echo over its noise, as `phantom.visibility` has it; NaN: no noise.

    magnitude and phase (X, Y, Z) with the lesions in them; tissue (X, Y, Z) bool, the brain without them.
    """
    if sigma <= 0 or not len(lesions):
        return np.full(len(lesions), np.nan)
    image = susceptibility_weighted(
        jnp.asarray(magnitude, jnp.float32), jnp.asarray(phase_rad), grid.spacing_mm, sign=phase_sign
    )
    seen = visibility(
        image.swi,
        jnp.asarray(tissue),
        jnp.float32(sigma),
        jnp.asarray(lesions.centre_mm, jnp.float32),
        jnp.asarray(apparent_mm, jnp.float32),
        grid=grid,
    )
    return np.asarray(seen.cnr, np.float64)


def truth_rows(
    lesions: Lesions,
    apparent_mm: np.ndarray,
    cnr: np.ndarray,
    affine: np.ndarray,
    spacing_mm: tuple[float, float, float],
    region_code: np.ndarray | None,
) -> list[LesionRow]:
    """The truth table, ids from 1, centres in RAS mm.

    affine (4, 4): voxel index to RAS mm. region_code (X, Y, Z) or None where the regions are not known.
    """
    index = lesions.centre_mm / np.array(spacing_mm)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    rows = []
    for i in range(len(lesions)):
        kind = int(lesions.kind[i])
        region = side = zone = UNKNOWN
        if region_code is not None:
            code = int(region_code[tuple(np.rint(index[i]).astype(int))])
            region, side = (
                Region(int(region_of(code))).name.lower(),
                Side(int(side_of(code))).name.lower(),
            )
            zone = Zone(int(ZONE_OF_REGION[region_of(code)])).name.lower()
        rows.append(
            LesionRow(
                id=i + 1,
                kind="cmb" if kind == CMB_KIND else MimicKind(kind).name.lower(),
                x_mm=float(world[i, 0]),
                y_mm=float(world[i, 1]),
                z_mm=float(world[i, 2]),
                diameter_mm=float(2 * lesions.radius_mm[i]),
                apparent_diameter_mm=float(apparent_mm[i]),
                chi_ppm=float(lesions.chi_ppm[i]),
                region=region,
                side=side,
                zone=zone,
                cnr=float(cnr[i]),
            )
        )
    return rows
