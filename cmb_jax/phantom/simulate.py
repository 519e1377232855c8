"""One simulated subject from an anatomy pack and a seed."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, region_of, side_of
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.acquisition import acquire
from cmb_jax.phantom.field import convolve_dipole, smooth_size
from cmb_jax.phantom.geometry import (
    Grid,
    PackedAnatomy,
    Pose,
    lattice_for,
    pack_anatomy,
    random_pose,
    simulation_grid,
)
from cmb_jax.phantom.labels import instance_labels, mimic_labels, tissue_labels
from cmb_jax.phantom.lesions import MAX_APPARENT_MM, Bodies, blooming, draw_calcifications, draw_microbleeds
from cmb_jax.phantom.planning import PLANNING_SPACING_MM, HeadMaps, head_maps
from cmb_jax.phantom.protocols import Protocol, check_settings, rotation_to_scanner
from cmb_jax.phantom.stamps import draw_balls, draw_tubes, stamp_half_width
from cmb_jax.phantom.tissue import CHI_AIR, TissueMaps, draw_tissue, texture_lattice, tissue_maps
from cmb_jax.phantom.types import LesionTable, PhantomSubject, SubjectSettings
from cmb_jax.phantom.veins import MAX_RADIUS_MM, Veins, draw_veins
from cmb_jax.phantom.visibility import MIN_CNR, MIN_DISTINCTNESS, MIN_SURROUNDINGS, visibility
from cmb_jax.swi import susceptibility_weighted

_PADDING = 1.2  # of the field's grid: what wraps round is smooth and far away
_MAX_BODY_MM = 4.5  # largest radius of a lesion's axis that a stamp holds


@dataclasses.dataclass(frozen=True)
class _Grids:
    """Everything static of a simulation."""

    simulation: Grid
    acquired: Grid
    planning: Grid
    lattice: Grid
    texture: Grid

    @classmethod
    def of(cls, protocol: Protocol, spacing_mm: float) -> _Grids:
        extent = protocol.field_of_view_mm
        matrix, cut = protocol.matrix, protocol.discarded_slices
        whole = Grid.over(extent, matrix)
        acquired = Grid(
            (matrix[0], matrix[1], matrix[2] - 2 * cut),
            whole.spacing_mm,
            (whole.origin_mm[0], whole.origin_mm[1], whole.origin_mm[2] + cut * whole.spacing_mm[2]),
        )
        return cls(
            simulation=simulation_grid(extent, spacing_mm),
            acquired=acquired,
            planning=simulation_grid(extent, PLANNING_SPACING_MM),
            lattice=lattice_for(extent),
            texture=texture_lattice(extent),
        )


@dataclasses.dataclass(frozen=True)
class _Scan:
    """What was drawn for one subject's acquisition."""

    te_ms: jax.Array
    b0_t: jax.Array
    snr: jax.Array


def _draw_scan(key: jax.Array, protocol: Protocol) -> _Scan:
    k_te, k_b0, k_snr = jax.random.split(key, 3)
    te = jax.random.uniform(k_te, (), minval=protocol.te_ms[0], maxval=protocol.te_ms[1] + 1e-6)
    b0 = jax.random.choice(k_b0, jnp.asarray(protocol.b0_t, jnp.float32))
    snr = jax.random.uniform(k_snr, (), minval=protocol.snr[0], maxval=protocol.snr[1] + 1e-6)
    return _Scan(te, b0, snr)


def _slabs(size: int, largest: int = 8) -> int:
    """How many equal slabs an axis is cut into, each at most `largest` thick."""
    return next(n for n in range(1, size + 1) if size % n == 0 and size // n <= largest)


@functools.partial(jax.jit, static_argnames=("grid",))
def _add_bodies(
    maps: TissueMaps,
    veins: Veins,
    bleeds: Bodies,
    calcifications: Bodies,
    chi_blood: jax.Array,
    b0_t: jax.Array,
    *,
    grid: Grid,
) -> TissueMaps:
    """Blood vessels, microbleeds and calcifications in place of the tissue that they displace."""
    empty = jnp.zeros(grid.shape, jnp.float32)
    tube, ball = (stamp_half_width(r, grid.spacing_mm) for r in (MAX_RADIUS_MM, _MAX_BODY_MM))
    blood = draw_tubes(empty, grid, veins.points_mm, veins.radius_mm, veins.chi_ppm, tube)
    blood = jnp.maximum(blood, maps.sinus * chi_blood)
    filled = jnp.clip(blood / chi_blood, 0.0, 1.0)

    def balls(bodies: Bodies, amplitude: jax.Array) -> jax.Array:
        amplitude = jnp.where(bodies.valid, amplitude, 0.0)
        return draw_balls(empty, grid, bodies.centre_mm, bodies.radii_mm, amplitude, ball)

    iron = balls(bleeds, bleeds.chi_ppm)
    decay = balls(bleeds, bleeds.r2_star)
    lime = balls(calcifications, -calcifications.chi_ppm)
    stone = balls(calcifications, jnp.ones_like(calcifications.chi_ppm))
    chi = maps.chi_ppm * (1 - filled) + blood + iron - lime
    r2_star = (
        maps.r2_star * (1 - filled) + filled * 45.0 * (b0_t / 3.0) + decay * (b0_t / 3.0) + 150.0 * stone
    )
    signal = maps.signal * (1 - 0.75 * stone) * (1 - filled) + 0.75 * filled
    return TissueMaps(chi, r2_star, signal, maps.sinus)


def _field(maps: TissueMaps, grid: Grid, b0_direction: tuple[float, float, float]) -> jax.Array:
    """Field in ppm. Air all round; below the grid the neck goes on, so that it does not end in a pole."""
    x, y, z = grid.shape
    below = smooth_size(z * _PADDING) - z
    chi = jnp.pad(maps.chi_ppm - CHI_AIR, ((0, 0), (0, 0), (below, 0)), mode="edge")
    padded = (smooth_size(x * _PADDING), smooth_size(y * _PADDING), z + below)
    field = convolve_dipole(
        chi, jnp.asarray(b0_direction, jnp.float32), spacing_mm=grid.spacing_mm, padded=padded
    )
    return field[:, :, below:]


def _table(
    bodies: Bodies,
    apparent_mm: np.ndarray,
    cnr: np.ndarray,
    keep: np.ndarray,
    first_id: int,
    world: np.ndarray,
) -> LesionTable:
    index = np.flatnonzero(keep)
    centre = np.asarray(bodies.centre_mm, np.float64)[index]
    code = np.asarray(bodies.code)[index].astype(np.int32)
    region = region_of(code)
    return LesionTable(
        id=np.arange(first_id, first_id + len(index), dtype=np.int32),
        kind=np.asarray(bodies.kind)[index].astype(np.int32),
        centre_mm=centre @ world[:3, :3].T + world[:3, 3],
        diameter_mm=2 * np.prod(np.asarray(bodies.radii_mm, np.float64)[index], axis=1) ** (1 / 3),
        apparent_diameter_mm=apparent_mm[index].astype(np.float64),
        chi_ppm=np.asarray(bodies.chi_ppm, np.float64)[index],
        region=region,
        side=side_of(code),
        zone=ZONE_OF_REGION[region],
        cnr=cnr[index].astype(np.float64),
    )


def _concatenate(first: LesionTable, second: LesionTable) -> LesionTable:
    columns = {
        f.name: np.concatenate([getattr(first, f.name), getattr(second, f.name)])
        for f in dataclasses.fields(LesionTable)
    }
    return LesionTable(**columns)


def _apparent(bodies: Bodies, scan: _Scan) -> jax.Array:
    """Apparent diameters in mm."""
    diameter = 2 * jnp.prod(bodies.radii_mm, axis=1) ** (1 / 3)
    return jnp.minimum(diameter * blooming(scan.te_ms, scan.b0_t, bodies.chi_ppm), MAX_APPARENT_MM)


def _solid(code: jax.Array) -> jax.Array:
    region = region_of(code)
    return (region > Region.OUTSIDE) & (region < Region.VENTRICLE)


@dataclasses.dataclass(frozen=True)
class _Anatomy:
    packed: PackedAnatomy
    pose: Pose
    head: HeadMaps


def simulate_subject(pack: AnatomyPack, seed: int, settings: SubjectSettings | None = None) -> PhantomSubject:
    """A simulated scan with its truth; the same pack, seed and settings give the same arrays.

    The image axes are those of the head (right, anterior, superior) up to a few degrees; the affine turns
    them so that the scanner's field points to +z. A microbleed that cannot be seen on the finished SWI, by
    its contrast-to-noise ratio or because it lies in signal loss or among artefacts (`MIN_CNR`,
    `MIN_SURROUNDINGS`, `MIN_DISTINCTNESS` of `phantom.visibility`), is not counted as a truth: row and label
    are left out. Raises UserError for settings that make no sense.
    """
    settings = settings or SubjectSettings()
    protocol = check_settings(settings)
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; allowed: 0 to {2**31 - 1}")
    grids = _Grids.of(protocol, settings.simulation_spacing_mm)
    keys = jax.random.split(jax.random.key(seed), 8)
    scan = _draw_scan(keys[0], protocol)

    packed = _packed(pack)
    pose = random_pose(keys[1], grids.lattice, packed.centre_mm)
    head = head_maps(packed, pose, lattice=grids.lattice, grid=grids.planning)
    anatomy = _Anatomy(packed, pose, head)
    chi_blood = jax.random.uniform(keys[2], (), minval=0.15, maxval=0.4)
    veins = draw_veins(keys[3], pose, head, chi_blood, lattice=grids.lattice, grid=grids.planning)
    calcifications = draw_calcifications(
        keys[4], packed, pose, head, lattice=grids.lattice, grid=grids.planning
    )
    bleeds = draw_microbleeds(
        keys[5],
        packed,
        pose,
        head,
        jnp.where(calcifications.valid[:, None], calcifications.centre_mm, 1e6),
        jnp.float32(settings.mean_cmbs or 0.0),
        scan.te_ms,
        scan.b0_t,
        lattice=grids.lattice,
        grid=grids.planning,
        patient_like=settings.mean_cmbs is None,
    )
    values = draw_tissue(keys[6], scan.b0_t, grids.texture)
    maps = tissue_maps(
        packed,
        pose,
        values,
        lattice=grids.lattice,
        texture_grid=grids.texture,
        grid=grids.simulation,
        slabs=_slabs(grids.simulation.shape[0]),
    )
    maps = _add_bodies(maps, veins, bleeds, calcifications, chi_blood, scan.b0_t, grid=grids.simulation)
    field = _field(maps, grids.simulation, protocol.b0_direction)

    code, mimics = tissue_labels(
        packed,
        pose,
        head,
        lattice=grids.lattice,
        planning=grids.planning,
        grid=grids.acquired,
        slabs=_slabs(grids.acquired.shape[0]),
    )
    magnitude, phase, sigma = acquire(
        maps.signal,
        maps.r2_star,
        field,
        _solid(code),
        scan.te_ms,
        scan.b0_t,
        scan.snr,
        keys[7],
        matrix=protocol.matrix,
        discarded=protocol.discarded_slices,
        phase_sign=protocol.phase_sign,
    )
    del maps, field
    return _finish(
        protocol,
        seed,
        grids,
        scan,
        anatomy,
        magnitude,
        phase,
        sigma,
        code,
        mimics,
        veins,
        bleeds,
        calcifications,
    )


def _finish(
    protocol: Protocol,
    seed: int,
    grids: _Grids,
    scan: _Scan,
    anatomy: _Anatomy,
    magnitude: jax.Array,
    phase: jax.Array,
    sigma: jax.Array,
    code: jax.Array,
    mimics: jax.Array,
    veins: Veins,
    bleeds: Bodies,
    calcifications: Bodies,
) -> PhantomSubject:
    """SWI, labels, table."""
    grid = grids.acquired
    image = susceptibility_weighted(magnitude, phase, grid.spacing_mm, sign=protocol.phase_sign)
    bleed_mm, lime_mm = _apparent(bleeds, scan), _apparent(calcifications, scan)
    provisional = jnp.where(bleeds.valid, 1, 0)
    occupied = instance_labels(bleeds, bleed_mm, provisional, grid=grid)
    tissue = _solid(code) & (occupied == 0)
    seen = [
        visibility(image.swi, tissue, sigma, b.centre_mm, d, grid=grid)
        for b, d in ((bleeds, bleed_mm), (calcifications, lime_mm))
    ]
    cnr = [np.asarray(each.cnr) for each in seen]
    typical = float(np.median(np.asarray(image.swi)[np.asarray(tissue)]))
    clear = np.asarray(seen[0].surroundings) >= MIN_SURROUNDINGS * typical
    clear &= np.asarray(seen[0].distinctness) >= MIN_DISTINCTNESS
    inside = [np.asarray(b.valid) & _inside(np.asarray(b.centre_mm), grid) for b in (bleeds, calcifications)]
    keep = inside[0] & clear & (cnr[0] >= MIN_CNR)
    ids = np.where(keep, np.cumsum(keep), 0)
    labels = instance_labels(bleeds, bleed_mm, jnp.asarray(ids), grid=grid)
    mimics = mimic_labels(mimics, veins, calcifications, lime_mm, grid=grid)
    mimics = jnp.where(labels > 0, 0, mimics).astype(jnp.uint8)

    turn = rotation_to_scanner(protocol.b0_direction)
    world = np.eye(4)
    world[:3, :3] = turn
    world[:3, 3] = np.asarray(anatomy.packed.centre_mm, np.float64)
    affine = world @ np.diag([*grid.spacing_mm, 1.0])
    affine[:3, 3] = world[:3, :3] @ np.asarray(grid.origin_mm) + world[:3, 3]
    bleed_table = _table(bleeds, np.asarray(bleed_mm), cnr[0], keep, 1, world)
    lime_table = _table(calcifications, np.asarray(lime_mm), cnr[1], inside[1], len(bleed_table) + 1, world)
    return PhantomSubject(
        swi=Volume.from_array(np.asarray(image.swi), affine),
        phase=Volume.from_array(np.asarray(image.filtered_phase * protocol.phase_sign), affine),
        magnitude=Volume.from_array(np.asarray(magnitude), affine),
        cmb_labels=np.asarray(labels),
        mimic_labels=np.asarray(mimics),
        region_code=np.asarray(code),
        lesions=_concatenate(bleed_table, lime_table),
        protocol=protocol.name,
        seed=seed,
        te_ms=float(scan.te_ms),
        b0_t=float(scan.b0_t),
        snr=float(scan.snr),
        phase_sign=protocol.phase_sign,
    )


def _inside(points_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """Whether points lie on the grid's voxels."""
    index = np.rint((points_mm - grid.origin_mm) / grid.spacing_mm)
    return np.all((index >= 0) & (index < grid.shape), axis=-1)


_last_packed: list[tuple[AnatomyPack, PackedAnatomy]] = []


def _packed(pack: AnatomyPack) -> PackedAnatomy:
    """The pack on the device; the last one is kept, as a cohort uses one pack."""
    if not _last_packed or _last_packed[0][0] is not pack:
        _last_packed[:] = [(pack, pack_anatomy(pack))]
    return _last_packed[0][1]
