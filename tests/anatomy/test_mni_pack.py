"""Plausibility of the real pack; needs the anatomy assets."""

import io
import zipfile

import numpy as np
import pytest

from cmb_jax.anatomy import assets, build, mars
from cmb_jax.anatomy.assets import fetch_package, load_pack
from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Side, Zone, region_of, side_of

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def pack():
    return load_pack()


@pytest.fixture(scope="module")
def atlas_names():
    """Label names of the two atlases, from the tables that lie beside them in the wheel."""
    folder = "t1prep/data/templates_MNI152NLin2009cAsym/"
    tables = {}
    with zipfile.ZipFile(fetch_package(assets.T1PREP)) as archive:
        for name in ("Mori", "Melbourne-Subcortex-Atlas-7T", "Hypothalamus"):
            lines = io.StringIO(archive.read(f"{folder}{name}.csv").decode()).read().splitlines()[1:]
            tables[name] = {int(line.split(";")[0]): line.split(";")[1] for line in lines if line}
    return tables


def _at(pack, point):
    index = tuple(np.round(np.linalg.inv(pack.affine) @ [*point, 1])[:3].astype(int))
    return int(pack.code[index])


def _cm3(pack, channel):
    return pack.fractions[..., channel].sum(dtype=float) / 255.0 / 1000.0


def test_grid(pack):
    assert pack.fractions.shape == (193, 229, 193, NUM_CHANNELS)
    np.testing.assert_array_equal(pack.affine, build.AFFINE)
    assert (pack.fractions[..., :5].sum(axis=-1, dtype=np.uint16) == 255).all()


@pytest.mark.parametrize(
    ("channel", "low", "high"),
    [  # cm3; the ICBM head is about 1.2 times as large as a mean adult's
        (Channel.GRAY_MATTER, 700, 950),
        (Channel.WHITE_MATTER, 550, 800),
        (Channel.CSF, 200, 450),
        (Channel.CAUDATE, 4, 12),
        (Channel.PUTAMEN, 8, 15),
        (Channel.PALLIDUM, 2.5, 6),
        (Channel.THALAMUS, 12, 22),
        (Channel.RED_NUCLEUS, 0.3, 1.0),
        (Channel.SUBSTANTIA_NIGRA, 0.8, 2.5),
        (Channel.DENTATE, 1.0, 4.0),
    ],
)
def test_tissue_volumes(pack, channel, low, high):
    assert low < _cm3(pack, channel) < high


@pytest.mark.parametrize(
    ("zone", "low", "high"), [(Zone.LOBAR, 950, 1350), (Zone.DEEP, 150, 350), (Zone.INFRATENTORIAL, 150, 260)]
)
def test_zone_volumes(pack, zone, low, high):
    volume = (ZONE_OF_REGION[region_of(pack.code)] == zone).sum() / 1000.0
    assert low < volume < high


def test_both_sides_have_about_the_same_volume(pack):
    for region in Region:
        if region in (Region.OUTSIDE, Region.SULCAL_CSF):
            continue
        own = region_of(pack.code) == region
        left, right = ((own & (side_of(pack.code) == side)).sum() for side in (Side.LEFT, Side.RIGHT))
        assert 0.7 < left / right < 1.4, region.name


@pytest.mark.parametrize(
    ("point", "region", "side"),
    [
        ((-12, 10, 10), Region.BASAL_GANGLIA, Side.LEFT),
        ((27, 5, 0), Region.BASAL_GANGLIA, Side.RIGHT),
        ((-20, -3, -2), Region.BASAL_GANGLIA, Side.LEFT),
        ((12, -18, 8), Region.THALAMUS, Side.RIGHT),
        ((-20, -5, 10), Region.INTERNAL_CAPSULE, Side.LEFT),
        ((34, 0, 0), Region.EXTERNAL_CAPSULE, Side.RIGHT),
        ((3, 28, 8), Region.CORPUS_CALLOSUM, Side.RIGHT),
        ((-3, -38, 12), Region.CORPUS_CALLOSUM, Side.LEFT),
        ((25, -25, 30), Region.DEEP_WHITE_MATTER, Side.RIGHT),
        ((-4, -28, -30), Region.BRAINSTEM, Side.LEFT),
        ((5, -20, -12), Region.BRAINSTEM, Side.RIGHT),
        ((-2, -42, -58), Region.BRAINSTEM, Side.LEFT),
        ((30, -65, -40), Region.CEREBELLUM, Side.RIGHT),
        ((-15, -57, -34), Region.CEREBELLUM, Side.LEFT),
        ((-45, -20, -10), Region.TEMPORAL, Side.LEFT),
        ((28, -20, -15), Region.TEMPORAL, Side.RIGHT),
        ((40, 0, 0), Region.INSULA, Side.RIGHT),
        ((8, -80, 5), Region.OCCIPITAL, Side.RIGHT),
        ((-30, -88, 10), Region.OCCIPITAL, Side.LEFT),
        ((30, 40, 25), Region.FRONTAL, Side.RIGHT),
        ((-6, 40, -15), Region.FRONTAL, Side.LEFT),
        ((-40, -50, 45), Region.PARIETAL, Side.LEFT),
        ((8, -60, 45), Region.PARIETAL, Side.RIGHT),
        ((-7, -5, 22), Region.VENTRICLE, Side.LEFT),
        ((28, -48, 8), Region.VENTRICLE, Side.RIGHT),
        ((1, -42, -30), Region.VENTRICLE, Side.RIGHT),
        ((14, -30, -4), Region.SULCAL_CSF, Side.RIGHT),
        ((1, 36, 5), Region.SULCAL_CSF, Side.RIGHT),
        ((0, 75, 60), Region.OUTSIDE, Side.NONE),
    ],
)
def test_known_points(pack, point, region, side):
    code = _at(pack, point)
    assert (Region(region_of(code)), Side(side_of(code))) == (region, side)


def test_every_brain_voxel_has_a_brain_region(pack):
    brain = pack.fractions[..., :5].argmax(axis=-1) <= Channel.WHITE_MATTER
    named = ZONE_OF_REGION[region_of(pack.code)] != Zone.NONE
    # Fewer than one in ten thousand may differ: partial volume of a ventricle's wall after rounding.
    assert (brain != named).sum() < 1e-4 * brain.sum()


def test_air_in_sphenoid_sinus_and_outside_but_not_in_the_vault(pack):
    def air(point):
        index = tuple(np.round(np.linalg.inv(pack.affine) @ [*point, 1])[:3].astype(int))
        return pack.fractions[index][Channel.AIR] / 255.0

    assert air((0, 12, -42)) > 0.8
    assert air((80, 90, 100)) == 1.0
    assert air((0, -55, 90)) < 0.05  # parietal bone


def test_atlas_tables_say_what_the_code_says(atlas_names):
    mori, melbourne = atlas_names["Mori"], atlas_names["Melbourne-Subcortex-Atlas-7T"]
    words = {
        Region.CEREBELLUM: ("Cbe",),
        Region.BASAL_GANGLIA: ("CauNuc", "Put", "GloPal"),
        Region.THALAMUS: ("Tha",),
        Region.INTERNAL_CAPSULE: ("LIC", "INC"),
        Region.EXTERNAL_CAPSULE: ("CapExt",),
        Region.CORPUS_CALLOSUM: ("CC", "Tap"),
        Region.FRONTAL: ("Fro", "PrcGy", "Orb", "RecGy"),
        Region.PARIETAL: ("Par", "PoC", "Ang", "SupMar"),
        Region.TEMPORAL: ("Fus", "ParHip", "Ent", "Tem", "Amy", "Hip"),
        Region.OCCIPITAL: ("Cun", "Lin", "Occ"),
        Region.INSULA: ("Ins",),
    }
    for region, expected in words.items():
        for label in mars.MORI_REGIONS[region]:
            assert any(word in mori[label] for word in expected), (region.name, mori[label])
    nuclei = {
        Channel.CAUDATE: "CAU",
        Channel.PUTAMEN: "PUT",
        Channel.PALLIDUM: "GP",
        Channel.THALAMUS: "THA",
    }
    for channel, word in nuclei.items():
        expected = {label for label, name in melbourne.items() if word in name}
        own = mars.MELBOURNE_NUCLEI[channel]
        assert set(own) | {label + mars.MELBOURNE_LEFT_OFFSET for label in own} == expected
    small = {Channel.RED_NUCLEUS: ("RN",), Channel.SUBSTANTIA_NIGRA: ("SN", "STN")}
    for channel, names in small.items():
        own = {atlas_names["Hypothalamus"][label][1:] for label in build.HYPOTHALAMUS_NUCLEI[channel]}
        assert own == set(names)
