"""Which lesions are put into a scan and where: those of a table, and those that are drawn from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from cmb_jax.errors import UserError
from cmb_jax.implant.effect import Implants
from cmb_jax.implant.scan import Brain, Scan
from cmb_jax.io.tables import read_columns
from cmb_jax.phantom.lesions import MAX_CHI_PPM, seen_mm
from cmb_jax.phantom.types import CALCIFICATIONS, CMB_KIND, MimicKind

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
        # the size of a body's patch is static: each group is one compiled program
        step = np.floor(np.log(self.radius_mm) / np.log(_SIZE_STEP)).astype(int)
        keys = np.stack([self.length_mm > 0, step], axis=1)
        return [np.flatnonzero((keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]

    def implants(self, rows: np.ndarray) -> Implants:
        """Some of them on the device."""
        columns = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(Implants)}
        return Implants(**{name: jnp.asarray(value, jnp.float32) for name, value in columns.items()})


def joined(parts: list[Lesions]) -> Lesions:
    """All of them as one, microbleeds first."""
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
    # All properties are drawn for all bodies, and the kind chooses among them: what one body gets does not
    # depend on the kinds of those before it.
    n = len(kind)
    vein, calcification = np.isin(kind, VEIN_KINDS), np.isin(kind, CALCIFICATIONS)
    iron = np.clip(0.9 * np.exp(0.5 * rng.normal(size=n)), 0.3, MAX_CHI_PPM)
    calcium, blood = -rng.uniform(1.0, 3.0, n), rng.uniform(0.15, 0.4, n)
    drawn = np.where(vein, blood, np.where(calcification, calcium, iron))
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
        r2_star=np.where(calcification, 150.0, r2_star),
        signal_drop=np.where(calcification, 0.75, 0.0),
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
    taken: Iterable[tuple[np.ndarray, float]] = (),
) -> Lesions:
    """The lesions at random places: apparent extent within the mask, apart from each other.

    Args:
        rng: source of every draw.
        lesions: N without places.
        apparent_mm: (N,) apparent diameters.
        mask: (X, Y, Z) bool, brain.
        spacing_mm: of the voxels.
        centers: (X, Y, Z) bool, where centers may lie (solid tissue); None: anywhere in the mask.
        taken: center (3,) and apparent diameter of each lesion that has its place already.

    Raises:
        UserError: they do not fit; says how large one may be, or how many found room.
    """
    # Places are drawn among voxels that are deep enough for the body, by distances to the mask's border, to
    # the faces of the volume and to bodies that have their place: no draw is ever refused.
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
    for point, diameter in taken:
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


def lesions_for(
    scan: Scan,
    brain: Brain,
    count: int,
    mimics: int,
    diameters_mm: tuple[float, float],
    table: Path | None,
    seed: int,
) -> Lesions:
    """Those of the table and those that are drawn, microbleeds first.

    Raises:
      UserError: a table that makes no sense, a lesion larger than the brain, no room for all.
    """
    # one random stream per purpose: the drawn lesions stay the same whether or not there is a table
    like, te = scan.like, max(scan.te_ms)
    parts, widest, taken = [], [], []
    if table is not None:
        rng = np.random.default_rng((seed, 0))
        given = read_lesions(table, rng, like.affine, like.shape, like.spacing_mm, scan.b0_t)
        parts.append(given)
        taken = list(zip(given.center_mm, given.apparent_mm(te, scan.b0_t), strict=True))
        widest.append((str(table), 2 * float(given.radius_mm.max())))
    drawn = random_lesions(np.random.default_rng((seed, 1)), count, mimics, diameters_mm, scan.b0_t)
    if len(drawn):
        widest.insert(0, ("--diameters-mm", diameters_mm[1]))
    largest = 2 * float(depth_mm(brain.mask, like.spacing_mm).max())
    for name, diameter in widest:
        if diameter > largest:
            raise UserError(
                f"{name}: a lesion of {diameter:g} mm is larger than the brain here; allowed are "
                f"{MIN_DIAMETER_MM:g} to {largest:.1f} mm"
            )
    if len(drawn):
        rng, apparent = np.random.default_rng((seed, 2)), drawn.apparent_mm(te, scan.b0_t)
        parts.append(place(rng, drawn, apparent, brain.mask, like.spacing_mm, brain.solid, taken))
    return joined(parts)


def read_lesions(
    path: Path,
    rng: np.random.Generator,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    b0_t: float,
) -> Lesions:
    """Lesions of a table: x_mm, y_mm, z_mm (RAS), diameter_mm; kind and chi_ppm where they are to be chosen.

    affine (4, 4): voxel index of the volume of `shape` to RAS mm. What the table leaves open is drawn.

    Raises:
      UserError: names file, line and column, and what is allowed.
    """
    needed = ("x_mm", "y_mm", "z_mm", "diameter_mm")
    table = read_columns(path, required=needed)
    if not len(table):
        raise UserError(f"{path}: holds no lesion; give one a line with {', '.join(needed)}")
    # lines are numbered as an editor shows them: the header is line 1
    world = np.stack([table.numbers(name) for name in needed[:3]], axis=1)
    index = apply_affine(np.linalg.inv(affine), world)
    outside = np.flatnonzero(((index < -1e-3) | (index > np.array(shape) - 1 + 1e-3)).any(axis=1))
    if len(outside):
        corners = apply_affine(affine, np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1))
        box = ", ".join(
            f"{axis} {low:.1f} to {high:.1f}"
            for axis, low, high in zip("xyz", corners.min(axis=0), corners.max(axis=0), strict=True)
        )
        at = ", ".join(f"{v:g}" for v in world[outside[0]])
        raise UserError(
            f"{path}: line {outside[0] + 2}: ({at}) lies outside the image; it covers {box} (RAS mm)"
        )
    kinds = table.text("kind") if table.has("kind") else ("cmb",) * len(table)
    for line, name in enumerate(kinds, start=2):
        if name not in KINDS:
            raise UserError(f"{path}: line {line}: kind is {name!r}; allowed: {', '.join(KINDS)}")
    kind = np.array([KINDS[name] for name in kinds], int)
    chi = table.numbers("chi_ppm") if table.has("chi_ppm") else np.full(len(table), np.nan)
    # calcium is diamagnetic, blood paramagnetic; NaN, which is drawn later, fails no comparison
    wrong = np.flatnonzero((chi == 0) | (np.sign(chi) == np.where(np.isin(kind, CALCIFICATIONS), 1, -1)))
    if len(wrong) or np.any(np.abs(chi) > 10):
        row = wrong[0] if len(wrong) else int(np.nanargmax(np.abs(chi)))
        raise UserError(
            f"{path}: line {row + 2}: chi_ppm is {chi[row]:g} for {kinds[row]}; allowed: above 0 to 10, "
            "and for a calcification -10 to below 0"
        )
    diameter = table.numbers("diameter_mm", minimum=MIN_DIAMETER_MM)
    wide = np.flatnonzero(np.isin(kind, VEIN_KINDS) & (diameter > 3))
    if len(wide):
        raise UserError(
            f"{path}: line {wide[0] + 2}: a vein of {diameter[wide[0]]:g} mm; "
            f"allowed: {MIN_DIAMETER_MM:g} to 3 mm"
        )
    center = np.clip(index, 0, np.array(shape) - 1) * np.array(spacing_mm)
    return make_lesions(rng, kind, diameter, b0_t, center, chi)
