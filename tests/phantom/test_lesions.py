import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Zone
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.phantom.geometry import (
    lattice_for,
    pack_anatomy,
    random_pose,
    sample_pack,
    simulation_grid,
    to_pack,
)
from cmb_jax.phantom.lesions import blooming, draw_calcifications, draw_count, draw_microbleeds
from cmb_jax.phantom.planning import PLANNING_SPACING_MM, draw_voxels, head_maps, interpolate
from cmb_jax.phantom.types import FOCAL_MIMICS, MimicKind

EXTENT = (192.0, 240.0, 162.0)
LATTICE, GRID = lattice_for(EXTENT), simulation_grid(EXTENT, PLANNING_SPACING_MM)


@pytest.fixture(scope="module")
def head():
    anatomy = pack_anatomy(synthetic_pack())
    pose = random_pose(jax.random.key(5), LATTICE, anatomy.centre_mm)
    return anatomy, pose, head_maps(anatomy, pose, lattice=LATTICE, grid=GRID)


@pytest.fixture(scope="module")
def bleeds(head):
    """Three subjects' worth of microbleeds."""
    return [
        draw_microbleeds(
            jax.random.key(seed), *head, jnp.zeros((1, 3)), jnp.float32(50), jnp.float32(20), jnp.float32(3),
            lattice=LATTICE, grid=GRID, patient_like=False,
        )
        for seed in range(3)
    ]  # fmt: skip


sample = jax.jit(lambda anatomy, pose, points: sample_pack(anatomy, to_pack(pose, LATTICE, points)))


def test_microbleeds_lie_in_tissue(head, bleeds):
    anatomy, pose, _ = head
    for each in bleeds:
        valid = np.asarray(each.valid)
        assert valid.sum() > 20
        channels, code = (np.asarray(a)[valid] for a in sample(anatomy, pose, each.centre_mm))
        solid = channels[:, Channel.GREY_MATTER] + channels[:, Channel.WHITE_MATTER]
        assert solid.min() >= 0.8
        assert ((code % 16 > Region.OUTSIDE) & (code % 16 < Region.VENTRICLE)).all()
        np.testing.assert_array_equal(code, np.asarray(each.code)[valid])


def test_microbleeds_keep_their_distance_and_size(bleeds):
    for each in bleeds:
        points = np.asarray(each.centre_mm[each.valid])
        apart = np.linalg.norm(points[:, None] - points, axis=-1) + 1e3 * np.eye(len(points))
        assert apart.min() >= 4.0 - 1e-3
        assert (apart.min(axis=1) >= 5.0).mean() > 0.8
        assert np.linalg.norm(points, axis=1).min() >= 7.0 - 1e-3  # from the point that was taken
        diameter = 2 * np.prod(np.asarray(each.radii_mm), axis=1) ** (1 / 3)
        chi = np.asarray(each.chi_ppm)
        assert ((diameter > 0.8) & (diameter <= 5.0 + 1e-3)).all()
        assert ((chi >= 0.3) & (chi <= 2.5)).all()
        apparent = diameter * np.asarray(blooming(jnp.float32(20), jnp.float32(3), each.chi_ppm))
        assert ((apparent >= 2.0 - 1e-3) & (apparent <= 10.0 + 1e-3)).all()


def test_most_microbleeds_are_lobar(bleeds):
    zones = np.concatenate([np.asarray(b.code[b.valid]) % 16 for b in bleeds])
    share = np.bincount(ZONE_OF_REGION[zones], minlength=4) / len(zones)
    assert share[Zone.NONE] == 0
    assert share[Zone.LOBAR] > 0.3
    assert (share[1:] > 0).all()


def test_blooming_follows_its_formula():
    factor = blooming(jnp.float32(20), jnp.float32(3), jnp.array([0.05, 1.0, -1.0]))
    phase = 2 * np.pi * 42.577e6 * 3 * 0.020 * 1.0e-6
    np.testing.assert_allclose(factor, [1.0, *[(phase / 4.5) ** (1 / 3)] * 2], rtol=1e-4)


def test_counts():
    keys = jax.random.split(jax.random.key(0), 4000)
    patients = np.asarray(jax.vmap(lambda k: draw_count(k, jnp.float32(0), True))(keys))
    assert 0.2 < (patients == 0).mean() < 0.3
    assert patients.max() <= 60
    assert 5 < patients.mean() < 11
    assert np.percentile(patients, 95) > 2.5 * patients.mean()
    poisson = np.asarray(jax.vmap(lambda k: draw_count(k, jnp.float32(12), False))(keys))
    assert poisson.mean() == pytest.approx(12, abs=0.3)
    assert poisson.var() == pytest.approx(12, abs=1.2)
    assert int(draw_count(keys[0], jnp.float32(0), False)) == 0


def test_calcifications_lie_where_they_belong(head):
    _, _, maps = head
    found = {kind: [] for kind in FOCAL_MIMICS}
    for seed in range(8):
        each = draw_calcifications(jax.random.key(seed), *head, lattice=LATTICE, grid=GRID)
        assert (np.asarray(each.chi_ppm) <= -1).all()
        pallidum = interpolate(maps.channels[..., [Channel.PALLIDUM]], GRID, each.centre_mm)[:, 0]
        for kind in FOCAL_MIMICS:
            mine = np.asarray(each.valid) & (np.asarray(each.kind) == kind)
            found[kind] += list(np.asarray(each.code)[mine] % 16)
            if kind == MimicKind.CALCIFICATION_PALLIDUM:
                assert (np.asarray(pallidum)[mine] > 0.02).all()
    assert all(found.values())
    assert np.mean(np.isin(found[MimicKind.CALCIFICATION_CHOROID], [Region.VENTRICLE])) > 0.5
    assert np.mean(np.isin(found[MimicKind.CALCIFICATION_PIAL], [Region.SULCAL_CSF])) > 0.5


def test_draw_voxels_follows_the_weights():
    weight = jnp.zeros(GRID.shape).at[3, 4, 5].set(1.0).at[10, 20, 30].set(3.0)
    points = np.asarray(draw_voxels(jax.random.key(0), weight, GRID, 2000))
    index = np.rint((points - GRID.origin_mm) / GRID.spacing_mm).astype(int)
    second = (index == (10, 20, 30)).all(axis=1)
    assert ((index == (3, 4, 5)).all(axis=1) | second).all()
    assert second.mean() == pytest.approx(0.75, abs=0.04)
