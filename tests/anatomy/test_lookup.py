import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cmb_jax.anatomy import lookup
from cmb_jax.anatomy.lookup import anatomical_lookup
from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, RegionMap, Side, Zone, encode
from cmb_jax.core.detection import RejectReason

SHAPE = (9, 8, 11)
POINTS = 4


def ball(radius):
    """All integer points within the radius, by plain loops."""
    axis = range(-radius, radius + 1)
    return np.array(
        [(x, y, z) for x in axis for y in axis for z in axis if x * x + y * y + z * z <= radius**2]
    )


def slow_codes(region_map, inverse_affine, points_mm):
    """Nearest-voxel codes in float64, 0 off the grid; and whether a rounding is too close to call."""
    codes, unclear = [], False
    for point in points_mm:
        position = inverse_affine[:3, :3] @ point + inverse_affine[:3, 3]
        if np.all(position > -1) and np.all(position < np.array(region_map.shape)):
            unclear |= bool(np.any(np.abs(position - np.floor(position) - 0.5) < 1e-5))
        voxel = np.floor(position + 0.5).astype(int)
        on_grid = np.all(voxel >= 0) and np.all(voxel < region_map.shape)
        codes.append(int(region_map[tuple(voxel)]) if on_grid else 0)
    return codes, unclear


def commonest(values):
    return min(set(values), key=lambda value: (-values.count(value), value))


def slow_lookup(point, diameter, region_map, inverse_affine):
    sphere, unclear_a = slow_codes(region_map, inverse_affine, point + diameter / 2 * ball(3) / 3)
    regions = [code % 16 for code in sphere]
    tissue = [region for region in regions if 1 <= region <= 13]
    other = [region for region in regions if not 1 <= region <= 13]
    if tissue:
        most = commonest([int(ZONE_OF_REGION[region]) for region in tissue])
        region = commonest([region for region in tissue if ZONE_OF_REGION[region] == most])
    else:
        region = commonest(other)
    side = commonest([code // 16 for code in sphere if code % 16 == region]) if region else 0
    inside = len(tissue) / len(sphere)
    keep = inside >= 0.05
    reasons = {0: RejectReason.OUTSIDE_BRAIN, 14: RejectReason.IN_VENTRICLE, 15: RejectReason.IN_SULCAL_CSF}
    reason = RejectReason.NONE if keep else reasons[commonest(other)]
    offsets = 2 * ball(3)
    around, unclear_b = slow_codes(region_map, inverse_affine, point + offsets)
    zone = ZONE_OF_REGION[region]

    def nearest(holds):
        near = [np.linalg.norm(o) for o, code in zip(offsets, around, strict=True) if holds(code)]
        return min(near, default=np.inf)

    csf = nearest(lambda code: code % 16 in (14, 15))
    border = nearest(lambda code: ZONE_OF_REGION[code % 16] not in (0, zone)) if zone else np.inf
    lobes = {code // 16 for code in around if 9 <= code % 16 <= 13}
    regions_around = {code % 16 for code in around}
    sagittal = {1, 2} <= lobes and 0 in regions_around
    transverse = lobes & {1, 2} and {0, 2} <= regions_around
    straight = {1, 2} <= lobes and 2 in regions_around
    if reason in (1, 3) and (sagittal or transverse or straight):
        reason = RejectReason.IN_SINUS
    row = (region, side, zone, inside, csf, border, keep, reason)
    return row, unclear_a or unclear_b


def random_affine(rng):
    """Oblique, anisotropic, possibly mirrored."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.7, 2.5, 3)
    affine[:3, 3] = rng.uniform(-30, 30, 3)
    return affine


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 1.0, 4.0, 12.0]))
def test_equals_the_slow_reference(seed, csf_share, largest):
    rng = np.random.default_rng(seed)
    affine = random_affine(rng)
    inverse = np.linalg.inv(affine)
    region = np.where(
        rng.random(SHAPE) < csf_share, rng.choice([0, 14, 15], SHAPE), rng.integers(0, 14, SHAPE)
    )
    region_map = encode(region, rng.integers(0, 3, SHAPE))
    voxels = rng.uniform(-4, np.array(SHAPE) + 4, (POINTS, 3))  # some off the grid
    points = (voxels @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
    diameters = rng.uniform(0, largest, POINTS).astype(np.float32)
    rows, unclear = zip(
        *[
            slow_lookup(p, d, region_map, inverse)
            for p, d in zip(points.astype(np.float64), diameters.astype(np.float64), strict=True)
        ],
        strict=True,
    )
    assume(not any(unclear))
    found = anatomical_lookup(points, diameters, region_map, inverse)
    expected = [np.array(column) for column in zip(*rows, strict=True)]
    for name, want in zip(
        (
            "region",
            "side",
            "zone",
            "inside_fraction",
            "csf_distance_mm",
            "zone_border_mm",
            "keep",
            "reason",
        ),
        expected,
        strict=True,
    ):
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-6, err_msg=name)


def layered_map():
    """40^3 mm: x < 20 frontal left, 20 <= x < 30 sulcal CSF, then outside; a right ventricle in front."""
    region = np.full((40, 40, 40), Region.FRONTAL)
    side = np.full(region.shape, Side.LEFT)
    region[20:30], side[20:30] = Region.SULCAL_CSF, Side.NONE
    region[30:], side[30:] = Region.OUTSIDE, Side.NONE
    region[:12, 28:], side[:12, 28:] = Region.VENTRICLE, Side.RIGHT
    return encode(region, side)


def look(point, diameter):
    """One lookup in the layered map, whose affine shifts by (-20, -20, -20) mm."""
    inverse = np.eye(4)
    inverse[:3, 3] = 20
    found = anatomical_lookup(jnp.array([point], jnp.float32), jnp.array([diameter]), layered_map(), inverse)
    return jax.tree.map(lambda leaf: leaf[0].item(), found)


def test_in_the_lobe():
    found = look((-10.0, -5, -5), 5.0)
    assert (found.region, found.side, found.zone) == (Region.FRONTAL, Side.LEFT, Zone.LOBAR)
    assert found.keep
    assert found.inside_fraction == pytest.approx(1)
    assert found.csf_distance_mm == np.inf


def test_at_the_cortex_edge_is_kept_although_most_of_it_is_csf():
    found = look((0.5, -5, -5), 6.0)
    assert 0.1 < found.inside_fraction < 0.5
    assert found.keep
    assert found.reason == RejectReason.NONE
    assert (found.region, found.side) == (Region.FRONTAL, Side.LEFT)


@pytest.mark.parametrize(
    ("point", "reason", "region", "side"),
    [
        ((5.0, -5, -5), RejectReason.IN_SULCAL_CSF, Region.SULCAL_CSF, Side.NONE),
        ((15.0, -5, -5), RejectReason.OUTSIDE_BRAIN, Region.OUTSIDE, Side.NONE),
        ((-15.0, 14, 0), RejectReason.IN_VENTRICLE, Region.VENTRICLE, Side.RIGHT),
        ((-500.0, 0, 0), RejectReason.OUTSIDE_BRAIN, Region.OUTSIDE, Side.NONE),
        ((np.nan, 0, 0), RejectReason.OUTSIDE_BRAIN, Region.OUTSIDE, Side.NONE),
        ((np.inf, 0, 0), RejectReason.OUTSIDE_BRAIN, Region.OUTSIDE, Side.NONE),
    ],
)
def test_rejected_with_its_reason(point, reason, region, side):
    found = look(point, 4.0)
    assert not found.keep
    assert found.inside_fraction == 0
    assert (found.reason, found.region, found.side, found.zone) == (reason, region, side, Zone.NONE)


def test_two_regions_of_a_zone_do_not_split_its_votes():
    """Beside the external capsule, where insula and temporal lobe meet."""
    region = np.full((40, 40, 40), Region.EXTERNAL_CAPSULE)
    region[20:, :20], region[20:, 20:] = Region.INSULA, Region.TEMPORAL
    region_map = encode(region, np.full(region.shape, Side.LEFT))
    found = anatomical_lookup(np.array([[19.6, 19.4, 19.5]]), np.array([12.0]), region_map, np.eye(4))
    sphere = np.array([19.6, 19.4, 19.5]) + 6 * ball(3) / 3
    names = [Region(region[tuple(np.rint(p).astype(int))]) for p in sphere]
    assert commonest(names) == Region.EXTERNAL_CAPSULE  # though most of the sphere is lobar
    assert (found.zone.item(), found.region.item()) == (Zone.LOBAR, Region.INSULA)


def test_a_point_without_size_votes_alone():
    assert look((-0.75, -5, -5), 0.0).inside_fraction == pytest.approx(1)  # voxel 19, the last of the lobe
    assert look((-0.25, -5, -5), 0.0).inside_fraction == 0  # voxel 20
    assert look((-0.75, -5, -5), -3.0).inside_fraction == pytest.approx(
        1
    )  # a negative diameter counts as none


def test_off_the_grid_is_outside_even_half_a_voxel_away():
    assert look((-20.49, -5, -5), 0.0).region == Region.FRONTAL
    assert look((-20.51, -5, -5), 0.0).region == Region.OUTSIDE


@pytest.mark.parametrize("depth", [1.0, 3.0, 5.0])
def test_distance_to_a_plane_of_csf(depth):
    # The first CSF voxel's near face is half a voxel before its center at x = 0 mm.
    assert abs(look((-0.5 - depth, -5, -5), 3.0).csf_distance_mm - depth) <= lookup.REACH_STEP_MM
    assert look((3.0, -5, -5), 3.0).csf_distance_mm == 0


def test_maps_over_a_batch_of_subjects(rng):
    region_maps = encode(rng.integers(0, 16, (3, *SHAPE)), rng.integers(0, 3, (3, *SHAPE)))
    points, diameters = rng.uniform(0, 9, (3, 6, 3)).astype(np.float32), np.full((3, 6), 3.0, np.float32)
    inverse = jnp.tile(jnp.eye(4), (3, 1, 1))
    together = jax.vmap(anatomical_lookup)(points, diameters, jnp.array(region_maps), inverse)
    for b in range(3):
        single = anatomical_lookup(points[b], diameters[b], region_maps[b], inverse[b])
        jax.tree.map(lambda t, s, b=b: np.testing.assert_array_equal(t[b], s), together, single)


@pytest.mark.parametrize("count", [0, 1, 63, 65])
def test_numpy_in_and_out_for_any_count(rng, count):
    region_map = encode(rng.integers(0, 16, SHAPE), rng.integers(0, 3, SHAPE))
    points, diameters = rng.uniform(0, 9, (count, 3)).astype(np.float32), np.full(count, 3.0, np.float32)
    found = lookup.look_up(points, diameters, RegionMap(code=region_map, affine=np.eye(4)))
    want = anatomical_lookup(points, diameters, region_map, np.eye(4))
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_no_points():
    found = anatomical_lookup(jnp.zeros((0, 3)), jnp.zeros(0), layered_map(), np.eye(4))
    assert found.region.shape == (0,)
    assert found.side.dtype == found.region.dtype == found.zone.dtype == found.reason.dtype == jnp.int32


def test_every_reason_has_a_sentence_of_its_own():
    assert [reason for reason in RejectReason if not reason.sentence] == [RejectReason.NONE]
    assert all(RejectReason.of(reason.sentence) is reason for reason in RejectReason)
