"""The pieces of the building, on small arrays and on the synthetic head."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from cmb_jax.anatomy import mars
from cmb_jax.anatomy.build import AFFINE, SHAPE, head_air, resample, resample_labels, sharpen_tissues
from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel, Ellipsoid, paint, quantize, tube, voxel_axes
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.anatomy.synthetic import synthetic_pack


@pytest.fixture(scope="module")
def head():
    return synthetic_pack()


def test_ellipsoid_distance_is_exact_for_a_sphere():
    axes = voxel_axes((21, 23, 25), np.diag([1.0, 1.0, 1.0, 1.0]))
    distance = Ellipsoid((10, 11, 12), (6, 6, 6)).distance(axes)
    expected = np.sqrt((axes[0] - 10) ** 2 + (axes[1] - 11) ** 2 + (axes[2] - 12) ** 2) - 6
    np.testing.assert_allclose(distance[11:], expected[11:], atol=1e-4)


def test_ellipsoid_fraction_has_the_analytic_volume():
    axes = voxel_axes((40, 44, 48), np.eye(4))
    inside = Ellipsoid((19.3, 21.7, 24.1), (9, 13, 16)).inside(axes, 1.0)
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 9 * 13 * 16, rel=0.01)


def test_tube_profile():
    axes = voxel_axes((9, 9, 30), np.eye(4))
    profile = tube(axes, (4.0, 4.0, 5.0), (4.0, 4.0, 25.0), 2.0)
    np.testing.assert_allclose(profile[4, 4, 5:26], 1.0, atol=1e-6)
    np.testing.assert_allclose(profile[6, 4, 15], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(profile[4, 4, 29], np.exp(-0.5 * (4 / 2) ** 2), rtol=1e-5)


def test_paint_keeps_the_sum(rng):
    tissues = rng.dirichlet(np.ones(5), size=(4, 5, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    paint(tissues, Channel.CSF, rng.uniform(size=(4, 5, 6)).astype(np.float32))
    np.testing.assert_allclose(tissues.sum(axis=0), 1.0, atol=1e-6)


def test_quantize_sums_to_255_and_stays_close(rng):
    channels = rng.uniform(size=(NUM_CHANNELS, 6, 7, 8)).astype(np.float32)
    channels[:5] = rng.dirichlet(np.full(5, 0.3), size=(6, 7, 8)).transpose(3, 0, 1, 2)
    result = quantize(channels)
    assert (result[..., :5].sum(axis=-1, dtype=int) == 255).all()
    np.testing.assert_allclose(np.moveaxis(result, -1, 0) / 255.0, channels, atol=2.51 / 255)


@pytest.mark.parametrize(("spacing", "flip"), [(1.5, True), (0.5, False), (1.0, True)])
def test_resample_puts_a_linear_ramp_where_it_belongs(spacing, flip):
    step = np.array([-spacing if flip else spacing, spacing, spacing])
    shape = (40, 44, 48)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = [15.0 if flip else -15.0, -21.0, -12.0]
    i, j, k = np.indices(shape)
    x, y, z = (affine[a, 3] + affine[a, a] * n for a, n in enumerate((i, j, k)))
    image = nib.Nifti1Image((100 + x + 2 * y - 3 * z).astype(np.float32), affine)
    result = resample(image)
    assert result.shape == SHAPE
    for point in itertools.product((-4, 3), (-15, -8), (-7, 5)):
        index = tuple(np.round(np.linalg.inv(AFFINE) @ [*point, 1])[:3].astype(int))
        assert result[index] == pytest.approx(100 + point[0] + 2 * point[1] - 3 * point[2], abs=1e-3)
    assert result[0, 0, 0] == 0.0


def test_resample_labels_flips_left_and_right():
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 2, 2] = 7
    affine = np.array([[-1.0, 0, 0, 2], [0, 1, 0, -2], [0, 0, 1, -2], [0, 0, 0, 1]])  # index 0 is x = +2
    result = resample_labels(nib.Nifti1Image(labels, affine))
    assert [(np.array(index) + AFFINE[:3, 3]).tolist() for index in np.argwhere(result == 7)] == [[2, 0, 0]]


def test_sharpening_recovers_blurred_tissues(rng):
    # Ground truth: a folded sheet of gray matter between white matter and CSF; the prior is its blur.
    x, y, z = np.indices((48, 48, 24)).astype(np.float32)
    depth = x - 24 - 6 * np.sin(y / 5) * np.cos(z / 7)
    truth = np.stack([np.abs(depth) <= 2.5, depth < -2.5, depth > 2.5]).astype(np.float32)
    truth = np.stack([ndimage.gaussian_filter(t, 0.5) for t in truth])
    prior = np.stack([ndimage.gaussian_filter(t, 1.5) for t in truth])
    t1 = np.tensordot([0.74, 0.97, 0.35], truth, axes=1).astype(np.float32)
    t1 += 0.01 * rng.normal(size=t1.shape).astype(np.float32)
    result = sharpen_tissues(prior, t1, t1 > 0.05)
    np.testing.assert_allclose(result.sum(axis=0), 1.0, atol=1e-5)
    assert result.min() >= 0.0
    assert np.abs(result - truth).mean() < 0.6 * np.abs(prior - truth).mean()


def test_air_outside_and_in_the_sinuses_but_not_in_bone(head):
    fractions = np.moveaxis(head.fractions[..., :5].astype(np.float32) / 255.0, -1, 0)
    axes = voxel_axes(head.code.shape, head.affine)
    cranium = fractions[:3].sum(axis=0)
    t1 = 0.6 * fractions[Channel.SOFT_TISSUE] + 0.8 * cranium + 0.03 * fractions[Channel.AIR]
    radius = np.sqrt((axes[0] / 75) ** 2 + ((axes[1] + 17) / 96) ** 2 + ((axes[2] - 16) / 77) ** 2)
    vault = (np.abs(radius - 1) < 0.03) & (cranium < 0.01) & (axes[2] > 20)
    t1[vault] = 0.15  # dark bone
    air = head_air(t1, cranium, axes)
    sinus = tuple(np.round(np.linalg.inv(head.affine) @ [0, 30, -47, 1])[:3].astype(int))
    assert air[sinus] > 0.9
    assert air[0, 0, 0] == 1.0
    assert air[vault].max() < 0.1
    outside = (fractions[Channel.AIR] > 0.99) & (np.abs(axes[0]) > 84)
    assert air[outside].min() > 0.99


def test_every_mori_label_has_one_region():
    labels = [label for members in mars.MORI_REGIONS.values() for label in members]
    assert sorted(labels + list(mars.MORI_CINGULATE)) == list(range(1, 129))
    table = mars.label_regions(np.arange(129), mars.MORI_REGIONS)
    assert table[[0, 3, 4, 53, 119, 125]].tolist() == [
        0,
        0,
        0,
        Region.CEREBELLUM,
        Region.THALAMUS,
        Region.BRAINSTEM,
    ]


def test_nearest_label_agrees_with_a_search_tree(rng):
    labels = rng.integers(1, 9, size=(14, 15, 16))
    known = rng.uniform(size=labels.shape) < 0.02
    tree = KDTree(np.argwhere(known))
    points = np.argwhere(~known)
    found = mars._nearest(labels, known)
    filled = found[tuple(points.T)]
    distance, _ = tree.query(points)
    # Ties may go either way: the label must be one of a nearest known voxel.
    for point, label, limit in zip(points[::7], filled[::7], distance[::7], strict=True):
        nearest = tree.query_ball_point(point, limit + 1e-9)
        assert label in {labels[tuple(tree.data[i].astype(int))] for i in nearest}
    np.testing.assert_array_equal(found[known], labels[known])


def test_ventricles_are_found_by_place(head):
    axes = voxel_axes(head.code.shape, head.affine)
    csf = head.fractions[..., :5].argmax(axis=-1) == Channel.CSF
    _, found = mars.find_ventricles(csf, axes)
    truth = region_of(head.code) == Region.VENTRICLE
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.8


def test_regions_come_back_from_a_sparse_atlas(head, rng):
    """Half of the atlas's voxels are erased, white matter of the lobes wholly: the map must be filled in."""
    truth = region_of(head.code)
    tissues = np.moveaxis(head.fractions[..., :5].astype(np.float32) / 255.0, -1, 0)
    axes = voxel_axes(truth.shape, head.affine)
    mori = np.zeros(truth.shape, np.uint8)
    for region, labels in mars.MORI_REGIONS.items():
        plain = [label for label in labels if label not in (17, 18, 97, 98)]
        mori[truth == region] = plain[0]
    white = tissues.argmax(axis=0) == Channel.WHITE_MATTER
    mori[white & (truth >= Region.FRONTAL)] = 0
    mori[rng.uniform(size=mori.shape) < 0.5] = 0
    result = mars.assign_regions(mori, np.zeros_like(mori), tissues, axes, spacing_mm=2.0)
    brain = (truth >= Region.BRAINSTEM) & (truth <= Region.INSULA)
    assert ((result[brain] >= Region.BRAINSTEM) & (result[brain] <= Region.INSULA)).all()
    assert (result[brain] == truth[brain]).mean() > 0.9
    assert (result[truth == Region.OUTSIDE] == Region.OUTSIDE).all()
