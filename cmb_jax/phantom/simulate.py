"""One simulated subject from an anatomy pack and a seed: the chain from a head to a scan with its truth.

`simulate_sample` is pure and jitted once for each `Plan`: it can be vmapped over keys and sharded over a mesh
(`simulate_batch`), so that training data can be made on the devices that train. `simulate_subject` gives the
same on the host, as volumes and a table.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from nibabel.affines import apply_affine

from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, region_of, side_of
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.acquisition import Scanner, ScannerRanges, acquire, draw_scanner
from cmb_jax.phantom.field import add_smooth_balls, dephase_about_bodies, dephased_echo, head_field, reaches
from cmb_jax.phantom.geometry import Grid, lattice_for, simulation_grid
from cmb_jax.phantom.head import PLANNING_SPACING_MM, PackedAnatomy, head_maps, pack_anatomy, random_pose
from cmb_jax.phantom.lesions import (
    DIAMETERS_MM,
    Bodies,
    LesionDraw,
    apparent_diameters,
    draw_calcifications,
    draw_cavernoma,
    draw_microbleeds,
    join,
)
from cmb_jax.phantom.render import add_vessels, artifact_labels, focal_labels, instance_labels, vessel_labels
from cmb_jax.phantom.settings import Protocol, SubjectSettings, Tier, check_settings
from cmb_jax.phantom.tissue import draw_age, draw_blood, draw_tissue, head_volume, label_maps, tissue_maps
from cmb_jax.phantom.types import LesionTable, MimicKind, PhantomSubject
from cmb_jax.phantom.vessels import draw_vessels
from cmb_jax.phantom.visibility import Visibility, is_seen, visibility
from cmb_jax.scan.swi import susceptibility_weighted

ALONG_SLICES = 1.25  # voxel of the simulation along the slices over its in-plane edge


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is static of a simulation: grids. Hashable, the key of the compiled program."""

    field_of_view_mm: tuple[float, float, float]
    matrix: tuple[int, int, int]
    discarded_slices: int
    simulation: Grid
    acquired: Grid
    planning: Grid
    lattice: Grid
    filtered_phase: bool
    weighted: bool  # SWI is made; otherwise it is the plain magnitude

    @classmethod
    def of(cls, protocol: Protocol, spacing_mm: float) -> Plan:
        """The plan of a protocol whose field is computed on voxels of `spacing_mm` in plane."""
        extent = protocol.field_of_view_mm
        matrix, cut = protocol.matrix, protocol.discarded_slices
        whole = Grid.over(extent, matrix)
        acquired = Grid(
            (matrix[0], matrix[1], matrix[2] - 2 * cut),
            whole.spacing_mm,
            (whole.origin_mm[0], whole.origin_mm[1], whole.origin_mm[2] + cut * whole.spacing_mm[2]),
        )
        return cls(
            field_of_view_mm=extent,
            matrix=matrix,
            discarded_slices=cut,
            simulation=simulation_grid(extent, spacing_mm, ALONG_SLICES),
            acquired=acquired,
            planning=simulation_grid(extent, PLANNING_SPACING_MM),
            lattice=lattice_for(extent),
            filtered_phase=protocol.phase != "raw",
            weighted=protocol.phase != "none",
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """All that is drawn from of a simulation, as numbers."""

    te_ms: jax.Array  # (2,)
    b0_t: jax.Array  # (4,) one is chosen
    snr: jax.Array  # (2,)
    tilt_deg: jax.Array  # (2,)
    phase_sign: jax.Array  # () +1 or -1
    scanner: ScannerRanges
    lesions: LesionDraw
    tier: Tier

    @classmethod
    def of(cls, protocol: Protocol, tier: Tier, settings: SubjectSettings) -> Ranges:
        """The numbers of checked settings."""
        strengths = [protocol.b0_t[i % len(protocol.b0_t)] for i in range(4)]
        own = settings.diameters_mm
        return cls(
            te_ms=jnp.asarray(protocol.te_ms, jnp.float32),
            b0_t=jnp.asarray(strengths, jnp.float32),
            snr=jnp.asarray(protocol.snr, jnp.float32),
            tilt_deg=jnp.asarray(protocol.tilt_deg, jnp.float32),
            phase_sign=jnp.float32(protocol.phase_sign),
            scanner=jax.tree.map(jnp.float32, protocol.scanner),
            lesions=LesionDraw(
                mean_cmbs=jnp.float32(settings.mean_cmbs or 0.0),
                patient_like=jnp.asarray(settings.mean_cmbs is None),
                diameters_mm=jnp.asarray(own or DIAMETERS_MM, jnp.float32),
                exact=jnp.asarray(own is not None),
                gap_mm=jnp.float32(settings.gap_mm),
            ),
            tier=jax.tree.map(jnp.float32, tier),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What was drawn for one subject's acquisition."""

    te_ms: jax.Array
    b0_t: jax.Array
    snr: jax.Array
    motion_mm: jax.Array
    phase_sign: jax.Array
    scanner: Scanner
    b0_direction: jax.Array  # (3,) unit vector in array axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One scan with its truth; (X, Y, Z) is the acquired grid, millimeters are those of the image frame."""

    swi: jax.Array  # (X, Y, Z)
    phase: jax.Array  # (X, Y, Z) radians as stored
    magnitude: jax.Array  # (X, Y, Z)
    labels: jax.Array  # (X, Y, Z) uint16: 1 + slot of each microbleed that counts
    mimics: jax.Array  # (X, Y, Z) uint8 MimicKind
    code: jax.Array  # (X, Y, Z) uint8 region code
    scan: Scan
    bleeds: Bodies
    bleed_mm: jax.Array  # (N,) apparent diameters
    bleed_seen: Visibility
    counts: jax.Array  # (N,) bool: the microbleed is a truth
    ignored: jax.Array  # (N,) bool: it reaches into the image, but readers may miss it
    focal: Bodies  # calcifications and cavernoma
    focal_mm: jax.Array
    focal_seen: Visibility


def _draw_scan(key: jax.Array, ranges: Ranges) -> Scan:
    keys = jax.random.split(key, 7)

    def between(k: jax.Array, limits: jax.Array) -> jax.Array:
        return limits[0] + (limits[1] - limits[0]) * jax.random.uniform(k)

    tilt = jnp.deg2rad(between(keys[3], ranges.tilt_deg))
    roll = tilt * jax.random.uniform(keys[4], minval=-0.3, maxval=0.3)
    direction = jnp.stack([jnp.sin(roll), jnp.sin(tilt) * jnp.cos(roll), jnp.cos(tilt) * jnp.cos(roll)])
    te_ms = between(keys[0], ranges.te_ms)
    return Scan(
        te_ms=te_ms,
        b0_t=jax.random.choice(keys[1], ranges.b0_t),
        snr=between(keys[2], ranges.snr) * ranges.tier.snr,
        motion_mm=ranges.tier.motion_mm * jax.random.uniform(keys[5]) ** 2,
        phase_sign=ranges.phase_sign,
        scanner=draw_scanner(keys[6], ranges.scanner, te_ms),
        b0_direction=direction,
    )


def solid_tissue(code: jax.Array) -> jax.Array:
    """Where a region code is brain tissue, not CSF nor outside."""
    region = region_of(code)
    return (region > Region.OUTSIDE) & (region < Region.VENTRICLE)


@functools.partial(jax.jit, static_argnames=("plan",))
def simulate_sample(key: jax.Array, anatomy: PackedAnatomy, ranges: Ranges, *, plan: Plan) -> Sample:
    """One scan, as one compiled program. Pure: same key, same scan."""
    k_scan, k_pose, k_blood, k_vessels, k_focal, k_bleeds, k_tissue, k_noise = jax.random.split(key, 8)
    tier, grid, fine = ranges.tier, plan.acquired, plan.simulation

    # What is drawn of the subject: scan, pose, tissue, vessels, lesions.
    scan = _draw_scan(k_scan, ranges)
    scanner = scan.scanner
    k_pose, k_age = jax.random.split(k_pose)
    age, atrophy = draw_age(k_age, tier)
    pose = random_pose(k_pose, anatomy, atrophy, plan.lattice)
    head = head_maps(anatomy, pose, atrophy, plan.planning)
    values = draw_tissue(k_tissue, anatomy, scan.b0_t, scanner.tr_ms, scanner.flip_deg, age, atrophy, tier)
    blood = draw_blood(k_blood, scan.b0_t, values.contrast.blood)
    vessels = draw_vessels(k_vessels, head, blood.chi_ppm, values.artery_signal, tier)
    k_calcifications, k_cavernoma = jax.random.split(k_focal)
    calcifications = draw_calcifications(k_calcifications, head, tier)
    cavernoma, spaces = draw_cavernoma(k_cavernoma, head, tier)
    focal = join(calcifications, cavernoma)
    bleeds = draw_microbleeds(k_bleeds, head, focal, scan.te_ms, scan.b0_t, ranges.lesions, tier)

    # Susceptibility, field and echo on the simulation grid. Vessels are drawn into the tissue; lesions, which
    # turn the phase too fast for that grid, are added in two steps (see `phantom.field`).
    volume = head_volume(anatomy, values)
    maps = tissue_maps(anatomy, volume, pose, fine)
    inclusions = join(
        join(bleeds, spaces).inclusions(scan.b0_t / 3.0, 0.0), calcifications.inclusions(1.0, 0.75)
    )
    reach_mm = reaches(inclusions, scan.te_ms, scan.b0_t, fine)
    maps = add_vessels(maps, vessels, blood, grid=fine)
    chi = add_smooth_balls(maps.chi_ppm, inclusions, reach_mm, grid=fine)
    field = head_field(chi, scan.b0_direction, grid=fine)
    echo = dephased_echo(maps.signal, maps.r2_star, field, scan.te_ms, scan.b0_t)
    echo = dephase_about_bodies(
        echo, inclusions, reach_mm, scan.te_ms, scan.b0_t, scan.b0_direction, grid=fine
    )

    # The scan, and what a reader would see on it.
    code, mimics = label_maps(anatomy, volume, pose, grid)
    solid = solid_tissue(code)
    acquired = acquire(
        echo, solid, scan.snr, scan.motion_mm, scan.phase_sign, scanner, k_noise,
        matrix=plan.matrix, field_of_view_mm=plan.field_of_view_mm, discarded=plan.discarded_slices,
    )  # fmt: skip
    swi, phase = acquired.magnitude, acquired.phase
    if plan.weighted:
        image = susceptibility_weighted(
            swi, phase, grid.spacing_mm, scan.phase_sign, scanner.mask_power, scanner.homodyne_mm
        )
        swi = image.swi
        phase = image.filtered_phase * scan.phase_sign if plan.filtered_phase else phase
    bleed_mm = apparent_diameters(bleeds, scan.te_ms, scan.b0_t)
    focal_mm = apparent_diameters(focal, scan.te_ms, scan.b0_t)
    occupied = instance_labels(bleeds, bleed_mm, bleeds.valid.astype(jnp.int32), grid=grid) > 0
    free = solid & ~occupied & (focal_labels(jnp.zeros_like(mimics), focal, focal_mm, grid=grid) == 0)
    seen, focal_seen = (
        visibility(swi, free, acquired.sigma, bodies.center_mm, size, grid=grid)
        for bodies, size in ((bleeds, bleed_mm), (focal, focal_mm))
    )
    # the brain's typical brightness, from every fourth row and column: a median sorts
    typical = jnp.nanmedian(jnp.where(free, swi, jnp.nan)[::4, ::4])
    counts = bleeds.valid & _on_grid(bleeds.center_mm, grid) & is_seen(seen, typical)
    ignored = bleeds.valid & _on_grid(bleeds.center_mm, grid, bleed_mm / 2) & ~counts

    # Labels: microbleeds that count by number; all else that could be taken for one by kind.
    labels = instance_labels(bleeds, bleed_mm, jnp.where(counts, jnp.arange(len(counts)) + 1, 0), grid=grid)
    for group in vessels:
        mimics = vessel_labels(mimics, group, grid=grid)
    mimics = focal_labels(mimics, focal, focal_mm, grid=grid)
    # a microbleed that does not count gives way to what else lies there, and is marked where nothing does
    only_ignored = occupied & (labels == 0) & (mimics == 0)
    mimics = jnp.where(only_ignored, int(MimicKind.IGNORED_MICROBLEED), jnp.where(labels > 0, 0, mimics))
    mimics = artifact_labels(mimics, solid, ~occupied, acquired.ghost, acquired.ringing)
    return Sample(
        swi=swi, phase=phase, magnitude=acquired.magnitude, labels=labels, mimics=mimics, code=code,
        scan=scan, bleeds=bleeds, bleed_mm=bleed_mm, bleed_seen=seen, counts=counts, ignored=ignored,
        focal=dataclasses.replace(focal, valid=focal.valid & _on_grid(focal.center_mm, grid)),
        focal_mm=focal_mm, focal_seen=focal_seen,
    )  # fmt: skip


def _on_grid(points_mm: jax.Array, grid: Grid, reach_mm: jax.Array | float = 0.0) -> jax.Array:
    """(N,) whether points lie on the grid's voxels, or at most `reach_mm` (N,) outside along each axis."""
    spacing, shape = jnp.asarray(grid.spacing_mm), jnp.asarray(grid.shape)
    index = (points_mm - jnp.asarray(grid.origin_mm)) / spacing
    reach = jnp.broadcast_to(jnp.asarray(reach_mm), points_mm.shape[:1])[:, None] / spacing
    return jnp.all((index >= -0.5 - reach) & (index < shape - 0.5 + reach), axis=-1)


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def simulate_batch(
    keys: jax.Array, anatomy: PackedAnatomy, ranges: Ranges, *, plan: Plan, mesh: Mesh | None = None
) -> Sample:
    """Samples of keys (B,), stacked along a new first axis; over the first axis of a mesh where one is given.

    Each device makes its own share of the samples; nothing is exchanged.
    """

    def several(some: jax.Array, anatomy: PackedAnatomy, ranges: Ranges) -> Sample:
        return jax.vmap(lambda key: simulate_sample(key, anatomy, ranges, plan=plan))(some)

    if mesh is not None:
        share, whole = P(mesh.axis_names[0]), P()
        specs = (share, whole, whole)
        several = jax.shard_map(several, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False)
    return several(keys, anatomy, ranges)


def simulate_subject(pack: AnatomyPack, seed: int, settings: SubjectSettings | None = None) -> PhantomSubject:
    """A simulated scan with its truth; the same pack, seed and settings give the same arrays.

    The image axes are those of the head (right, anterior, superior) up to a few degrees; the affine turns
    them so that the scanner's field points to +z. A microbleed counts if a reader would see it on the
    finished SWI (`phantom.visibility`). The others are ignored: they have no instance label, and their rows
    at the end of the table and the mimic labels say where they are.

    Raises:
        UserError: settings that are impossible; says what is allowed.
    """
    settings = settings or SubjectSettings()
    protocol, tier = check_settings(settings)
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; allowed: 0 to {2**31 - 1}")
    plan = Plan.of(protocol, settings.simulation_spacing_mm)
    ranges = Ranges.of(protocol, tier, settings)
    anatomy = packed(pack)
    sample = jax.device_get(simulate_sample(jax.random.key(seed), anatomy, ranges, plan=plan))
    world = _image_to_world(sample, anatomy)
    grid = plan.acquired
    step = np.diag([*grid.spacing_mm, 1.0])
    step[:3, 3] = grid.origin_mm
    affine = world @ step
    ids = np.concatenate([[0], np.cumsum(sample.counts) * sample.counts]).astype(np.uint16)
    has_phase = protocol.phase != "none"
    return PhantomSubject(
        swi=Volume.from_array(sample.swi, affine),
        phase=Volume.from_array(sample.phase, affine) if has_phase else None,
        magnitude=Volume.from_array(sample.magnitude, affine),
        cmb_labels=ids[sample.labels],
        mimic_labels=sample.mimics,
        region_code=sample.code,
        lesions=lesion_table(sample, world),
        protocol=protocol.name,
        tier=settings.tier,
        anatomy=pack.name,
        seed=seed,
        te_ms=float(sample.scan.te_ms),
        b0_t=float(sample.scan.b0_t),
        tr_ms=float(sample.scan.scanner.tr_ms),
        flip_deg=float(sample.scan.scanner.flip_deg),
        snr=float(sample.scan.snr),
        motion_mm=float(sample.scan.motion_mm),
        phase_sign=protocol.phase_sign,
    )


def _image_to_world(sample: Sample, anatomy: PackedAnatomy) -> np.ndarray:
    """(4, 4) image frame -> RAS mm of the scanner, whose field points to +z."""
    x, y, z = (float(v) for v in sample.scan.b0_direction)
    length = float(np.sqrt(x * x + y * y + z * z))
    world = np.eye(4)
    world[:3, :3] = rotation_to_scanner((x / length, y / length, z / length))
    world[:3, 3] = np.asarray(anatomy.center_mm, np.float64)
    return world


def lesion_table(sample: Sample, world: np.ndarray) -> LesionTable:
    """Microbleeds that count, focal mimics, microbleeds that are ignored, of one sample on the host.

    world (4, 4): image frame -> RAS mm.
    """
    bleeds, focal = sample.bleeds, sample.focal
    unseen = jnp.full_like(bleeds.kind, int(MimicKind.IGNORED_MICROBLEED))
    ignored = dataclasses.replace(bleeds, kind=unseen)
    groups = (
        (bleeds, sample.counts, sample.bleed_mm, sample.bleed_seen.cnr),
        (focal, focal.valid, sample.focal_mm, sample.focal_seen.cnr),
        (ignored, sample.ignored, sample.bleed_mm, sample.bleed_seen.cnr),
    )
    everything = jax.tree.map(lambda *parts: np.concatenate(parts), *groups)
    bodies, _, seen_mm, cnr = jax.tree.map(lambda values: values[everything[1]], everything)
    code = bodies.code.astype(np.int32)
    region = region_of(code)
    return LesionTable(
        id=np.arange(1, len(code) + 1, dtype=np.int32),
        kind=bodies.kind,
        center_mm=apply_affine(world, bodies.center_mm.astype(np.float64)),
        diameter_mm=2 * np.prod(bodies.radii_mm.astype(np.float64), axis=1) ** (1 / 3),
        apparent_diameter_mm=seen_mm.astype(np.float64),
        chi_ppm=bodies.chi_ppm.astype(np.float64),
        region=region,
        side=side_of(code),
        zone=ZONE_OF_REGION[region],
        cnr=cnr.astype(np.float64),
    )


_last_packed: list[tuple[AnatomyPack, PackedAnatomy]] = []


def packed(pack: AnatomyPack) -> PackedAnatomy:
    """The pack on the device; the last three are kept, as a cohort uses few."""
    for known, on_device in _last_packed:
        if known is pack:
            return on_device
    fresh = pack_anatomy(pack)
    _last_packed[:] = [*_last_packed[-2:], (pack, fresh)]
    return fresh


def rotation_to_scanner(b0_direction: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) smallest rotation from array axes to scanner axes: takes `b0_direction` to (0, 0, 1)."""
    b = np.asarray(b0_direction, np.float64)
    z = np.array([0.0, 0.0, 1.0])
    v, c = np.cross(b, z), float(b @ z)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + c)
