import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.field import CHI_AIR
from cmb_jax.phantom.head import NUCLEI
from cmb_jax.phantom.tissue import AGES, draw_age, draw_tissue, head_volume, iron_mg
from cmb_jax.phantom.types import MimicKind


@pytest.fixture(scope="module")
def volume(anatomy, hard):
    """(seed, tier) -> HeadVolume at 3 T with a given atrophy."""

    @jax.jit
    def make(seed, age, atrophy, tier, b0):
        values = draw_tissue(
            jax.random.key(seed), anatomy, b0, jnp.float32(30.0), jnp.float32(15.0), age, atrophy, tier
        )
        return values, head_volume(anatomy, values)

    def made(seed, atrophy=0.0, b0=3.0, age=70.0, **change):
        tier = dataclasses.replace(hard, **{k: jnp.float32(v) for k, v in change.items()})
        return jax.device_get(make(seed, jnp.float32(age), jnp.float32(atrophy), tier, jnp.float32(b0)))

    return made


def test_tissues_take_their_values(pack, volume):
    values, made = volume(0, siderosis=0, hyperintensity=0)
    chi, r2_star = made.values[..., 0], made.values[..., 1]
    region = region_of(pack.code)
    pure = pack.fractions >= 250
    white = (
        pure[..., Channel.WHITE_MATTER]
        & (region > Region.OUTSIDE)
        & (pack.fractions[..., Channel.LESION_PRIOR] < 50)
    )
    for tissue, mask in ((0, pure[..., Channel.GRAY_MATTER] & (region == Region.CEREBELLUM)), (1, white)):
        assert chi[mask].mean() == pytest.approx(float(values.chi_ppm[tissue]), abs=0.01)
        assert r2_star[mask].mean() == pytest.approx(float(values.r2_star[tissue]), rel=0.1)
    assert chi[pure[..., Channel.AIR]].mean() == pytest.approx(CHI_AIR, rel=0.05)
    pallidum = pack.fractions[..., Channel.PALLIDUM] > 250
    assert chi[pallidum].mean() > chi[white].mean() + 0.08


def test_relaxation_grows_with_the_field(pack, volume):
    brain = (region_of(pack.code) > 0) & (pack.fractions[..., Channel.WHITE_MATTER] > 200)
    rates = [volume(3, b0=b0, siderosis=0)[1].values[..., 1][brain].mean() for b0 in (1.5, 3.0)]
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.06)  # hyperintensities take off a constant


def test_atrophy_turns_cortex_into_csf(pack, volume):
    young, old = (volume(1, atrophy=a)[1] for a in (0.0, 1.0))
    np.testing.assert_array_equal(young.code, pack.code)
    changed = young.code != old.code
    assert changed.sum() > 100
    assert set(region_of(old.code[changed])) == {Region.SULCAL_CSF}
    cortical = [*range(Region.FRONTAL, Region.INSULA + 1), Region.CEREBELLUM]
    assert np.isin(region_of(young.code[changed]), cortical).all()
    np.testing.assert_array_equal(old.code[changed] // 16, young.code[changed] // 16)


def test_hyperintensities_follow_their_load(pack, volume):
    prior = pack.fractions[..., Channel.LESION_PRIOR] > 200
    low, high = (volume(1, hyperintensity=load, siderosis=0)[1].values for load in (0.0, 1.0))
    assert (high[..., 0] - low[..., 0])[prior].mean() > 0.0
    far = pack.fractions[..., Channel.LESION_PRIOR] == 0
    np.testing.assert_allclose(high[..., 0][far], low[..., 0][far], atol=1e-6)


def test_siderosis_stains_the_surface_in_one_place(volume):
    without, with_it = (volume(4, siderosis=p)[1] for p in (0.0, 1.0))
    stained = with_it.mimic == MimicKind.SUPERFICIAL_SIDEROSIS
    assert stained.any()
    assert not (without.mimic == MimicKind.SUPERFICIAL_SIDEROSIS).any()
    rise = with_it.values[..., 0] - without.values[..., 0]
    assert rise[stained].min() > 0.1
    places = np.argwhere(rise > 1e-4)
    assert np.ptp(places, axis=0).max() * 2.0 < 60.0  # voxels of 2 mm: one focus


def test_arteries_and_sinuses_are_told_apart(pack, volume):
    made = volume(0)[1]
    y = pack.affine[1, 3] + pack.affine[1, 1] * np.arange(pack.code.shape[1])
    sinus, artery = (np.argwhere(made.mimic == kind)[:, 1] for kind in (MimicKind.SINUS, MimicKind.ARTERY))
    assert y[sinus].max() < -15
    assert y[artery].min() > -35
    assert made.values[..., 3].max() > 0.9


def test_iron_is_what_chemists_measured():
    """Means of adults of Hallgren and Sourander 1958, mg per 100 g."""
    measured = {"CAUDATE": 9.28, "PUTAMEN": 13.32, "PALLIDUM": 21.30, "THALAMUS": 4.76, "RED_NUCLEUS": 19.48,
                "SUBSTANTIA_NIGRA": 18.46}  # fmt: skip
    found = dict(zip([n.name for n in NUCLEI], np.asarray(iron_mg(jnp.float32(60.0))), strict=True))
    for name, mean in measured.items():
        assert found[name] == pytest.approx(mean, rel=0.06)


def test_nuclei_of_old_brains_hold_more_iron(volume):
    for rises, nuclei in ((0.15, ["PUTAMEN"]), (0.1, ["RED_NUCLEUS", "SUBSTANTIA_NIGRA", "DENTATE"])):
        at = [5 + [n.name for n in NUCLEI].index(name) for name in nuclei]
        young, old = (volume(2, age=a)[0] for a in (45.0, 85.0))
        assert (old.chi_ppm[at] > young.chi_ppm[at] * (1 + rises)).all()
        assert (old.r2_star[at] > young.r2_star[at] * (1 + rises / 2)).all()


def test_age_shrinks_the_brain(hard):
    age, atrophy = jax.vmap(lambda k: draw_age(k, hard))(jax.random.split(jax.random.key(0), 500))
    assert AGES[0] <= float(age.min()) < 50 < 85 < float(age.max()) <= AGES[1]
    assert 0 <= float(atrophy.min()) < 0.2 < 0.8 < float(atrophy.max()) <= 1
    assert 0.5 < np.corrcoef(age, atrophy)[0, 1] < 0.9
