"""The vessels of a subject: medullary, pial and deep veins, arteries. Sinuses come with the anatomy pack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.packed import PackedAnatomy, of_mni
from cmb_jax.phantom.planning import HeadMaps, blur, draw_voxels, gradient, in_regions, interpolate
from cmb_jax.phantom.pose import Pose, from_pack
from cmb_jax.phantom.tiers import Tier
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.walks import (
    STEP_MM,
    Terrain,
    Vessels,
    Walks,
    as_vessels,
    branch,
    concatenate,
    grow,
    unit,
)

MEDULLARY_ROOTS, MEDULLARY_STEPS = 340, 84
MEDULLARY_BRANCHES, MEDULLARY_BRANCH_STEPS = 340, 36
PIAL_ROOTS, PIAL_STEPS = 320, 110
PIAL_BRANCHES, PIAL_BRANCH_STEPS = 480, 56
MIN_THIN_MM, MAX_THIN_MM = 0.18, 0.42  # radius of a medullary vein where it is widest
MAX_RADIUS_MM = 1.4

_Course = tuple[tuple[float, float, float], ...]

# Courses in MNI mm, right side, with the radius in mm at the end nearer to the heart. Veins run as listed,
# towards the great vein; arteries as listed, away from the heart. After standard atlases of neuroanatomy.
_DEEP_VEINS: tuple[tuple[_Course, float], ...] = (
    (((2.5, 2, 9), (2.5, -10, 14), (2.5, -25, 13), (2, -36, 9), (0.5, -43, 10)), 0.9),  # internal cerebral
    (((24, -30, 18), (19, -16, 22), (12, -2, 18), (4, 2, 10)), 0.6),  # thalamostriate
    (((9, 27, 12), (4, 16, 11), (2.5, 3, 9)), 0.5),  # anterior septal
    (((10, -6, -14), (17, -20, -10), (14, -34, 0), (1.5, -42, 7)), 0.8),  # basal vein of Rosenthal
    (((0.5, -43, 10), (0.5, -50, 14)), 1.1),  # great vein of Galen
)
_ARTERIES: tuple[tuple[_Course, float], ...] = (
    (((0, -20, -44), (0.5, -17, -32), (0, -14, -20)), 1.3),  # basilar
    (((2, -14, -18), (12, -18, -15), (20, -28, -10), (20, -44, -4), (14, -62, 0)), 0.9),  # posterior cerebral
    (((10, 2, -16), (22, 2, -15), (34, 4, -14), (40, 2, -6), (41, -10, 4), (42, -24, 12)), 1.1),  # middle
    (((8, 4, -14), (2.5, 16, -12), (2.5, 32, -4), (2.5, 38, 10), (2.5, 28, 24)), 0.9),  # anterior cerebral
    (((40, 2, -6), (44, 14, 0), (47, 24, 8)), 0.7),  # anterior branch of the middle cerebral
    (((40, 0, -6), (46, -14, -4), (50, -30, 0)), 0.7),  # temporal branch
)
_LONGEST_COURSE = 220  # steps


def _medullary(key: jax.Array, head: HeadMaps, grid: Grid, chi_blood: jax.Array, tier: Tier) -> Vessels:
    """From the walls of the lateral ventricles through the white matter to the cortex."""
    keys = jax.random.split(key, 8)
    lateral = (head.region == Region.VENTRICLE) & (jnp.abs(head.mni_mm[..., 0]) > 4)
    near = blur(lateral.astype(jnp.float32), 1.2)
    far = blur(lateral.astype(jnp.float32), 7.0)
    white = head.channels[..., Channel.WHITE_MATTER]
    below = in_regions(head.region, Region.BRAINSTEM, Region.CEREBELLUM)
    upper = (head.mni_mm[..., 2] > 0) & ~below
    weight = near * (1 - near) * white * upper
    start = draw_voxels(keys[0], weight, grid, MEDULLARY_ROOTS)
    outward = unit(gradient(-jnp.log(far + 1e-5)))
    nuclei = in_regions(head.region, Region.THALAMUS, Region.BASAL_GANGLIA)
    room = blur(((white + near > 0.5) & ~below & ~nuclei).astype(jnp.float32), 0.7) * 1.4
    terrain = Terrain(0.08 * outward, room)
    radius = _log_uniform(keys[1], MEDULLARY_ROOTS, MIN_THIN_MM, MAX_THIN_MM)
    length = jax.random.randint(keys[2], (MEDULLARY_ROOTS,), MEDULLARY_STEPS // 3, MEDULLARY_STEPS + 1)
    share = tier.vein_density * jax.random.uniform(keys[3], minval=0.5)
    used = (jnp.arange(MEDULLARY_ROOTS) < share * MEDULLARY_ROOTS) & (jnp.sum(weight) > 0)
    heading = interpolate(outward, grid, start)
    mothers = grow(
        keys[4], start, heading, radius * tier.vein_radius, length, used, terrain,
        wander=0.02, grid=grid, steps=MEDULLARY_STEPS,
    )  # fmt: skip
    daughters = branch(
        keys[5], mothers, terrain, count=MEDULLARY_BRANCHES, angle_rad=(0.3, 0.8),
        wander=0.03, grid=grid, steps=MEDULLARY_BRANCH_STEPS,
    )  # fmt: skip
    return _venous(keys[6], (mothers, daughters), chi_blood, MimicKind.MEDULLARY_VEIN)


def _pial(key: jax.Array, head: HeadMaps, grid: Grid, chi_blood: jax.Array, tier: Tier) -> Vessels:
    """Through the sulci and over the brain's surface."""
    keys = jax.random.split(key, 8)
    sulcal = in_regions(head.region, Region.SULCAL_CSF) * head.channels[..., Channel.CSF]
    depth = blur(sulcal, 1.0)
    grey = blur(head.channels[..., Channel.GREY_MATTER], 1.0)
    weight = sulcal * jnp.clip(grey - 0.05, 0.0, 0.5)
    start = draw_voxels(keys[0], weight, grid, PIAL_ROOTS)
    # Off the axis of the sulcus the walk is bent back; along it nothing acts.
    terrain = Terrain(gradient(depth) * 1.2, depth * 4.0)
    radius = _log_uniform(keys[1], PIAL_ROOTS, 0.3, 1.0) * tier.vein_radius
    length = jax.random.randint(keys[2], (PIAL_ROOTS,), PIAL_STEPS // 3, PIAL_STEPS + 1)
    share = tier.vein_density * jax.random.uniform(keys[3], minval=0.5)
    used = (jnp.arange(PIAL_ROOTS) < share * PIAL_ROOTS) & (jnp.sum(weight) > 0)
    mothers = grow(
        keys[4], start, jax.random.normal(keys[5], start.shape), radius, length, used, terrain,
        wander=0.035, grid=grid, steps=PIAL_STEPS,
    )  # fmt: skip
    daughters = branch(
        keys[6], mothers, terrain, count=PIAL_BRANCHES, angle_rad=(0.5, 1.2),
        wander=0.04, grid=grid, steps=PIAL_BRANCH_STEPS,
    )  # fmt: skip
    return _venous(keys[7], (mothers, daughters), chi_blood, MimicKind.PIAL_VEIN)


def _log_uniform(key: jax.Array, count: int, low: float, high: float) -> jax.Array:
    return jnp.exp(jax.random.uniform(key, (count,), minval=np.log(low), maxval=np.log(high)))


def _venous(key: jax.Array, generations: tuple[Walks, ...], chi_blood: jax.Array, kind: int) -> Vessels:
    """Veins of several generations: oxygenation differs a little from tree to tree."""
    parts = []
    for walks, k in zip(generations, jax.random.split(key, len(generations)), strict=True):
        count = walks.alive.shape[0]
        chi = chi_blood * jax.random.uniform(k, (count,), minval=0.8, maxval=1.2)
        parts.append(as_vessels(walks, chi, jnp.full((count,), 0.95), kind, towards_root=True))
    return concatenate(tuple(parts))


def _course_points(courses: tuple[tuple[_Course, float], ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sides' points (C, S, 3) in MNI mm, `STEP_MM` apart; which exist (C, S); radius at the root (C,).

    A course shorter than S steps ends early; the rest repeats its end.
    """
    lines, there, radii = [], [], []
    for course, radius in courses:
        for side in (1.0, -1.0):
            corners = np.asarray(course) * (side, 1.0, 1.0)
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
            at = np.minimum(np.arange(_LONGEST_COURSE) * STEP_MM, length[-1])
            lines.append(np.stack([np.interp(at, length, corners[:, a]) for a in range(3)], axis=1))
            there.append(np.arange(_LONGEST_COURSE) * STEP_MM <= length[-1])
            radii.append(radius)
    return np.asarray(lines, np.float32), np.asarray(there), np.asarray(radii, np.float32)


def _along_courses(
    key: jax.Array,
    courses: tuple[tuple[_Course, float], ...],
    anatomy: PackedAnatomy,
    pose: Pose,
    lattice: Grid,
    *,
    narrows: bool,
) -> Walks:
    """Known courses, bent a little; `narrows`: the radius falls along them, else it grows."""
    lines, there, radii = _course_points(courses)
    k_bend, k_radius = jax.random.split(key)
    count = len(lines)
    t = jnp.linspace(0.0, 1.0, _LONGEST_COURSE)
    waves = jnp.stack([jnp.sin(jnp.pi * n * t) for n in (1, 2, 3, 5)])
    bend = jax.random.normal(k_bend, (count, 3, 4)) * jnp.array([1.2, 0.8, 0.6, 0.3])
    bent = jnp.asarray(lines) + jnp.einsum("cak,kt->cta", bend, waves)
    points = from_pack(pose, lattice, of_mni(anatomy, bent.reshape(-1, 3))).reshape(bent.shape)
    ahead = unit(jnp.diff(points, axis=1, append=2 * points[:, -1:] - points[:, -2:-1]))
    along = jnp.cumsum(jnp.asarray(there), axis=1) / jnp.sum(jnp.asarray(there), axis=1, keepdims=True)
    shrink = 1.0 - 0.4 * (along if narrows else 1.0 - along)
    size = jnp.asarray(radii) * jnp.exp(0.15 * jax.random.normal(k_radius, (count,)))
    return Walks(points, ahead, jnp.minimum(size[:, None] * shrink, MAX_RADIUS_MM), jnp.asarray(there))


def draw_vessels(
    key: jax.Array,
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    chi_blood: jax.Array,
    artery_signal: jax.Array,
    tier: Tier,
    *,
    lattice: Grid,
    grid: Grid,
) -> tuple[Vessels, Vessels]:
    """Thin vessels (radius up to `MAX_THIN_MM` times the tier's factor) and all others.

    chi_blood (): ppm of the subject's venous blood; artery_signal (): of flowing arterial blood, over tissue.
    """
    k_medullary, k_pial, k_deep, k_artery = jax.random.split(key, 4)
    thin = _medullary(k_medullary, head, grid, chi_blood, tier)
    pial = _pial(k_pial, head, grid, chi_blood, tier)
    deep = _along_courses(k_deep, _DEEP_VEINS, anatomy, pose, lattice, narrows=False)
    arteries = _along_courses(k_artery, _ARTERIES, anatomy, pose, lattice, narrows=True)

    def constant(walks: Walks, value: jax.Array | float) -> jax.Array:
        return jnp.full((walks.alive.shape[0],), value)

    deep_veins = as_vessels(
        deep, constant(deep, chi_blood), constant(deep, 0.95), MimicKind.DEEP_VEIN, towards_root=False
    )
    arterial = as_vessels(
        arteries,
        constant(arteries, 0.0),
        constant(arteries, artery_signal),
        MimicKind.ARTERY,
        towards_root=False,
    )  # fmt: skip
    return thin, concatenate((pial, deep_veins, arterial))
