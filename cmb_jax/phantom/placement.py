"""What is implanted into a scan and where, from a seed or a table, and its truth: labels and table lines."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Side, Zone, region_of, side_of
from cmb_jax.errors import UserError
from cmb_jax.phantom.bodies import MAX_CHI_PPM, seen_mm
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.implant import Implants
from cmb_jax.phantom.render import MIN_TUBE_LABEL_MM, draw_labels, stamp_half_width
from cmb_jax.phantom.types import CALCIFICATIONS, CMB_KIND, LesionRow, MimicKind
from cmb_jax.phantom.visibility import visibility
from cmb_jax.scan.swi import susceptibility_weighted

EDGE_MM = 2.0  # between a drawn body's apparent border and the faces of the field of view
GAP_MM = 2.0  # between the apparent borders of two drawn bodies
MIN_DIAMETER_MM = 0.5
VEIN_KINDS = (MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN)
KINDS: dict[str, int] = {"cmb": CMB_KIND} | {
    kind.name.lower(): int(kind) for kind in (*CALCIFICATIONS, *VEIN_KINDS)
}
_VEIN_LENGTH_MM = 6.0
_VEIN_RADIUS_MM = (0.2, 0.5)  # medullary and small pial veins
_SIZE_STEP = 1.5  # bodies whose radii differ by less share a grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesions:
    """N bodies, microbleeds first."""

    kind: np.ndarray  # (N,) int, CMB_KIND or a MimicKind
    center_mm: np.ndarray  # (N, 3) array mm: voxel index times spacing; NaN where not placed yet
    direction: np.ndarray  # (N, 3) unit vectors, array axes
    length_mm: np.ndarray  # (N,) of a vein's axis, 0 for the others
    radius_mm: np.ndarray  # (N,)
    chi_ppm: np.ndarray  # (N,)
    r2_star: np.ndarray  # (N,) added, 1/s at the field strength of the data
    signal_drop: np.ndarray  # (N,)

    def __len__(self) -> int:
        """N."""
        return len(self.kind)

    def some(self, rows: np.ndarray) -> Lesions:
        """Those of the given indices, in their order."""
        return Lesions(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(Lesions)})

    def apparent_mm(self, te_ms: float, b0_t: float) -> np.ndarray:
        """(N,) diameters with blooming at an echo time, as in the phantom's truth; veins do not bloom."""
        true = 2 * self.radius_mm
        bloomed = np.asarray(
            seen_mm(jnp.asarray(true), jnp.float32(te_ms), jnp.float32(b0_t), jnp.asarray(self.chi_ppm))
        )
        return np.where(self.length_mm > 0, true, bloomed)

    def groups(self) -> list[np.ndarray]:
        """Indices of bodies of one shape and similar size, which share static shapes."""
        step = np.floor(np.log(self.radius_mm) / np.log(_SIZE_STEP)).astype(int)
        keys = np.stack([self.length_mm > 0, step], axis=1)
        return [np.flatnonzero((keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]

    def implants(self, rows: np.ndarray) -> Implants:
        """Some of them on the device."""
        columns = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(Implants)}
        return Implants(**{name: jnp.asarray(value, jnp.float32) for name, value in columns.items()})


def joined(parts: list[Lesions]) -> Lesions:
    """One after the other, microbleeds moved to the front."""
    columns = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Lesions)
    }
    order = np.argsort(columns["kind"] != CMB_KIND, kind="stable")
    return Lesions(**{name: value[order] for name, value in columns.items()})


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], count: int) -> np.ndarray:
    return np.exp(rng.uniform(float(np.log(limits[0])), float(np.log(limits[1])), count))


def make_lesions(
    rng: np.random.Generator,
    kind: np.ndarray,
    diameter_mm: np.ndarray,
    b0_t: float,
    center_mm: np.ndarray | None = None,
    chi_ppm: np.ndarray | None = None,
) -> Lesions:
    """Bodies with properties drawn as the phantom draws them.

    Args:
        rng: source of every draw; the same state gives the same bodies.
        kind: (N,) values of `KINDS`.
        diameter_mm: (N,), NaN: drawn for veins.
        b0_t: R2* of iron and of blood rises with it.
        center_mm: (N, 3) array mm; None: not placed yet.
        chi_ppm: (N,), NaN where it is to be drawn.
    """
    n = len(kind)
    vein, stone = np.isin(kind, VEIN_KINDS), np.isin(kind, CALCIFICATIONS)
    iron = np.clip(0.9 * np.exp(0.5 * rng.normal(size=n)), 0.3, MAX_CHI_PPM)
    lime, blood = -rng.uniform(1.0, 3.0, n), rng.uniform(0.15, 0.4, n)
    drawn = np.where(vein, blood, np.where(stone, lime, iron))
    r2_star = np.where(vein, 25.0, rng.uniform(50.0, 200.0, n)) * (b0_t / 3.0)  # a vein's: over tissue's 20
    wide = 2 * _log_uniform(rng, _VEIN_RADIUS_MM, n)
    direction = rng.normal(size=(n, 3))
    given = np.full(n, np.nan) if chi_ppm is None else chi_ppm
    return Lesions(
        kind=np.asarray(kind, int),
        center_mm=np.full((n, 3), np.nan) if center_mm is None else center_mm,
        direction=direction / np.linalg.norm(direction, axis=1, keepdims=True),
        length_mm=np.where(vein, _VEIN_LENGTH_MM, 0.0),
        radius_mm=np.where(np.isnan(diameter_mm), wide, diameter_mm) / 2,
        chi_ppm=np.where(np.isnan(given), drawn, given),
        r2_star=np.where(stone, 150.0, r2_star),
        signal_drop=np.where(stone, 0.75, 0.0),
    )


def random_lesions(
    rng: np.random.Generator, count: int, mimics: int, diameters_mm: tuple[float, float], b0_t: float
) -> Lesions:
    """`count` microbleeds, `mimics` calcifications and vein segments in turn; diameters log-uniform."""
    turn = (MimicKind.CALCIFICATION_PARENCHYMAL, MimicKind.MEDULLARY_VEIN)
    kind = np.array([CMB_KIND] * count + [turn[i % 2] for i in range(mimics)], int)
    diameter = _log_uniform(rng, diameters_mm, len(kind))
    return make_lesions(rng, kind, np.where(np.isin(kind, VEIN_KINDS), np.nan, diameter), b0_t)


def depth_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """(X, Y, Z) from each voxel's center to the border of the mask; beyond the volume nothing is mask."""
    half = np.array(spacing_mm).min() / 2  # distances run between voxel centers, the border lies between
    padded = ndimage.distance_transform_edt(np.pad(mask, 1), spacing_mm)
    return np.maximum(padded[1:-1, 1:-1, 1:-1] - half, 0.0)


def place(
    rng: np.random.Generator,
    lesions: Lesions,
    apparent_mm: np.ndarray,
    mask: np.ndarray,
    spacing_mm: tuple[float, float, float],
    centers: np.ndarray | None = None,
    taken: Lesions | None = None,
    taken_mm: np.ndarray | None = None,
) -> Lesions:
    """The lesions at random places: apparent extent within the mask, apart from each other.

    Args:
        rng: source of every draw.
        lesions: N without places.
        apparent_mm: (N,) apparent diameters.
        mask: (X, Y, Z) bool, brain.
        spacing_mm: of the voxels.
        centers: (X, Y, Z) bool, where centers may lie (solid tissue); None: anywhere in the mask.
        taken: lesions that have their place, and `taken_mm` their apparent diameters.

    Raises:
        UserError: they do not fit; says how large one may be, or how many found room.
    """
    spacing = np.array(spacing_mm)
    depth = depth_mm(mask, spacing_mm)
    allowed = depth if centers is None else np.where(centers, depth, 0.0)
    points = np.argwhere(allowed > 0) * spacing
    allowed, edge = allowed[allowed > 0], _edge_mm(mask.shape, spacing)[allowed > 0]
    extent = np.maximum(apparent_mm, lesions.length_mm) / 2
    jitter = np.linalg.norm(spacing) / 2  # a center lies anywhere in its voxel
    room = np.minimum(allowed, edge - EDGE_MM) - jitter
    most = 2 * max(float(room.max(initial=0.0)), 0.0)
    if len(lesions) and 2 * extent.max() > most:
        raise UserError(
            f"a lesion that looks {2 * extent.max():.1f} mm across (blooming included) finds no room; "
            f"here at most {most:.1f} mm fit, {EDGE_MM:g} mm from the edges: give smaller --diameters-mm "
            "or another mask"
        )
    clear = np.full(len(points), np.inf)  # to the nearest border of a body that has its place
    if taken is not None and taken_mm is not None:
        for point, diameter in zip(taken.center_mm, taken_mm, strict=True):
            clear = np.minimum(clear, np.linalg.norm(points - point, axis=1) - diameter / 2)
    center = np.zeros((len(lesions), 3))
    for done, row in enumerate(np.argsort(-extent, kind="stable")):  # the largest have the least choice
        choice = np.flatnonzero((room >= extent[row]) & (clear >= extent[row] + GAP_MM + jitter))
        if not len(choice):
            raise UserError(
                f"only {done} of {len(lesions)} lesions found room in the mask, {GAP_MM:g} mm apart; "
                f"give --count and --mimics of at most {done} together, or smaller --diameters-mm"
            )
        center[row] = points[rng.choice(choice)] + rng.uniform(-0.5, 0.5, 3) * spacing
        clear = np.minimum(clear, np.linalg.norm(points - center[row], axis=1) - extent[row])
    return dataclasses.replace(lesions, center_mm=center)


def _edge_mm(shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """(X, Y, Z) from each voxel's center to the nearest face of the volume."""
    lines = [
        np.minimum(np.arange(n) + 0.5, n - 0.5 - np.arange(n)) * h
        for n, h in zip(shape, spacing, strict=True)
    ]
    return np.minimum(np.minimum(lines[0][:, None, None], lines[1][:, None]), lines[2])


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
        jnp.asarray(lesions.center_mm, jnp.float32),
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
    """The truth table, ids from 1, centers in RAS mm.

    affine (4, 4): voxel index to RAS mm. region_code (X, Y, Z) or None where the regions are not known.
    """
    index = lesions.center_mm / np.array(spacing_mm)
    world = apply_affine(affine, index)
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
