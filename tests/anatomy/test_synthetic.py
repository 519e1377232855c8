import numpy as np
import pytest

from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel
from cmb_jax.anatomy.regions import Region, Side, region_of, side_of
from cmb_jax.anatomy.synthetic import synthetic_pack


@pytest.fixture(scope="module")
def pack():
    return synthetic_pack()


def test_shapes_and_types(pack):
    assert pack.fractions.shape == (96, 112, 96, NUM_CHANNELS)
    assert pack.fractions.dtype == np.uint8
    assert pack.code.shape == (96, 112, 96)
    assert pack.code.dtype == np.uint8
    np.testing.assert_allclose(np.diag(pack.affine), [2, 2, 2, 1])


def test_tissues_share_each_voxel_out(pack):
    assert set(np.unique(pack.fractions[..., :5].sum(axis=-1, dtype=int))) == {255}


def test_every_region_on_both_sides_and_sides_by_sign_of_x(pack):
    region, side = region_of(pack.code), side_of(pack.code)
    x = pack.affine[0, 0] * np.arange(96) + pack.affine[0, 3]
    for label in Region:
        if label == Region.OUTSIDE:
            assert set(np.unique(side[region == label])) == {Side.NONE}
            continue
        for which, sign in ((Side.LEFT, -1), (Side.RIGHT, 1)):
            columns = np.nonzero((region == label) & (side == which))[0]
            assert len(columns) > 20, label.name
            assert (np.sign(x[columns]) == sign).all()


def test_region_agrees_with_dominant_tissue(pack):
    dominant = pack.fractions[..., :5].argmax(axis=-1)
    region = region_of(pack.code)
    brain = dominant <= Channel.WHITE_MATTER
    assert ((region >= Region.BRAINSTEM) & (region <= Region.INSULA))[brain].all()
    assert np.isin(region[dominant == Channel.CSF], [Region.VENTRICLE, Region.SULCAL_CSF]).all()
    assert (region[dominant >= Channel.SOFT_TISSUE] == Region.OUTSIDE).all()


def test_ventricle_volume_matches_the_ellipsoids(pack):
    # Ellipsoids of lateral body and horn a side, and half of third and fourth; body and horn overlap.
    csf = pack.fractions[..., Channel.CSF] / 255.0
    volume = csf[region_of(pack.code) == Region.VENTRICLE].sum() * 8.0
    single = 4 / 3 * np.pi * np.array([4.5 * 32 * 6, 5 * 16 * 6, 2.5 * 14 * 9 / 2, 5 * 4 * 9 / 2])
    assert 0.6 * 2 * single.sum() < volume < 2 * single.sum()


def test_nuclei_have_the_volume_of_their_ellipsoids(pack):
    for channel, radii in ((Channel.PUTAMEN, (4.5, 13, 9)), (Channel.DENTATE, (6, 4, 5))):
        expected = 2 * 4 / 3 * np.pi * np.prod(radii)
        measured = pack.fractions[..., channel].sum(dtype=float) / 255.0 * 8.0
        assert measured == pytest.approx(expected, rel=0.1)


def test_all_channels_are_used(pack):
    assert (pack.fractions.reshape(-1, NUM_CHANNELS).max(axis=0) > 100).all()


def test_small_grid_holds_the_whole_head_and_is_deterministic():
    first, second = synthetic_pack((48, 56, 48), 2.0), synthetic_pack((48, 56, 48), 2.0)
    np.testing.assert_array_equal(first.fractions, second.fractions)
    np.testing.assert_array_equal(first.code, second.code)
    assert set(np.unique(region_of(first.code))) == set(Region)
    assert (first.fractions[:, :, -1, Channel.AIR] > 0).mean() > 0.9
