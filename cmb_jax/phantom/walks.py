"""Vessels grown as smooth random walks that taper and branch, with static shapes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.planning import interpolate

STEP_MM = 0.5
SHORTEST_MM = 10.0  # from a walk's root to its farthest point: a shorter one is not drawn
MURRAY = 2.0 ** (-1.0 / 3.0)  # radius of a daughter over its mother's, two equal daughters (Murray 1926)
SYMMETRIC = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # a matrix from its upper triangle, row by row
TAPER = 0.55  # of the radius is lost from a walk's root to its tip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vessels:
    """Points of all vessels in the image frame, `STEP_MM` apart along each; unused slots are not valid."""

    points_mm: jax.Array  # (N, 3)
    radius_mm: jax.Array  # (N,)
    flow: jax.Array  # (N, 3) unit vectors, the way the blood runs
    chi_ppm: jax.Array  # (N,) of its blood; 0 in arteries
    signal: jax.Array  # (N,) of its blood, over that of tissue
    kind: jax.Array  # (N,) int32 MimicKind
    valid: jax.Array  # (N,) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walks:
    """W walks of S steps from their roots, image frame."""

    points_mm: jax.Array  # (W, S, 3)
    heading: jax.Array  # (W, S, 3) unit vectors, away from the root
    radius_mm: jax.Array  # (W, S)
    alive: jax.Array  # (W, S) bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terrain:
    """What bends walks and where they may go, on the planning grid."""

    pull: jax.Array  # (X, Y, Z, 3) added to the heading at every step
    across: jax.Array  # (X, Y, Z, 6) symmetric matrix: at every step the heading loses this times itself
    room: jax.Array  # (X, Y, Z) above 0.5 where a walk may be


def unit(vectors: jax.Array) -> jax.Array:
    """(..., 3) scaled to length 1."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def grow(
    key: jax.Array,
    start_mm: jax.Array,
    heading: jax.Array,
    radius_mm: jax.Array,
    steps_wanted: jax.Array,
    used: jax.Array,
    terrain: Terrain,
    *,
    wander: float,
    grid: Grid,
    steps: int,
) -> Walks:
    """Walks from `start_mm` (W, 3) along `heading` (W, 3) while there is room.

    radius_mm (W,) at the root; it falls linearly by `TAPER` over `steps_wanted` (W,), at which a walk ends.
    used (W,): the others stay empty. wander: how much the heading turns at random, a step.
    """
    k_noise, k_first = jax.random.split(key)
    ground = jnp.concatenate([terrain.pull, terrain.across, terrain.room[..., None]], axis=-1)

    def step(state: tuple[jax.Array, ...], k: jax.Array):
        point, heading, drift, alive, here = state
        drift = 0.85 * drift + wander * jax.random.normal(k, point.shape)
        held = jnp.einsum("wab,wb->wa", here[:, 3 + SYMMETRIC], heading)
        heading = unit(heading + here[:, :3] - held + drift)
        point = point + STEP_MM * heading
        here = interpolate(ground, grid, point)
        alive = alive & (here[:, -1] > 0.5)
        return (point, heading, drift, alive, here), (point, heading, alive)

    drift = wander * jax.random.normal(k_first, start_mm.shape)
    first = (start_mm, unit(heading), drift, used, interpolate(ground, grid, start_mm))
    _, (points, headings, alive) = jax.lax.scan(step, first, jax.random.split(k_noise, steps))
    at = jnp.arange(steps)
    alive = jnp.swapaxes(alive, 0, 1) & (at < steps_wanted[:, None])
    radius = radius_mm[:, None] * (1.0 - TAPER * jnp.minimum(at / steps_wanted[:, None], 1.0))
    return Walks(jnp.swapaxes(points, 0, 1), jnp.swapaxes(headings, 0, 1), radius, alive)


def long_enough(walks: Walks) -> Walks:
    """Without the walks that get nowhere: all of one that stays within `SHORTEST_MM` of its root.

    A short piece of vein, or one that curls up, shows nothing by which it could be told from a microbleed.
    """
    away = jnp.linalg.norm(walks.points_mm - walks.points_mm[:, :1], axis=-1)
    far = jnp.max(jnp.where(walks.alive, away, 0.0), axis=1) >= SHORTEST_MM
    return dataclasses.replace(walks, alive=walks.alive & far[:, None])


def branch(
    key: jax.Array,
    mothers: Walks,
    terrain: Terrain,
    *,
    count: int,
    angle_rad: tuple[float, float],
    wander: float,
    grid: Grid,
    steps: int,
) -> Walks:
    """`count` walks that leave the mothers in turn, each somewhere in the middle of its mother's course.

    Those that are not `long_enough` are left out.
    """
    k_where, k_angle, k_way, k_length, k_grow = jax.random.split(key, 5)
    mother = jnp.arange(count) % mothers.alive.shape[0]
    length = jnp.sum(mothers.alive[mother], axis=1)
    at = (length * jax.random.uniform(k_where, (count,), minval=0.15, maxval=0.85)).astype(jnp.int32)
    heading = mothers.heading[mother, at]
    aside = unit(jnp.cross(heading, jax.random.normal(k_way, (count, 3))))
    angle = jax.random.uniform(k_angle, (count, 1), minval=angle_rad[0], maxval=angle_rad[1])
    wanted = jax.random.randint(k_length, (count,), steps // 2, steps + 1)
    return long_enough(
        grow(
            k_grow,
            mothers.points_mm[mother, at],
            jnp.cos(angle) * heading + jnp.sin(angle) * aside,
            mothers.radius_mm[mother, at] * MURRAY,
            wanted,
            mothers.alive[mother, at] & (length > 6),
            terrain,
            wander=wander,
            grid=grid,
            steps=steps,
        )
    )


def as_vessels(
    walks: Walks, chi_ppm: jax.Array, signal: jax.Array, kind: int, *, towards_root: bool
) -> Vessels:
    """All points of walks; chi_ppm and signal are (W,). Veins carry blood towards their root."""
    count, steps = walks.alive.shape
    heading = walks.heading.reshape(-1, 3)
    return Vessels(
        points_mm=walks.points_mm.reshape(-1, 3),
        radius_mm=walks.radius_mm.reshape(-1),
        flow=-heading if towards_root else heading,
        chi_ppm=jnp.repeat(chi_ppm, steps),
        signal=jnp.repeat(signal, steps),
        kind=jnp.full((count * steps,), int(kind), jnp.int32),
        valid=walks.alive.reshape(-1),
    )


def concatenate(parts: tuple[Vessels, ...]) -> Vessels:
    """All vessels in one."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
