"""Own label volumes: the table of FreeSurfer's numbers, drawn brains by the definitions, bad input."""

import numpy as np
import pytest

from cmb_jax.anatomy.own_regions import freesurfer_table, read_label_table, regions_from_labels
from cmb_jax.anatomy.regions import Region, Side, region_of, side_of
from cmb_jax.errors import UserError
from cmb_jax.io.volume import Volume

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (48, 40, 32)
SCAN = Volume.from_array(np.ones((40, 40, 40)), np.diag([2.4, 2.0, 1.6, 1.0]))


def volume(labels, affine=AFFINE):
    return Volume.from_array(labels, affine)


@pytest.fixture
def brain():
    """A block of white matter between two sheets of cortex, with a ventricle inside: FreeSurfer's numbers."""
    labels = np.zeros(SHAPE)
    labels[4:24, 4:36, 4:28], labels[24:44, 4:36, 4:28] = 2, 41
    labels[4:24, 4:8, 4:28], labels[24:44, 4:8, 4:28] = 1011, 2011  # lateral occipital, behind
    labels[4:24, 32:36, 4:28], labels[24:44, 32:36, 4:28] = 1028, 2028  # superior frontal, in front
    labels[20:28, 18:22, 14:18] = 4
    labels[24:28, 18:22, 14:18] = 43
    return labels


def named(region_map, point_mm):
    x, y, z = np.rint(np.linalg.inv(region_map.affine)[:3] @ np.append(point_mm, 1.0)).astype(int)
    code = int(region_map.code[x, y, z])
    return region_of(code), side_of(code)


def test_the_table_holds_what_freesurfer_documents():
    table = freesurfer_table()
    row = dict(zip(table.labels.tolist(), zip(table.kinds, table.sides, strict=True), strict=True))
    assert row[10] == (Region.THALAMUS, Side.LEFT)
    assert row[58] == (Region.BASAL_GANGLIA, Side.RIGHT)
    assert row[16] == (Region.BRAINSTEM, Side.NONE)
    assert row[1022] == (Region.PARIETAL, Side.LEFT)
    assert row[2035] == (Region.INSULA, Side.RIGHT)
    assert row[253] == (Region.CORPUS_CALLOSUM, Side.NONE)
    # the same structure on both sides: cortex 1000 apart, and named alike
    for label, (kind, side) in row.items():
        if 1000 <= label < 2000 or 3000 <= label < 4000:
            assert row[label + 1000] == (kind, 3 - side)


def test_white_matter_is_deep_within_ten_millimeters_of_the_ventricle(brain):
    found = regions_from_labels(volume(brain), freesurfer_table(), SCAN)
    assert found.trusted
    # the ventricle's last voxel to the left ends the row at x = 20, 40 mm
    assert named(found, (30.0, 40, 30)) == (Region.DEEP_WHITE_MATTER, Side.LEFT)
    assert named(found, (28.0, 40, 30))[0] != Region.DEEP_WHITE_MATTER
    region = region_of(found.code)
    index = np.argwhere(np.isin(region, (Region.DEEP_WHITE_MATTER, Region.FRONTAL, Region.OCCIPITAL)))
    ventricle = np.argwhere(region == Region.VENTRICLE)
    distance = 2.0 * np.linalg.norm(index[:, None] - ventricle[None], axis=-1).min(axis=1)
    deep = region[tuple(index.T)] == Region.DEEP_WHITE_MATTER
    np.testing.assert_array_equal(deep, distance <= 10.0)


def test_white_matter_goes_to_the_nearest_lobe_and_keeps_its_side(brain):
    found = regions_from_labels(volume(brain), freesurfer_table(), SCAN)
    assert named(found, (12.0, 20, 30)) == (Region.OCCIPITAL, Side.LEFT)
    assert named(found, (84.0, 60, 30)) == (Region.FRONTAL, Side.RIGHT)


def test_white_matter_beside_a_nucleus_is_deep(brain):
    brain[8:12, 18:22, 14:18] = 12
    region_map = regions_from_labels(volume(brain), freesurfer_table(), SCAN)
    assert named(region_map, (20.0, 40, 24))[0] == Region.DEEP_WHITE_MATTER  # 4 mm below the putamen
    assert named(region_map, (20.0, 40, 20))[0] in (Region.FRONTAL, Region.OCCIPITAL)


def test_a_gap_in_the_brain_is_fluid_and_the_air_around_it_is_not(brain):
    brain[4:44, 20:22, 20:28] = 0
    found = regions_from_labels(volume(brain), freesurfer_table(), SCAN)
    assert named(found, (16.0, 42, 46))[0] == Region.SULCAL_CSF
    assert named(found, (16.0, 42, 60))[0] == Region.OUTSIDE


def test_an_own_table(brain, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("label,region,side,comment\n7,frontal,left,x\n8,cerebellum,,\n")
    labels = np.where(brain > 0, np.where(brain > 1000, 7, 8), 0)
    found = regions_from_labels(volume(labels), read_label_table(table), SCAN)
    assert named(found, (16.0, 14, 20)) == (Region.FRONTAL, Side.LEFT)
    assert named(found, (16.0, 40, 20))[0] == Region.CEREBELLUM


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,region\n1,frontal\n", "lacks the column side"),
        ("label,region,side\nx,frontal,left\n", "line 2: label is 'x'"),
        ("label,region,side\n1,forehead,left\n", "line 2: region is 'forehead'"),
        ("label,region,side\n1,frontal,west\n", "line 2: side is 'west'"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_table(path)


def test_bad_volumes_are_named(brain):
    table = freesurfer_table()
    with pytest.raises(UserError, match="labels 999999 are not in the table"):
        regions_from_labels(volume(np.where(brain == 4, 999_999, brain)), table, SCAN)
    with pytest.raises(UserError, match="not labels"):
        regions_from_labels(volume(brain + 0.5), table, SCAN)
    with pytest.raises(UserError, match="cortex without lobes"):
        regions_from_labels(volume(np.where(brain > 1000, 3, brain)), table, SCAN)
    with pytest.raises(UserError, match="none of its labels"):
        regions_from_labels(volume(np.where(brain > 0, 258, 0)), table, SCAN)
    away = AFFINE.copy()
    away[0, 3] = 500.0
    with pytest.raises(UserError, match="where the scan is"):
        regions_from_labels(volume(brain, away), table, SCAN)
