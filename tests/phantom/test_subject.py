import dataclasses

import numpy as np
import pytest

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, region_of, side_of
from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.errors import UserError
from cmb_jax.phantom import PROTOCOLS, SubjectSettings, simulate_subject
from cmb_jax.phantom.protocols import check_protocol, rotation_to_scanner
from cmb_jax.phantom.types import CMB_KIND, MimicKind
from cmb_jax.phantom.visibility import MIN_CNR

SETTINGS = SubjectSettings(protocol="thick3", mean_cmbs=30, simulation_spacing_mm=2.0)


@pytest.fixture(scope="module")
def pack():
    return synthetic_pack()


@pytest.fixture(scope="module")
def subject(pack):
    return simulate_subject(pack, 11, SETTINGS)


def _arrays(subject):
    return (
        subject.swi.data,
        subject.phase.data,
        subject.magnitude.data,
        subject.cmb_labels,
        subject.mimic_labels,
        subject.region_code,
        subject.lesions.centre_mm,
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
    np.testing.assert_allclose(subject.swi.spacing_mm, protocol.spacing_mm)
    assert subject.cmb_labels.dtype == np.uint16
    assert subject.mimic_labels.dtype == subject.region_code.dtype == np.uint8
    assert np.abs(subject.phase.data).max() <= np.pi + 1e-5


def test_labels_match_the_table(subject):
    table = subject.lesions
    bleeds = np.flatnonzero(table.is_cmb)
    assert len(bleeds) >= 10
    np.testing.assert_array_equal(table.id, np.arange(1, len(table) + 1))
    assert set(np.unique(subject.cmb_labels)) == {0, *table.id[bleeds]}
    affine = subject.swi.affine
    voxel_mm = np.linalg.norm(subject.swi.spacing_mm)
    for i in bleeds:
        voxels = np.argwhere(subject.cmb_labels == table.id[i])
        centre = voxels.mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
        assert np.linalg.norm(centre - table.centre_mm[i]) < voxel_mm
        reach = table.apparent_diameter_mm[i] / 2 * 1.5 + voxel_mm
        points = voxels @ affine[:3, :3].T + affine[:3, 3]
        assert np.linalg.norm(points - table.centre_mm[i], axis=1).max() < reach
        index = np.rint(np.linalg.solve(affine[:3, :3], table.centre_mm[i] - affine[:3, 3])).astype(int)
        near = subject.region_code[tuple(slice(max(0, k - 1), k + 2) for k in index)]
        assert table.region[i] in region_of(near)
    np.testing.assert_array_equal(ZONE_OF_REGION[table.region], table.zone)
    assert (table.cnr[bleeds] >= MIN_CNR).all()
    assert (table.kind[bleeds] == CMB_KIND).all()
    assert (table.chi_ppm[table.is_cmb] > 0).all()
    assert (table.chi_ppm[~table.is_cmb] < 0).all()


def test_regions_and_mimics_are_there(subject):
    regions = set(np.unique(region_of(subject.region_code)))
    assert regions == {int(r) for r in Region}
    assert set(np.unique(side_of(subject.region_code))) == {0, 1, 2}
    kinds = set(np.unique(subject.mimic_labels))
    assert {MimicKind.IRON_NUCLEUS, MimicKind.MEDULLARY_VEIN, MimicKind.PIAL_VEIN, MimicKind.SINUS} <= kinds
    assert not (subject.mimic_labels[subject.cmb_labels > 0] > 0).any()


def test_lesions_are_darker_and_veins_paramagnetic(subject):
    tissue = (region_of(subject.region_code) > 0) & (region_of(subject.region_code) < Region.VENTRICLE)
    plain = tissue & (subject.mimic_labels == 0) & (subject.cmb_labels == 0)
    assert np.median(subject.swi.data[subject.cmb_labels > 0]) < 0.7 * np.median(subject.swi.data[plain])
    signed = subject.phase.data * subject.phase_sign
    veins = subject.mimic_labels == MimicKind.MEDULLARY_VEIN
    assert signed[veins].mean() > signed[plain].mean() + 0.02


def test_oblique_protocol_turns_the_affine_to_the_field(pack):
    subject = simulate_subject(
        pack, 3, SubjectSettings(protocol="iso08", mean_cmbs=0, simulation_spacing_mm=2.0)
    )
    axes = subject.swi.affine[:3, :3] / np.linalg.norm(subject.swi.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes @ np.array(PROTOCOLS["iso08"].b0_direction), [0, 0, 1], atol=1e-6)
    assert not subject.lesions.is_cmb.any()
    assert subject.cmb_labels.max() == 0
    assert subject.phase_sign == -1


@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, -0.6, 0.8)])
def test_rotation_to_scanner(direction):
    turn = rotation_to_scanner(direction)
    np.testing.assert_allclose(turn @ direction, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SubjectSettings(protocol="iso99"), "iso05"),
        (SubjectSettings(mean_cmbs=-1), "mean_cmbs is -1"),
        (SubjectSettings(simulation_spacing_mm=0.0), "0.4 to 4"),
    ],
)
def test_bad_settings_name_what_is_allowed(pack, settings, words):
    with pytest.raises(UserError, match=words):
        simulate_subject(pack, 0, settings)
    with pytest.raises(UserError, match="seed is -1"):
        simulate_subject(pack, -1, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"te_ms": (0.0, 20.0)},
        {"b0_t": (0.0,)},
        {"phase_sign": 0},
        {"snr": (0.0, 1.0)},
        {"field_of_view_mm": (191.3, 240.0, 162.0)},
        {"b0_direction": (0.0, 0.0, 2.0)},
    ],
)
def test_bad_protocols_are_refused(change):
    for protocol in PROTOCOLS.values():
        check_protocol(protocol)
    with pytest.raises(UserError, match=next(iter(change))):
        check_protocol(dataclasses.replace(PROTOCOLS["iso05"], **change))


def test_truths_can_be_seen(subject):
    """Every microbleed that counts is darker than a neighbourhood that has signal."""
    lesions = subject.lesions
    rows = lesions.is_cmb
    assert (lesions.cnr[rows] >= MIN_CNR).all()
    swi = subject.swi.data
    tissue = np.isin(region_of(subject.region_code), [r for r in Region if 1 <= r <= 13])
    typical = np.median(swi[tissue])
    free = tissue & (subject.cmb_labels == 0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in swi.shape], indexing="ij"), axis=-1)
    points = grid @ subject.swi.affine[:3, :3].T + subject.swi.affine[:3, 3]
    for place, diameter in zip(lesions.centre_mm[rows], lesions.apparent_diameter_mm[rows], strict=True):
        distance = np.linalg.norm(points - place, axis=-1) - diameter / 2
        shell = free & (distance >= 1.0) & (distance <= 3.5)
        assert shell.any()
        assert swi[shell].mean() > 0.35 * typical
