import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Zone
from cmb_jax.phantom.head import draw_voxels, head_maps, interpolate, random_pose, sample_head, to_pack
from cmb_jax.phantom.lesions import (
    apparent_diameters,
    blooming,
    draw_calcifications,
    draw_cavernoma,
    draw_count,
    draw_microbleeds,
)
from cmb_jax.phantom.types import CALCIFICATIONS, MimicKind

TE, B0 = jnp.float32(20), jnp.float32(3)


@pytest.fixture(scope="module")
def head(anatomy, plan, half):
    @jax.jit
    def draw(anatomy):
        pose = random_pose(jax.random.key(5), anatomy, half, plan.lattice)
        return head_maps(anatomy, pose, half, plan.planning)

    return draw(anatomy)


@pytest.fixture(scope="module")
def calcifications(head, ranges):
    draw = jax.jit(lambda key, tier: draw_calcifications(key, head, tier))
    return lambda seed, tier=ranges.tier: draw(jax.random.key(seed), tier)


@pytest.fixture(scope="module")
def bleeds(head, ranges, calcifications):
    """Microbleeds of a seed, with changed numbers of the settings or another tier."""
    draw = jax.jit(
        lambda key, lesions, tier: draw_microbleeds(key, head, calcifications(0), TE, B0, lesions, tier)
    )
    many = dataclasses.replace(ranges.lesions, mean_cmbs=jnp.float32(50), patient_like=jnp.asarray(False))

    def drawn(seed, tier=ranges.tier, **change):
        lesions = dataclasses.replace(many, **{k: jnp.asarray(v, many_dtype(v)) for k, v in change.items()})
        return jax.device_get(draw(jax.random.key(seed), lesions, tier))

    return drawn


def many_dtype(value):
    return jnp.bool_ if isinstance(value, bool) else jnp.float32


def test_microbleeds_lie_in_tissue(anatomy, head, bleeds, half):
    sample = jax.jit(lambda p: sample_head(anatomy, to_pack(head.pose, p), half))
    for each in (bleeds(0), bleeds(1)):
        valid = each.valid
        assert valid.sum() > 20
        channels, code = (np.asarray(a)[valid] for a in sample(each.center_mm))
        solid = channels[:, Channel.GRAY_MATTER] + channels[:, Channel.WHITE_MATTER]
        assert solid.min() >= 0.8 - 1e-3
        assert ((code % 16 > Region.OUTSIDE) & (code % 16 < Region.VENTRICLE)).all()
        np.testing.assert_array_equal(code, each.code[valid])


def _clearances(each):
    """Distance between the apparent borders of every two microbleeds."""
    points = each.center_mm[each.valid]
    reach = np.asarray(apparent_diameters(each, TE, B0))[each.valid] / 2
    apart = np.linalg.norm(points[:, None] - points, axis=-1) - reach[:, None] - reach
    return apart[~np.eye(len(points), dtype=bool)]


def test_microbleeds_do_not_overlap_unless_asked(bleeds, calcifications):
    for seed in range(3):
        each = bleeds(seed)
        assert _clearances(each).min() >= 1.0 - 0.3  # borders as drawn: their shape varies by a tenth or two
        other = calcifications(0)
        gap = np.linalg.norm(each.center_mm[each.valid][:, None] - np.asarray(other.center_mm), axis=-1)
        gap = gap - np.asarray(apparent_diameters(other, TE, B0)) / 2
        assert gap[:, np.asarray(other.valid)].min() > 1.0
    assert min(_clearances(bleeds(seed, gap_mm=-10.0)).min() for seed in range(6)) < 1.0 - 0.3
    assert min(_clearances(bleeds(seed, gap_mm=8.0)).min() for seed in range(3)) > 7.0


def test_sizes_are_those_of_the_tier(bleeds, hard):
    each, faint = bleeds(0), bleeds(0, hard)
    size = [2 * np.prod(b.radii_mm, axis=1)[b.valid] ** (1 / 3) for b in (each, faint)]
    seen = [np.asarray(apparent_diameters(b, TE, B0))[b.valid] for b in (each, faint)]
    assert size[0].max() <= 5.0 + 1e-3
    assert seen[0].min() >= 2.0 - 1e-3
    assert seen[0].max() <= 10.0 + 1e-3
    assert (each.chi_ppm >= 0.3).all()
    assert (each.chi_ppm <= 2.5).all()
    assert 0.2 < np.mean(seen[1] < 2.0) < 0.7  # 40 % are drawn faint
    exact = bleeds(0, diameters_mm=(3.0, 4.0), exact=True)
    given = 2 * np.prod(exact.radii_mm, axis=1)[exact.valid] ** (1 / 3)
    assert given.min() >= 3.0 - 1e-3
    assert given.max() <= 4.0 + 1e-3


def test_most_microbleeds_are_lobar(bleeds):
    zones = np.concatenate([b.code[b.valid] % 16 for b in (bleeds(0), bleeds(1), bleeds(2))])
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
    count = jax.jit(jax.vmap(draw_count, in_axes=(0, None, None)))
    patients = np.asarray(count(keys, jnp.float32(0), jnp.asarray(True)))
    assert 0.2 < (patients == 0).mean() < 0.3
    assert patients.max() <= 60
    assert 5 < patients.mean() < 11
    assert np.percentile(patients, 95) > 2.5 * patients.mean()
    poisson = np.asarray(count(keys, jnp.float32(12), jnp.asarray(False)))
    assert poisson.mean() == pytest.approx(12, abs=0.3)
    assert poisson.var() == pytest.approx(12, abs=1.2)
    assert int(draw_count(keys[0], jnp.float32(0), jnp.asarray(False))) == 0


def test_calcifications_lie_where_they_belong(head, calcifications, hard):
    found = {kind: [] for kind in CALCIFICATIONS}
    for seed in range(8):
        each = calcifications(seed, hard)
        assert (np.asarray(each.chi_ppm) <= -1).all()
        pallidum = interpolate(head.channels[..., [Channel.PALLIDUM]], head.grid, each.center_mm)[:, 0]
        for kind in CALCIFICATIONS:
            mine = np.asarray(each.valid) & (np.asarray(each.kind) == kind)
            found[kind] += list(np.asarray(each.code)[mine] % 16)
            if kind == MimicKind.CALCIFICATION_PALLIDUM:
                assert (np.asarray(pallidum)[mine] > 0.02).all()
    assert all(found.values())
    assert np.mean(np.isin(found[MimicKind.CALCIFICATION_CHOROID], [Region.VENTRICLE])) > 0.5
    assert np.mean(np.isin(found[MimicKind.CALCIFICATION_PIAL], [Region.SULCAL_CSF])) > 0.5


def test_hard_subjects_have_more_calcifications(calcifications, hard):
    """Of the cortex and the white matter; what old age brings is as frequent."""
    kinds = [MimicKind.CALCIFICATION_PIAL, MimicKind.CALCIFICATION_PARENCHYMAL]
    easy, many = (
        np.mean([(each.valid & np.isin(each.kind, kinds)).sum() for each in drawn])
        for drawn in ([calcifications(s, *tier) for s in range(12)] for tier in ((), (hard,)))
    )
    assert many > 2.5 * easy


def test_calcifications_of_old_age_are_as_frequent_and_as_large_as_on_ct(calcifications):
    subjects = [jax.device_get(calcifications(seed)) for seed in range(40)]

    def of(kind):
        return [(each, each.valid & (each.kind == kind)) for each in subjects]

    def diameters(kind):
        return np.concatenate([2 * np.prod(e.radii_mm[m], axis=1) ** (1 / 3) for e, m in of(kind)])

    choroid = of(MimicKind.CALCIFICATION_CHOROID)
    having = [(e, m) for e, m in choroid if m.any()]
    assert 0.4 < len(having) / 40 < 0.75
    x = [np.sign(e.center_mm[m, 0]) for e, m in having]
    assert np.mean([len(np.unique(s)) == 2 for s in x]) > 0.7
    for e, m in having:
        for side in (-1, 1):
            specks = e.center_mm[m & (np.sign(e.center_mm[:, 0]) == side)]
            assert len(specks) <= 4
            if len(specks):
                assert np.linalg.norm(specks - specks.mean(axis=0), axis=1).max() < 10.0
    size = diameters(MimicKind.CALCIFICATION_CHOROID)
    assert 1.0 <= size.min() + 1e-3 < size.max() <= 3.0 + 1e-3
    pineal = of(MimicKind.CALCIFICATION_PINEAL)
    assert 0.55 < np.mean([m.any() for _, m in pineal]) < 0.85
    assert max(m.sum() for _, m in pineal) == 1
    size = diameters(MimicKind.CALCIFICATION_PINEAL)
    assert 3.0 <= size.min() + 1e-3 < size.max() <= 5.0 + 1e-3
    pallidum = of(MimicKind.CALCIFICATION_PALLIDUM)
    assert 0.0 < np.mean([m.any() for _, m in pallidum]) < 0.3
    assert all(len(np.unique(np.sign(e.center_mm[m, 0]))) == 2 for e, m in pallidum if m.any())
    assert diameters(MimicKind.CALCIFICATION_PALLIDUM).max() <= 2.2 + 1e-3


def test_spaces_of_a_cavernoma_lie_inside_it(head, ranges):
    certain = dataclasses.replace(ranges.tier, cavernoma=jnp.float32(1.0))
    draw = jax.jit(lambda key: draw_cavernoma(key, head, certain))
    for seed in range(4):
        whole, spaces = jax.device_get(draw(jax.random.key(seed)))
        assert whole.valid.all()
        assert spaces.valid.all()
        out = np.linalg.norm(spaces.center_mm - whole.center_mm, axis=1) + spaces.radii_mm.max(axis=1)
        assert out.max() < 1.25 * whole.radii_mm.max()
        assert 5.0 <= 2 * whole.radii_mm.max() <= 14.0


def test_draw_voxels_follows_the_weights(plan):
    grid = plan.planning
    weight = jnp.zeros(grid.shape).at[3, 4, 5].set(1.0).at[10, 20, 30].set(3.0)
    points = np.asarray(draw_voxels(jax.random.key(0), weight, grid, 2000))
    index = np.rint((points - grid.origin_mm) / grid.spacing_mm).astype(int)
    second = (index == (10, 20, 30)).all(axis=1)
    assert ((index == (3, 4, 5)).all(axis=1) | second).all()
    assert second.mean() == pytest.approx(0.75, abs=0.04)
