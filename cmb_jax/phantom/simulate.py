"""One simulated subject from an anatomy pack and a seed, as volumes and a table."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.anatomy.pack import AnatomyPack
from cmb_jax.anatomy.regions import ZONE_OF_REGION, region_of, side_of
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume
from cmb_jax.phantom.head import PackedAnatomy, pack_anatomy
from cmb_jax.phantom.lesions import Bodies
from cmb_jax.phantom.sample import Plan, Ranges, Sample, simulate_sample
from cmb_jax.phantom.settings import SubjectSettings, check_settings
from cmb_jax.phantom.types import LesionTable, MimicKind, PhantomSubject


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
    unseen = jnp.full_like(sample.bleeds.kind, int(MimicKind.IGNORED_MICROBLEED))
    ignored = dataclasses.replace(sample.bleeds, kind=unseen)
    groups = (
        (sample.bleeds, sample.counts, sample.bleed_mm, sample.bleed_seen.cnr),
        (sample.focal, sample.focal.valid, sample.focal_mm, sample.focal_seen.cnr),
        (ignored, sample.ignored, sample.bleed_mm, sample.bleed_seen.cnr),
    )
    parts = [
        _columns(bodies, np.asarray(keep), np.asarray(size), np.asarray(cnr), world)
        for bodies, keep, size, cnr in groups
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return LesionTable(id=np.arange(1, len(columns["kind"]) + 1, dtype=np.int32), **columns)


def _columns(
    bodies: Bodies, keep: np.ndarray, apparent_mm: np.ndarray, cnr: np.ndarray, world: np.ndarray
) -> dict[str, np.ndarray]:
    """The table's columns of some bodies, without the ids."""
    index = np.flatnonzero(keep)
    code = np.asarray(bodies.code)[index].astype(np.int32)
    region = region_of(code)
    center = np.asarray(bodies.center_mm, np.float64)[index]
    return {
        "kind": np.asarray(bodies.kind)[index].astype(np.int32),
        "center_mm": apply_affine(world, center),
        "diameter_mm": 2 * np.prod(np.asarray(bodies.radii_mm, np.float64)[index], axis=1) ** (1 / 3),
        "apparent_diameter_mm": np.asarray(apparent_mm, np.float64)[index],
        "chi_ppm": np.asarray(bodies.chi_ppm, np.float64)[index],
        "region": region,
        "side": side_of(code),
        "zone": ZONE_OF_REGION[region],
        "cnr": np.asarray(cnr, np.float64)[index],
    }


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
