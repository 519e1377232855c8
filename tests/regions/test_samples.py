"""Region training samples: interpolation against SciPy, labels that go with the image, warps without folds.

The grids are twice as coarse as in use: an eighth of the work.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.anatomy.regions import Region, Side, region_of
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.regions import samples as rs
from tests.regions.grids import patch_grids

GRID_SHAPE = (48, 56, 48)
GRID_MM = 4.0


@pytest.fixture(scope="module", autouse=True)
def _coarse_grids():
    with pytest.MonkeyPatch.context() as patch:
        patch_grids(patch, GRID_SHAPE=GRID_SHAPE, GRID_MM=GRID_MM, MATERIAL_MM=4.0, CODE_MM=2.0)
        yield


@pytest.fixture(scope="module")
def pack():
    return synthetic_pack()


@pytest.fixture(scope="module")
def source(pack, _coarse_grids):
    return rs.build_source(pack)


@pytest.fixture(scope="module")
def draw(source):
    sample = jax.jit(rs.make_sample)
    return lambda seed: jax.tree.map(np.asarray, sample(source, jax.random.key(seed)))


@pytest.fixture(scope="module")
def samples(draw):
    return [draw(seed) for seed in range(6)]


def test_linear_sampling_matches_scipy(rng):
    volume = rng.random((2, 7, 9, 8)).astype(np.float32)
    points = rng.uniform(-6, 6, size=(3, 200)).astype(np.float32)
    got = rs.sample_linear(jnp.asarray(volume), jnp.asarray(points))
    center = (np.array(volume.shape[1:]) - 1) / 2
    for channel in range(2):
        want = ndimage.map_coordinates(volume[channel], points + center[:, None], order=1, mode="nearest")
        np.testing.assert_allclose(got[channel], want, atol=1e-5)


def test_nearest_sampling_matches_indexing(rng):
    volume = rng.integers(1, 40, (7, 9, 8)).astype(np.uint8)
    index = rng.integers(-3, 12, (3, 300))
    center = (np.array(volume.shape) - 1) / 2
    got = rs.sample_nearest(jnp.asarray(volume), jnp.asarray(index - center[:, None], jnp.float32))
    inside = np.all((index >= 0) & (index < np.array(volume.shape)[:, None]), axis=0)
    np.testing.assert_array_equal(got, np.where(inside, volume[tuple(np.where(inside, index, 0))], 0))


def test_blur_matches_scipy(rng):
    image = rng.random((12, 10, 14)).astype(np.float32)
    got = rs.blur(jnp.asarray(image), jnp.asarray([0.9, 0.5, 0.7]))
    want = ndimage.gaussian_filter(image, (0.9, 0.5, 0.7), mode="constant", radius=3)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_source_is_centered_and_keeps_the_volume(pack, source):
    brain = region_of(np.asarray(source.code)) != Region.OUTSIDE
    box = np.argwhere(brain)
    middle = (box.min(axis=0) + box.max(axis=0)) / 2
    np.testing.assert_allclose(middle, (np.array(brain.shape) - 1) / 2, atol=1.0)
    want = (region_of(pack.code) != Region.OUTSIDE).sum() * abs(np.linalg.det(pack.affine[:3, :3]))
    assert brain.sum() * rs.CODE_MM**3 == pytest.approx(want, rel=0.02)
    extent = np.ptp(box[:, 0]) * rs.CODE_MM
    np.testing.assert_allclose(np.asarray(source.brain_mm), [-extent / 2, extent / 2], atol=3.0)


def test_the_same_key_gives_the_same_sample(draw, samples):
    for one, two in zip(jax.tree.leaves(samples[3]), jax.tree.leaves(draw(3)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(samples[0].region, samples[1].region)


def test_shapes_and_ranges(samples):
    for sample in samples:
        assert sample.image.shape == sample.region.shape == sample.side.shape == GRID_SHAPE
        assert np.isfinite(sample.image).all()
        assert sample.image.min() >= 0
        assert 0.3 < sample.image.max() <= 1.5
        np.testing.assert_array_equal(sample.side > 0, sample.region != Region.OUTSIDE)
        litres = (sample.region != Region.OUTSIDE).sum() * GRID_MM**3 / 1e6
        assert 0.4 < litres < 2.3


def test_right_lies_to_the_right_flipped_or_not(samples):
    x = np.arange(GRID_SHAPE[2])
    for sample in samples:
        right = (sample.side == Side.RIGHT).sum(axis=(0, 1))
        left = (sample.side == Side.LEFT).sum(axis=(0, 1))
        assert (right * x).sum() / right.sum() > (left * x).sum() / left.sum() + 10


def test_brain_and_image_lie_together(samples):
    for sample in samples:
        brain = sample.region != Region.OUTSIDE
        assert (sample.image[brain] > 0).mean() > 0.9
        empty = ~(sample.image > 0).any(axis=(1, 2))  # slices outside the field of view
        # a stripped brain may lack its outermost slice
        assert brain[empty].sum() < 0.01 * brain.sum()


def test_some_views_cut_the_brain(source):
    cut = 0
    pose = jax.jit(rs.head_points)
    for seed in range(40):
        points, view = pose(jax.random.key(seed), source.brain_mm)
        inside = (points[0] > source.brain_mm[0]) & (points[0] < source.brain_mm[1])
        cut += bool((inside & ~view).any())
    assert 2 <= cut <= 18  # a fifth


def test_warps_do_not_fold(source):
    warp = jax.jit(rs.warp)
    largest = 0.0
    for seed in range(6):
        displacement = np.asarray(warp(jax.random.key(seed), source.ventricle_pull)) / rs.FIELD_MM
        gradient = np.stack([np.stack(np.gradient(component)) for component in displacement])
        jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0
        largest = max(largest, float(np.abs(displacement).max() * rs.FIELD_MM))
    assert largest > 4.0  # and they do warp


def test_ventricles_widen(source):
    """The pull moves points towards the ventricles, so that what they show grows."""
    code = np.asarray(source.code)
    ventricle = region_of(code) == Region.VENTRICLE
    axes = [(np.arange(n) - (n - 1) / 2) * rs.CODE_MM for n in code.shape]
    points = jnp.stack(jnp.meshgrid(*map(jnp.asarray, axes), indexing="ij"))
    pulled = points + 4.0 * rs.sample_linear(source.ventricle_pull, points / rs.FIELD_MM)
    wider = region_of(np.asarray(rs.sample_nearest(source.code, pulled / rs.CODE_MM))) == Region.VENTRICLE
    assert wider.sum() > 1.3 * ventricle.sum()
