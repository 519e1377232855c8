"""Veins as strings of points along smooth random walks and along known courses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid, Pose, from_pack
from cmb_jax.phantom.planning import HeadMaps, blur, draw_voxels, gradient, in_regions, interpolate
from cmb_jax.phantom.types import MimicKind

MEDULLARY_SLOTS, PIAL_SLOTS = 260, 420
MEDULLARY_STEPS, PIAL_STEPS = 56, 72
STEP_MM = 0.5
MAX_RADIUS_MM = 1.1

# The deep venous system in MNI mm, right side; (points along the course, radius in mm).
_DEEP_COURSES: tuple[tuple[tuple[tuple[float, float, float], ...], float], ...] = (
    (((2.5, 2, 9), (2.5, -10, 14), (2.5, -25, 13), (2, -36, 9), (0.5, -43, 10)), 0.9),  # internal cerebral
    (((4, 2, 10), (12, -2, 18), (19, -16, 22), (24, -30, 18)), 0.6),  # thalamostriate
    (((2.5, 3, 9), (4, 16, 11), (9, 27, 12)), 0.5),  # anterior septal
    (((10, -6, -14), (17, -20, -10), (14, -34, 0), (1.5, -42, 7)), 0.8),  # basal vein of Rosenthal
    (((0.5, -43, 10), (0.5, -50, 14)), 1.1),  # great vein of Galen
)
_DEEP_POINTS = 128  # on each course


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Veins:
    """Points of all veins in the image frame; chi 0 where a slot is unused."""

    points_mm: jax.Array  # (N, 3)
    radius_mm: jax.Array  # (N,)
    chi_ppm: jax.Array  # (N,)
    kind: jax.Array  # (N,) int32 MimicKind


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _walk(
    key: jax.Array,
    start: jax.Array,
    direction: jax.Array,
    pull: jax.Array,
    noise: float,
    room: jax.Array,
    *,
    grid: Grid,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Walks (W, steps, 3) from `start` (W, 3), and where each has been in `room` all along, (W, steps).

    `pull` (X, Y, Z, 3) bends them, by its own length; `noise` (a step) makes them wander smoothly.
    """
    k_noise, k_first = jax.random.split(key)

    def step(state: tuple[jax.Array, ...], k: jax.Array):
        point, heading, drift, alive = state
        drift = 0.85 * drift + noise * jax.random.normal(k, point.shape)
        heading = _unit(heading + interpolate(pull, grid, point) + drift)
        point = point + STEP_MM * heading
        alive = alive & (interpolate(room[..., None], grid, point)[:, 0] > 0.5)
        return (point, heading, drift, alive), (point, alive)

    drift = noise * jax.random.normal(k_first, start.shape)
    first = (start, _unit(direction), drift, jnp.ones(start.shape[0], bool))
    _, (points, alive) = jax.lax.scan(step, first, jax.random.split(k_noise, steps))
    return jnp.swapaxes(points, 0, 1), jnp.swapaxes(alive, 0, 1)


def _assemble(key, points, alive, active, radius_range, chi_blood, kind) -> Veins:
    walks, steps = alive.shape
    k_radius, k_chi = jax.random.split(key)
    low, high = np.log(radius_range[0]), np.log(radius_range[1])
    radius = jnp.exp(jax.random.uniform(k_radius, (walks,), minval=low, maxval=high))
    chi = chi_blood * jax.random.uniform(k_chi, (walks,), minval=0.8, maxval=1.2)
    chi = jnp.where(alive & active[:, None], chi[:, None], 0.0)
    return Veins(
        points.reshape(-1, 3),
        jnp.repeat(radius, steps),
        chi.reshape(-1),
        jnp.full((walks * steps,), int(kind), jnp.int32),
    )


def _medullary(key: jax.Array, head: HeadMaps, grid: Grid, chi_blood: jax.Array) -> Veins:
    """From the walls of the lateral ventricles outwards through the white matter."""
    keys = jax.random.split(key, 5)
    lateral = (head.region == Region.VENTRICLE) & (jnp.abs(head.pack_mm[..., 0]) > 4)
    near = blur(lateral.astype(jnp.float32), 1.2)
    far = blur(lateral.astype(jnp.float32), 6.0)
    white = head.channels[..., Channel.WHITE_MATTER]
    below = in_regions(head.region, Region.BRAINSTEM, Region.CEREBELLUM)
    upper = (head.pack_mm[..., 2] > 0) & ~below
    start = draw_voxels(keys[0], near * (1 - near) * white * upper, grid, MEDULLARY_SLOTS)
    outward = _unit(gradient(-jnp.log(far + 1e-5)))
    nuclei = in_regions(head.region, Region.THALAMUS, Region.BASAL_GANGLIA)
    room = blur(((white + near > 0.5) & ~below & ~nuclei).astype(jnp.float32), 0.7) * 1.4
    heading = interpolate(outward, grid, start)
    points, alive = _walk(
        keys[1], start, heading, 0.08 * outward, 0.02, room, grid=grid, steps=MEDULLARY_STEPS
    )
    length = jax.random.randint(keys[2], (MEDULLARY_SLOTS, 1), MEDULLARY_STEPS // 3, MEDULLARY_STEPS)
    alive = alive & (jnp.arange(MEDULLARY_STEPS) < length)
    active = jnp.arange(MEDULLARY_SLOTS) < jax.random.randint(keys[3], (), 90, MEDULLARY_SLOTS)
    return _assemble(keys[4], points, alive, active, (0.22, 0.5), chi_blood, MimicKind.MEDULLARY_VEIN)


def _pial(key: jax.Array, head: HeadMaps, grid: Grid, chi_blood: jax.Array) -> Veins:
    """Through the sulci and over the brain's surface."""
    keys = jax.random.split(key, 5)
    sulcal = in_regions(head.region, Region.SULCAL_CSF) * head.channels[..., Channel.CSF]
    depth = blur(sulcal, 1.0)
    grey = blur(head.channels[..., Channel.GREY_MATTER], 1.0)
    start = draw_voxels(keys[0], sulcal * jnp.clip(grey - 0.05, 0.0, 0.5), grid, PIAL_SLOTS)
    heading = jax.random.normal(keys[1], start.shape)
    # Off the axis of the sulcus the walk is bent back; along it nothing acts.
    pull = gradient(depth) * 1.2
    room = depth * 4.0
    points, alive = _walk(keys[2], start, heading, pull, 0.035, room, grid=grid, steps=PIAL_STEPS)
    active = jnp.arange(PIAL_SLOTS) < jax.random.randint(keys[3], (), 200, PIAL_SLOTS)
    return _assemble(keys[4], points, alive, active, (0.25, 0.9), chi_blood, MimicKind.PIAL_VEIN)


def _course_points() -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced points (courses, _DEEP_POINTS, 3) of both sides and their radii (courses,)."""
    lines, radii = [], []
    for course, radius in _DEEP_COURSES:
        for side in (1.0, -1.0):
            corners = np.asarray(course) * (side, 1.0, 1.0)
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
            at = np.linspace(0, length[-1], _DEEP_POINTS)
            lines.append(np.stack([np.interp(at, length, corners[:, a]) for a in range(3)], axis=1))
            radii.append(radius)
    return np.asarray(lines, np.float32), np.asarray(radii, np.float32)


def _deep(key: jax.Array, pose: Pose, lattice: Grid, chi_blood: jax.Array) -> Veins:
    courses, radii = _course_points()
    k_bend, k_radius = jax.random.split(key)
    count = courses.shape[0]
    t = jnp.linspace(0.0, 1.0, _DEEP_POINTS)
    waves = jnp.stack([jnp.sin(jnp.pi * n * t) for n in (1, 2, 3, 5)])
    bend = jax.random.normal(k_bend, (count, 3, 4)) * jnp.array([1.2, 0.8, 0.6, 0.3])
    bent = jnp.asarray(courses) + jnp.einsum("cak,kt->cta", bend, waves)
    points = from_pack(pose, lattice, bent.reshape(-1, 3))
    sizes = jnp.asarray(radii) * jnp.exp(0.15 * jax.random.normal(k_radius, (count,)))
    radius = jnp.minimum(jnp.repeat(sizes, _DEEP_POINTS), MAX_RADIUS_MM)
    kind = jnp.full(radius.shape, int(MimicKind.DEEP_VEIN), jnp.int32)
    return Veins(points, radius, jnp.full(radius.shape, chi_blood), kind)


@functools.partial(jax.jit, static_argnames=("lattice", "grid"))
def draw_veins(
    key: jax.Array, pose: Pose, head: HeadMaps, chi_blood: jax.Array, *, lattice: Grid, grid: Grid
) -> Veins:
    """Medullary, pial and deep veins of a subject; chi_blood () ppm of its venous blood."""
    k_medullary, k_pial, k_deep = jax.random.split(key, 3)
    groups = (
        _medullary(k_medullary, head, grid, chi_blood),
        _pial(k_pial, head, grid, chi_blood),
        _deep(k_deep, pose, lattice, chi_blood),
    )
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)
