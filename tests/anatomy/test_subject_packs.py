"""Plausibility of the packs of single people; needs the anatomy assets."""

import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.anatomy.assets import SUBJECT_SCANS, load_pack, read_sources
from cmb_jax.anatomy.build import AFFINE, SHAPE, resample
from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Side, Zone, region_of, side_of

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module", params=sorted(SUBJECT_SCANS))
def pack(request):
    return load_pack(request.param)


@pytest.fixture(scope="module")
def template():
    return load_pack()


@pytest.fixture(scope="module")
def template_t1():
    return resample(read_sources().head_t1)


def _index(point):
    return tuple(np.rint(np.asarray(point) - AFFINE[:3, 3]).astype(int))


def _brain(pack):
    return pack.fractions[..., : Channel.WHITE_MATTER + 1].sum(axis=-1, dtype=int) > 127


def test_same_grid_as_the_template(pack):
    assert pack.fractions.shape == (*SHAPE, NUM_CHANNELS)
    np.testing.assert_array_equal(pack.affine, AFFINE)
    assert (pack.fractions[..., :5].sum(axis=-1, dtype=np.uint16) == 255).all()


@pytest.mark.parametrize(
    ("channel", "low", "high"),
    [  # cm3, adults
        (Channel.GRAY_MATTER, 550, 900),
        (Channel.WHITE_MATTER, 450, 750),
        (Channel.CSF, 150, 400),
        (Channel.CAUDATE, 3, 10),
        (Channel.PUTAMEN, 7, 14),
        (Channel.PALLIDUM, 2, 5),
        (Channel.THALAMUS, 10, 20),
        (Channel.RED_NUCLEUS, 0.3, 1.0),
        (Channel.SUBSTANTIA_NIGRA, 0.8, 2.5),
        (Channel.DENTATE, 1.0, 4.0),
    ],
)
def test_tissue_volumes(pack, channel, low, high):
    assert low < pack.fractions[..., channel].sum(dtype=float) / 255e3 < high


def test_regions_have_the_templates_share_of_the_brain(pack, template):
    own, its = (np.bincount(region_of(p.code).ravel(), minlength=16)[1:14] for p in (pack, template))
    ratio = (own / own.sum()) / (its / its.sum())
    assert (ratio > 0.75).all()
    assert (ratio < 1.3).all()


def test_both_sides_have_about_the_same_volume(pack):
    for region in Region:
        if region in (Region.OUTSIDE, Region.SULCAL_CSF):
            continue
        own = region_of(pack.code) == region
        left, right = ((own & (side_of(pack.code) == side)).sum() for side in (Side.LEFT, Side.RIGHT))
        assert 0.7 < left / right < 1.4, region.name


@pytest.mark.parametrize(
    ("mni_point", "region", "side"),
    [
        ((27, 5, 0), Region.BASAL_GANGLIA, Side.RIGHT),
        ((12, -18, 8), Region.THALAMUS, Side.RIGHT),
        ((-4, -28, -30), Region.BRAINSTEM, Side.LEFT),
        ((30, -65, -40), Region.CEREBELLUM, Side.RIGHT),
        ((25, -25, 30), Region.DEEP_WHITE_MATTER, Side.RIGHT),
        ((-3, -38, 12), Region.CORPUS_CALLOSUM, Side.LEFT),
        ((30, 40, 25), Region.FRONTAL, Side.RIGHT),
        ((-45, -20, -10), Region.TEMPORAL, Side.LEFT),
        ((-30, -88, 10), Region.OCCIPITAL, Side.LEFT),
        ((8, -60, 45), Region.PARIETAL, Side.RIGHT),
        ((-7, -5, 22), Region.VENTRICLE, Side.LEFT),
    ],
)
def test_places_known_in_mni_space(pack, mni_point, region, side):
    point = pack.from_mni.map_points(np.array(mni_point, float))
    around = pack.code[tuple(slice(i - 1, i + 2) for i in _index(point))]
    code = np.bincount(around.ravel()).argmax()
    assert (Region(region_of(code)), Side(side_of(code))) == (region, side)


def test_lattices_lead_there_and_back(pack, template):
    points = np.argwhere(_brain(template))[::5003] + AFFINE[:3, 3]
    back = pack.to_mni.map_points(pack.from_mni.map_points(points))
    distance = np.linalg.norm(back - points, axis=1)
    assert distance.mean() < 0.25
    assert distance.max() < 2.0


def test_template_carried_over_looks_like_the_scan(pack, template_t1):
    brain = _brain(pack)
    points = np.argwhere(brain)[::11]
    own = pack.fractions[..., Channel.T1][tuple(points.T)].astype(float)

    def correlation(mni_mm):
        index = (mni_mm - AFFINE[:3, 3]).T
        return np.corrcoef(own, ndimage.map_coordinates(template_t1, index, order=1))[0, 1]

    carried = correlation(pack.to_mni.map_points(points + AFFINE[:3, 3]))
    assert carried > 0.7
    assert carried > correlation(points + AFFINE[:3, 3]) + 0.2


def test_tissues_and_nuclei_have_their_brightness(pack):
    t1 = pack.fractions[..., Channel.T1].astype(float)

    def median(channel):
        return np.median(t1[pack.fractions[..., channel] > 240])

    white, gray, csf = median(Channel.WHITE_MATTER), median(Channel.GRAY_MATTER), median(Channel.CSF)
    assert csf < 0.6 * gray
    assert gray < 0.9 * white
    assert gray * 0.9 < median(Channel.CAUDATE) < white
    assert gray * 0.9 < median(Channel.PUTAMEN) < white
    # white matter is equally bright all over the head: the shading is gone
    sure = pack.fractions[..., Channel.WHITE_MATTER] > 250
    x, y, z = np.indices(SHAPE, sparse=True)
    for half in (x < 96, x >= 96, y < 110, y >= 110, z < 75, z >= 75):
        assert np.median(t1[sure & half]) == pytest.approx(white, rel=0.06)


def test_every_brain_voxel_has_a_brain_region(pack):
    brain = pack.fractions[..., :5].argmax(axis=-1) <= Channel.WHITE_MATTER
    named = ZONE_OF_REGION[region_of(pack.code)] != Zone.NONE
    assert (brain != named).sum() < 1e-4 * brain.sum()


def test_air_is_in_the_sphenoid_sinus_and_not_in_the_vault(pack):
    air = pack.fractions[..., Channel.AIR] / 255.0
    x, y, z = pack.from_mni.map_points(np.array([0.0, 12.0, -42.0]))
    sinus = air[tuple(slice(i - 8, i + 9) for i in _index((x, y, z)))]
    assert (sinus > 0.8).sum() > 500  # mm3
    assert air[_index((94, 94, 112))] == 1.0
    near = ndimage.binary_dilation(_brain(pack), iterations=8)
    assert (air[near & (np.indices(SHAPE, sparse=True)[2] > 110)] > 0.5).mean() < 0.002  # above the ears
