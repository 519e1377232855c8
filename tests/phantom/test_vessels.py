import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.anatomy.assets import load_pack
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom import PROTOCOLS, TIERS
from cmb_jax.phantom.benchmark import ANATOMIES, PROTOCOL_NAMES
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.head import head_maps, pack_anatomy, random_pose
from cmb_jax.phantom.render import vessel_labels
from cmb_jax.phantom.simulate import Plan
from cmb_jax.phantom.types import MimicKind
from cmb_jax.phantom.vessels import (
    END_ON_RAD,
    MEDULLARY_ROOTS,
    MEDULLARY_STEPS,
    MURRAY,
    SHORTEST_MM,
    STEP_MM,
    TAPER,
    Terrain,
    Walks,
    branch,
    draw_vessels,
    grow,
    long_enough,
)

GRID = Grid((41, 41, 41), (2.0, 2.0, 2.0), (-40.0, -40.0, -40.0))
OPEN = Terrain(jnp.zeros((*GRID.shape, 3)), jnp.zeros((*GRID.shape, 6)), jnp.ones(GRID.shape), GRID)


def walk(steps=40, wander=0.0, terrain=OPEN):
    start = jnp.array([[0.0, 0, 0], [5.0, 5, 5], [0.0, 0, 0]])
    heading = jnp.array([[1.0, 0, 0], [0, 0, 2.0], [0, 1.0, 0]])
    return grow(
        jax.random.key(0), start, heading, jnp.array([0.8, 0.4, 0.4]), jnp.array([40, 20, 40]),
        jnp.array([True, True, False]), terrain, wander=wander, steps=steps,
    )  # fmt: skip


def test_a_walk_without_noise_is_a_straight_tapering_line():
    walks = walk()
    expected = (np.arange(40)[:, None] + 1) * STEP_MM * np.array([1.0, 0, 0])
    np.testing.assert_allclose(np.asarray(walks.points_mm[0]), expected, atol=1e-4)
    np.testing.assert_allclose(walks.radius_mm[0], 0.8 * (1 - TAPER * np.arange(40) / 40), rtol=1e-5)
    assert np.asarray(walks.alive).sum(axis=1).tolist() == [40, 20, 0]


def test_a_walk_ends_where_there_is_no_room():
    x = np.asarray(GRID.axis_mm(0))[:, None, None] * np.ones(GRID.shape)
    walks = walk(terrain=dataclasses.replace(OPEN, room=jnp.asarray(x < 8.0, jnp.float32)))
    alive = np.asarray(walks.alive[0])
    reached = np.asarray(walks.points_mm[0])[alive, 0].max()
    assert 6.0 < reached < 9.0
    assert not alive[np.argmin(alive) :].any()  # once out, out for good


def test_a_heading_across_a_sheet_is_lost():
    """Half of it at each step: a walk gets off its plane by the sum of a geometric series."""
    flat = dataclasses.replace(OPEN, across=OPEN.across.at[..., 5].set(0.5))
    start, heading = jnp.zeros((1, 3)), jnp.array([[1.0, 0, 0.1]])
    walks = grow(
        jax.random.key(0), start, heading, jnp.array([0.5]), jnp.array([40]), jnp.array([True]), flat,
        wander=0.0, steps=40,
    )  # fmt: skip
    assert abs(float(walks.heading[0, -1, 2])) < 1e-4
    assert float(walks.points_mm[0, -1, 2]) == pytest.approx(STEP_MM * 0.1 * (0.5 + 0.25) * 4 / 3, rel=0.02)


def test_walks_that_stay_near_their_root_are_left_out():
    straight = walk(steps=40).points_mm[0]
    turn = jnp.linspace(0, 4 * jnp.pi, 40)
    curl = 4.0 * jnp.stack([jnp.cos(turn), jnp.sin(turn), 0 * turn], axis=1)
    points = jnp.stack([straight, curl, straight])
    alive = jnp.arange(40) < jnp.array([40, 40, 18])[:, None]  # the last is cut off after 9 mm
    kept = long_enough(Walks(points, jnp.zeros_like(points), jnp.ones((3, 40)), alive))
    assert np.asarray(kept.alive).sum(axis=1).tolist() == [40, 0, 0]


def test_branches_start_on_their_mothers_and_are_thinner():
    mothers = walk(wander=0.02)
    daughters = branch(jax.random.key(1), mothers, OPEN, count=6, angle_rad=(0.5, 0.6), wander=0.0, steps=24)
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


def drawer(anatomy, plan, tiers):
    """(seed, tier) -> the head's maps and the vessels, on the host."""

    @jax.jit
    def draw(seed, tier):
        k_pose, k_vessels = jax.random.split(jax.random.key(seed))
        atrophy = 0.5 * tier.atrophy
        pose = random_pose(k_pose, anatomy, atrophy, plan.lattice)
        head = head_maps(anatomy, pose, atrophy, plan.planning)
        return head, draw_vessels(k_vessels, head, jnp.float32(0.3), jnp.float32(0.2), tier)

    return lambda seed, tier: jax.device_get(draw(seed, tiers[tier]))


@pytest.fixture(scope="module")
def draw(anatomy, plan):
    return drawer(anatomy, plan, {name: jax.tree.map(jnp.float32, tier) for name, tier in TIERS.items()})


@pytest.fixture(scope="module")
def drawn(draw):
    return draw(0, "hard")[0], [draw(seed, "hard")[1] for seed in (0, 0, 1)]


def venous(vessels):
    """Points (N, 3) of veins."""
    return np.concatenate([g.points_mm[g.valid & (g.kind != MimicKind.ARTERY)] for g in vessels])


def pieces(mask, spacing_mm):
    """Diagonal in mm of each connected piece (26 neighbors) that lies off the border of a mask."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    boxes = ndimage.find_objects(labels)
    inside = [b for b in boxes if all(s.start > 0 and s.stop < n for s, n in zip(b, mask.shape, strict=True))]
    return np.array(
        [np.linalg.norm([(s.stop - s.start) * h for s, h in zip(b, spacing_mm, strict=True)]) for b in inside]
    )


def fine_pieces(vessels):
    """The same of the veins' axes, half a millimeter thick."""
    points = venous(vessels)
    index = np.rint((points - points.min(axis=0)) / 0.5).astype(int) + 2
    mask = np.zeros(index.max(axis=0) + 3, bool)
    mask[tuple(index.T)] = True
    return pieces(ndimage.binary_dilation(mask), (0.5,) * 3) - 2 * 0.5 * np.sqrt(3)


def label_pieces(vessels, protocol):
    """The same of what is labeled a vein in the scan of a protocol."""
    grid = Plan.of(PROTOCOLS[protocol], 2.0).acquired
    label = jnp.zeros(grid.shape, jnp.uint8)
    for group in vessels:
        veins = dataclasses.replace(group, valid=group.valid & (group.kind != MimicKind.ARTERY))
        label = vessel_labels(label, veins, grid=grid)
    return pieces(np.asarray(label) > 0, grid.spacing_mm)


def assert_no_orphan(vessels, protocols):
    """No vein of at most 6 mm is joined to nothing, as drawn and as labeled."""
    assert len(venous(vessels)) > 1000
    assert fine_pieces(vessels).min() > 0.9 * SHORTEST_MM
    for protocol in protocols:
        assert label_pieces(vessels, protocol).min() > 6.0


def test_a_short_vein_is_found_by_the_rule_of_orphans(draw):
    """The rule itself: a cut-off piece is counted."""
    _, (thin, wide) = draw(0, "easy")
    stump = np.zeros_like(thin.valid)
    stump[np.flatnonzero(thin.valid)[:8]] = True
    assert fine_pieces((dataclasses.replace(thin, valid=stump), wide)).min() < 6.0
    assert label_pieces((dataclasses.replace(thin, valid=stump), wide), "swi7t").min() < 6.0


@pytest.mark.parametrize("tier", ["easy", "hard", "end_on"])
def test_no_vein_is_an_orphan(draw, tier):
    assert_no_orphan(draw(0, tier)[1], ["sabre"])  # thick slices of voxels narrower than a step


@pytest.mark.slow
@pytest.mark.assets
def test_no_vein_of_twenty_subjects_is_an_orphan(plan):
    tiers = {name: jax.tree.map(jnp.float32, TIERS[name]) for name in ("easy", "hard")}
    for number, name in enumerate(ANATOMIES):
        of_anatomy = drawer(pack_anatomy(load_pack(name)), plan, tiers)
        for seed in range(number, 20, len(ANATOMIES)):
            for tier in tiers:
                assert_no_orphan(of_anatomy(seed, tier)[1], PROTOCOL_NAMES)


def test_veins_are_nearly_straight(drawn):
    """Over 10 mm the way along a vein is hardly longer than the line: in the mean 3 % for pial veins."""
    _, ((thin, wide), *_) = drawn
    steps = round(10.0 / STEP_MM)
    for group, kind, most in ((thin, MimicKind.MEDULLARY_VEIN, 1.01), (wide, MimicKind.PIAL_VEIN, 1.08)):
        ok = group.valid & (group.kind == kind)
        line = np.linalg.norm(group.points_mm[steps:] - group.points_mm[:-steps], axis=1)
        gap = np.linalg.norm(np.diff(group.points_mm, axis=0), axis=1)
        whole = ok & np.append(np.abs(gap - STEP_MM) < 0.1, False)
        together = np.lib.stride_tricks.sliding_window_view(whole[:-1], steps).all(axis=1)
        ratio = steps * STEP_MM / line[: len(together)][together]
        assert len(ratio) > 100
        assert ratio.mean() < most


def test_veins_cross_the_slices_at_every_angle(draw):
    """In each sixth of the sphere's solid angle by angle to the slices, 100 mm of thin veins or more."""
    _, (thin, _) = draw(0, "hard")
    veins = thin.valid & (thin.kind == MimicKind.MEDULLARY_VEIN)
    count, _ = np.histogram(np.abs(thin.flow[veins, 2]), bins=6, range=(0, 1.0 + 1e-5))
    assert (count * STEP_MM).min() > 100.0


def test_veins_of_the_end_on_tier_run_along_the_slices_normal(draw):
    _, (thin, wide) = draw(0, "end_on")
    assert thin.valid.sum() * STEP_MM > 50 * SHORTEST_MM
    assert np.median(np.abs(thin.flow[thin.valid, 2])) > np.cos(END_ON_RAD)
    assert MimicKind.PIAL_VEIN not in wide.kind[wide.valid]
    low, high = 2 * np.quantile(thin.radius_mm[thin.valid], [0.05, 0.95])
    assert 0.2 < low < high < 1.6  # the true diameters of that tier's microbleeds end at 1.6 mm


def test_vessels_are_seeded(drawn):
    _, (first, again, other) = drawn
    for a, b, c in zip(jax.tree.leaves(first), jax.tree.leaves(again), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == c.shape
    assert np.abs(first[0].points_mm - other[0].points_mm).max() > 1


def test_kinds_and_blood(drawn):
    _, ((thin, wide), *_) = drawn
    assert set(thin.kind[thin.valid]) == {MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN}
    assert set(wide.kind[wide.valid]) == {MimicKind.PIAL_VEIN, MimicKind.DEEP_VEIN, MimicKind.ARTERY}
    arterial = wide.kind == MimicKind.ARTERY
    assert (wide.chi_ppm[arterial] == 0).all()
    assert (wide.chi_ppm[~arterial & wide.valid] > 0.2).all()
    np.testing.assert_allclose(np.linalg.norm(wide.flow[wide.valid], axis=1), 1.0, atol=1e-3)


def test_medullary_veins_drain_towards_the_ventricles(drawn, plan):
    head, ((thin, _), *_) = drawn
    ventricle = np.argwhere(np.asarray(head.region) == Region.VENTRICLE)
    places = ventricle * plan.planning.spacing_mm + plan.planning.origin_mm
    first = np.arange(len(thin.valid)) < MEDULLARY_ROOTS * MEDULLARY_STEPS  # the others come from the surface
    points, flow = thin.points_mm[thin.valid & first], thin.flow[thin.valid & first]
    some = np.random.default_rng(0).choice(len(points), 400, replace=False)

    def nearest(at):
        return np.linalg.norm(at[:, None] - places, axis=2).min(axis=1)

    assert (nearest(points[some] + 2 * flow[some]) < nearest(points[some])).mean() > 0.85
    assert nearest(points[some]).max() > 15  # they reach far into the white matter
