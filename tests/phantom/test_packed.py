import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.phantom.head import Extra, codes_at, mni_of, of_mni, pack_anatomy, sample_pack, unpack

sample = jax.jit(sample_pack)


@pytest.fixture(scope="module")
def coarse():
    return synthetic_pack(shape=(48, 56, 48), spacing_mm=4.0)


def test_sampling_matches_scipy(coarse, rng):
    anatomy = pack_anatomy(coarse)
    index = rng.uniform(0.0, np.array(coarse.code.shape) - 1.0, size=(400, 3))
    points = index @ coarse.affine[:3, :3].T + coarse.affine[:3, 3]
    channels, code = sample(anatomy, jnp.asarray(points, jnp.float32))
    for channel in range(coarse.fractions.shape[-1]):
        expected = (
            ndimage.map_coordinates(coarse.fractions[..., channel].astype(float), index.T, order=1) / 255
        )
        np.testing.assert_allclose(np.asarray(channels)[:, channel], expected, atol=2e-4)
    sure = np.abs(index - np.floor(index) - 0.5).min(axis=1) > 1e-3
    nearest = coarse.code[tuple(np.rint(index).astype(int).T)]
    np.testing.assert_array_equal(np.asarray(code)[sure], nearest[sure])
    np.testing.assert_array_equal(np.asarray(codes_at(anatomy, jnp.asarray(points)))[sure], nearest[sure])


def test_points_outside_the_pack_take_its_edge(coarse):
    corner = coarse.affine[:3, 3]
    channels, code = sample(pack_anatomy(coarse), jnp.asarray([corner - 100.0], jnp.float32))
    np.testing.assert_allclose(
        np.asarray(channels)[0, :NUM_CHANNELS], coarse.fractions[0, 0, 0] / 255, atol=1e-6
    )
    assert int(code[0]) == coarse.code[0, 0, 0]


def test_derived_bytes(pack, anatomy):
    data = np.asarray(unpack(anatomy.words))
    near_csf, venous, air = (data[..., e] / 255 for e in (Extra.CSF_NEAR, Extra.VENOUS, Extra.AIR_NEAR))
    deep_white = region_of(pack.code) == Region.DEEP_WHITE_MATTER
    cortex = (pack.fractions[..., Channel.GRAY_MATTER] > 200) & (region_of(pack.code) == Region.PARIETAL)
    assert near_csf[cortex].mean() > 3 * near_csf[deep_white].mean()
    y = (pack.affine[1, 3] + pack.affine[1, 1] * np.arange(pack.code.shape[1]))[None, :, None]
    assert venous[np.broadcast_to(y < -45, venous.shape)].min() > 0.95
    assert venous[np.broadcast_to(y > 0, venous.shape)].max() < 0.05
    assert air[0, 0, 0] == 1.0


def test_packs_of_one_millimeter_get_one_shape():
    small = synthetic_pack(shape=(181, 217, 181), spacing_mm=1.0)
    packed = pack_anatomy(small)
    assert packed.words.shape[:3] == (193, 229, 193)
    whole = dataclasses.replace(small)
    index = np.array([[90, 108, 90], [60, 140, 100]])
    points = index @ whole.affine[:3, :3].T + whole.affine[:3, 3]
    np.testing.assert_array_equal(
        np.asarray(codes_at(packed, jnp.asarray(points, jnp.float32))), whole.code[tuple(index.T)]
    )


def test_mni_coordinates_of_a_pack_in_mni_space(anatomy, rng):
    points = jnp.asarray(rng.uniform(-60, 60, size=(20, 3)), jnp.float32)
    np.testing.assert_allclose(np.asarray(mni_of(anatomy, points)), np.asarray(points), atol=1e-4)
    np.testing.assert_allclose(np.asarray(of_mni(anatomy, points)), np.asarray(points), atol=1e-4)
