import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.planning import head_maps
from cmb_jax.phantom.pose import random_pose
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.vessels import draw_vessels
from cmb_jax.phantom.walks import MURRAY, STEP_MM, TAPER, Terrain, branch, grow

GRID = Grid((41, 41, 41), (2.0, 2.0, 2.0), (-40.0, -40.0, -40.0))
OPEN = Terrain(jnp.zeros((*GRID.shape, 3)), jnp.ones(GRID.shape))


def walk(steps=40, wander=0.0, terrain=OPEN):
    start = jnp.array([[0.0, 0, 0], [5.0, 5, 5], [0.0, 0, 0]])
    heading = jnp.array([[1.0, 0, 0], [0, 0, 2.0], [0, 1.0, 0]])
    return grow(
        jax.random.key(0), start, heading, jnp.array([0.8, 0.4, 0.4]), jnp.array([40, 20, 40]),
        jnp.array([True, True, False]), terrain, wander=wander, grid=GRID, steps=steps,
    )  # fmt: skip


def test_a_walk_without_noise_is_a_straight_tapering_line():
    walks = walk()
    expected = (np.arange(40)[:, None] + 1) * STEP_MM * np.array([1.0, 0, 0])
    np.testing.assert_allclose(np.asarray(walks.points_mm[0]), expected, atol=1e-4)
    np.testing.assert_allclose(walks.radius_mm[0], 0.8 * (1 - TAPER * np.arange(40) / 40), rtol=1e-5)
    assert np.asarray(walks.alive).sum(axis=1).tolist() == [40, 20, 0]


def test_a_walk_ends_where_there_is_no_room():
    x = np.asarray(GRID.axis_mm(0))[:, None, None] * np.ones(GRID.shape)
    walks = walk(terrain=Terrain(OPEN.pull, jnp.asarray(x < 8.0, jnp.float32)))
    alive = np.asarray(walks.alive[0])
    reached = np.asarray(walks.points_mm[0])[alive, 0].max()
    assert 6.0 < reached < 9.0
    assert not alive[np.argmin(alive) :].any()  # once out, out for good


def test_branches_start_on_their_mothers_and_are_thinner():
    mothers = walk(wander=0.02)
    daughters = branch(
        jax.random.key(1), mothers, OPEN, count=6, angle_rad=(0.5, 0.6), wander=0.0, grid=GRID, steps=12
    )
    for i in range(6):
        mother = i % 3
        line = np.asarray(mothers.points_mm[mother])
        if mother == 2:  # an unused slot has no branches
            assert not np.asarray(daughters.alive[i]).any()
            continue
        first = np.asarray(daughters.points_mm[i, 0])
        near = np.linalg.norm(line - first, axis=1)
        at = int(np.argmin(near))
        assert near[at] <= STEP_MM + 1e-3
        radius = float(daughters.radius_mm[i, 0])
        assert radius < float(mothers.radius_mm[mother, 0])
        around = np.asarray(mothers.radius_mm[mother])[max(0, at - 2) : at + 3]
        assert np.abs(around * MURRAY - radius).min() < 0.02
        angle = np.arccos(np.asarray(daughters.heading[i, 0]) @ np.asarray(mothers.heading[mother, at]))
        assert 0.4 < angle < 0.7


@pytest.fixture(scope="module")
def drawn(anatomy, plan, hard, half):
    pose = jax.jit(lambda a: random_pose(jax.random.key(1), a, half, a.centre_mm, lattice=plan.lattice))(
        anatomy
    )
    head = jax.jit(lambda a, p: head_maps(a, p, half, lattice=plan.lattice, grid=plan.planning))(
        anatomy, pose
    )
    draw = jax.jit(
        lambda key: draw_vessels(
            key, anatomy, pose, head, jnp.float32(0.3), jnp.float32(0.2), hard,
            lattice=plan.lattice, grid=plan.planning,
        )
    )  # fmt: skip
    return head, [jax.device_get(draw(jax.random.key(seed))) for seed in (0, 0, 1)]


def test_vessels_are_seeded(drawn):
    _, (first, again, other) = drawn
    for a, b, c in zip(jax.tree.leaves(first), jax.tree.leaves(again), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == c.shape
    assert np.abs(first[0].points_mm - other[0].points_mm).max() > 1


def test_kinds_and_blood(drawn):
    _, ((thin, wide), *_) = drawn
    assert set(thin.kind[thin.valid]) == {MimicKind.MEDULLARY_VEIN}
    assert set(wide.kind[wide.valid]) == {MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN, MimicKind.ARTERY}
    arterial = wide.kind == MimicKind.ARTERY
    assert (wide.chi_ppm[arterial] == 0).all()
    assert (wide.chi_ppm[~arterial & wide.valid] > 0.2).all()
    np.testing.assert_allclose(np.linalg.norm(wide.flow[wide.valid], axis=1), 1.0, atol=1e-3)


def test_medullary_veins_drain_towards_the_ventricles(drawn, plan):
    head, ((thin, _), *_) = drawn
    ventricle = np.argwhere(np.asarray(head.region) == Region.VENTRICLE)
    places = ventricle * plan.planning.spacing_mm + plan.planning.origin_mm
    points, flow = thin.points_mm[thin.valid], thin.flow[thin.valid]
    some = np.random.default_rng(0).choice(len(points), 400, replace=False)

    def nearest(at):
        return np.linalg.norm(at[:, None] - places, axis=2).min(axis=1)

    assert (nearest(points[some] + 2 * flow[some]) < nearest(points[some])).mean() > 0.85
    assert nearest(points[some]).max() > 15  # they reach far into the white matter
