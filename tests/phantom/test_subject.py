import dataclasses

import jax
import numpy as np
import pytest

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, region_of, side_of
from cmb_jax.phantom import PROTOCOLS, simulate_subject
from cmb_jax.phantom.settings import check_settings
from cmb_jax.phantom.simulate import Plan, Ranges, lesion_table, packed, simulate_sample
from cmb_jax.phantom.types import CMB_KIND, FOCAL_MIMICS, MimicKind
from tests.phantom.conftest import SETTINGS


def _arrays(subject):
    return (
        subject.swi.data,
        subject.phase.data,
        subject.magnitude.data,
        subject.cmb_labels,
        subject.mimic_labels,
        subject.region_code,
        subject.lesions.center_mm,
        subject.lesions.cnr,
    )


def test_seed_decides_everything(pack, subject):
    again = simulate_subject(pack, 11, SETTINGS)
    for a, b in zip(_arrays(subject), _arrays(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = simulate_subject(pack, 12, SETTINGS)
    assert np.mean(other.region_code != subject.region_code) > 0.02
    assert np.abs(other.swi.data - subject.swi.data).max() > 0.1


def test_arrays_share_one_grid(subject):
    protocol = PROTOCOLS["thick3"]
    shape = (protocol.matrix[0], protocol.matrix[1], protocol.matrix[2] - 2 * protocol.discarded_slices)
    for array in _arrays(subject)[:6]:
        assert array.shape == shape
        assert np.isfinite(array).all()
    np.testing.assert_allclose(subject.swi.spacing_mm, protocol.spacing_mm, rtol=1e-5)
    assert subject.cmb_labels.dtype == np.uint16
    assert subject.mimic_labels.dtype == subject.region_code.dtype == np.uint8
    assert np.abs(subject.phase.data).max() <= np.pi + 1e-5


def _voxel(subject, points_mm):
    affine = subject.swi.affine
    return np.linalg.solve(affine[:3, :3], (points_mm - affine[:3, 3]).T).T


def test_every_label_is_centered_on_its_table_entry(subject):
    """Within half a voxel along every axis; and what the table says of a lesion is true where it lies."""
    table = subject.lesions
    bleeds = np.flatnonzero(table.is_cmb)
    assert len(bleeds) >= 10
    np.testing.assert_array_equal(table.id, np.arange(1, len(table) + 1))
    assert set(np.unique(subject.cmb_labels)) == {0, *table.id[bleeds]}
    centers = _voxel(subject, table.center_mm)
    for i in bleeds:
        voxels = np.argwhere(subject.cmb_labels == table.id[i])
        assert np.abs(voxels.mean(axis=0) - centers[i]).max() <= 0.5 + 1e-3
        extent = np.ptp(voxels, axis=0) * subject.swi.spacing_mm
        assert (extent <= 1.5 * table.apparent_diameter_mm[i] + 1e-3).all()
        near = subject.region_code[
            tuple(slice(max(0, k - 1), k + 2) for k in np.rint(centers[i]).astype(int))
        ]
        assert table.region[i] in region_of(near)
    np.testing.assert_array_equal(ZONE_OF_REGION[table.region], table.zone)
    assert (table.kind[bleeds] == CMB_KIND).all()
    assert (table.chi_ppm[table.is_cmb] > 0).all()
    lime = np.isin(table.kind, [k for k in FOCAL_MIMICS if k != MimicKind.CAVERNOMA])
    assert (table.chi_ppm[lime] < 0).all()


def test_no_microbleed_lies_outside_the_brain(subject):
    table = subject.lesions
    index = np.rint(_voxel(subject, table.center_mm[table.is_cmb])).astype(int)
    region = region_of(subject.region_code[tuple(index.T)])
    # the nearest acquired voxel of 1 x 1 x 3 mm may just have the neighbor's name
    assert (region > Region.OUTSIDE).all()
    assert (region < Region.VENTRICLE).mean() > 0.85
    assert (table.region[table.is_cmb] < Region.VENTRICLE).all()
    assert (table.region[table.is_cmb] > Region.OUTSIDE).all()


def test_regions_and_mimics_are_there(subject):
    regions = set(np.unique(region_of(subject.region_code)))
    assert regions == {int(r) for r in Region}
    assert set(np.unique(side_of(subject.region_code))) == {0, 1, 2}
    kinds = set(np.unique(subject.mimic_labels))
    expected = {
        MimicKind.IRON_NUCLEUS,
        MimicKind.MEDULLARY_VEIN,
        MimicKind.PIAL_VEIN,
        MimicKind.DEEP_VEIN,
        MimicKind.SINUS,
        MimicKind.ARTERY,
    }
    assert expected <= kinds
    assert not (subject.mimic_labels[subject.cmb_labels > 0] > 0).any()


def test_lesions_are_darker_and_veins_paramagnetic(subject):
    tissue = (region_of(subject.region_code) > 0) & (region_of(subject.region_code) < Region.VENTRICLE)
    plain = tissue & (subject.mimic_labels == 0) & (subject.cmb_labels == 0)
    assert np.median(subject.swi.data[subject.cmb_labels > 0]) < 0.7 * np.median(subject.swi.data[plain])


def test_every_microbleed_is_a_row_and_those_that_are_ignored_come_last(pack):
    """Faint ones of the hard tier: all that were drawn are in the table, as truth or ignored, none twice."""
    settings = dataclasses.replace(SETTINGS, tier="hard", mean_cmbs=60)
    protocol, tier = check_settings(settings)
    plan = Plan.of(protocol, settings.simulation_spacing_mm)
    ranges = Ranges.of(protocol, tier, settings)
    sample = simulate_sample(jax.random.key(3), packed(pack), ranges, plan=plan)
    table = lesion_table(jax.device_get(sample), np.eye(4))
    assert int(sample.counts.sum()) == table.is_cmb.sum() > 10
    assert int(sample.ignored.sum()) == table.is_ignored.sum() > 3
    drawn = int(sample.bleeds.valid.sum())
    assert drawn - 3 <= (table.is_cmb | table.is_ignored).sum() <= drawn  # few lie outside the image
    order = np.select([table.is_cmb, table.is_mimic], [0, 1], 2)
    assert (np.diff(order) >= 0).all()
    np.testing.assert_array_equal(table.id, np.arange(1, len(table) + 1))
    ignored = table.is_ignored
    assert (table.kind[ignored] == 17).all()  # the code in label images
    assert {row.kind for row in table.rows() if row.id in table.id[ignored]} == {"ignored_microbleed"}
    # what is ignored is smaller or fainter; a large one of high contrast lies in signal loss
    strength = table.cnr * table.apparent_diameter_mm
    assert np.median(strength[ignored]) < 0.5 * np.median(strength[table.is_cmb])


def test_the_affine_turns_the_slices_to_the_field(subject):
    """Slices of this protocol are oblique; the affine holds a rotation by no more than its tilt."""
    axes = subject.swi.affine[:3, :3] / np.linalg.norm(subject.swi.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    assert np.linalg.det(axes) == pytest.approx(1.0, abs=1e-5)
    tilt = np.degrees(np.arccos(axes[2, 2]))
    low, high = PROTOCOLS["thick3"].tilt_deg
    assert low <= tilt <= 1.1 * high


def test_truths_can_be_seen(subject):
    """Every microbleed that counts is darker than a neighborhood that has signal."""
    lesions = subject.lesions
    rows = lesions.is_cmb
    assert (lesions.cnr[rows] > 0).all()
    swi = subject.swi.data
    tissue = np.isin(region_of(subject.region_code), [r for r in Region if 1 <= r <= 13])
    typical = np.median(swi[tissue])
    free = tissue & (subject.cmb_labels == 0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in swi.shape], indexing="ij"), axis=-1)
    points = grid @ subject.swi.affine[:3, :3].T + subject.swi.affine[:3, 3]
    for place, diameter in zip(lesions.center_mm[rows], lesions.apparent_diameter_mm[rows], strict=True):
        distance = np.linalg.norm(points - place, axis=-1) - diameter / 2
        shell = free & (distance >= 1.0) & (distance <= 3.5)
        assert shell.any()
        assert swi[shell].mean() > 0.35 * typical
