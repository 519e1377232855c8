"""A person's scan on the pack's grid, and what is carried over to it."""

import json
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cmb_jax.anatomy.assets import SUBJECT_SCANS
from cmb_jax.anatomy.build import (
    AFFINE,
    SHAPE,
    AtlasMaps,
    even_out,
    place_scan,
    read_placement,
    smooth_cranium,
)
from cmb_jax.anatomy.pack import Channel, Ellipsoid, voxel_axes
from cmb_jax.anatomy.synthetic import synthetic_pack

WARPS = resources.files("cmb_jax.anatomy").joinpath("warps")


def _value_at(volume, point):
    return float(volume[tuple(np.rint(np.asarray(point) - AFFINE[:3, 3]).astype(int))])


def test_a_turned_scan_is_placed_voxel_by_voxel(rng):
    scan = rng.integers(0, 200, size=(20, 22, 24)).astype(np.uint8)
    affine = np.array([[-1.0, 0, 0, 9], [0, 0, 1, -12], [0, -1, 0, 30], [0, 0, 0, 1]])  # axes to L, I, A
    placed = place_scan(nib.Nifti1Image(scan, affine), np.eye(4))
    assert placed.shape == SHAPE
    for index in [(0, 0, 0), (5, 7, 11), (19, 21, 23)]:
        assert _value_at(placed, (affine @ [*index, 1])[:3]) == scan[index]
    assert _value_at(placed, (-90, -12, 30)) == scan[19, 0, 0]  # beyond the field of view: its face


def test_a_scan_between_voxels_is_interpolated():
    i, j, k = np.indices((60, 60, 60), dtype=np.float32)
    scan = nib.Nifti1Image(100 + i - 0.5 * j + 2 * k, np.eye(4))
    angle = np.deg2rad(11)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [0.3, 4.2, 1.1]
    placed = place_scan(scan, turn)
    x, y, z = (turn @ [30, 25, 28, 1])[:3]
    assert _value_at(placed, (30, 25, 28)) == pytest.approx(100 + x - 0.5 * y + 2 * z, abs=0.01)


def test_shading_is_taken_out(rng):
    head = synthetic_pack()
    fractions = np.moveaxis(head.fractions[..., :5].astype(np.float32) / 255.0, -1, 0)
    tissues, cranium = fractions[:3], fractions[:3].sum(axis=0)
    flat = 90 * tissues[0] + 120 * tissues[1] + 35 * tissues[2] + 60 * fractions[Channel.SOFT_TISSUE]
    x, y, z = voxel_axes(head.code.shape, head.affine)
    shading = np.exp(0.004 * x - 0.003 * y + 0.15 * np.sin(z / 45))
    noisy = flat * shading + rng.normal(size=flat.shape).astype(np.float32)
    prior = np.stack([ndimage.gaussian_filter(t, 0.7) for t in tissues])
    even = even_out(noisy, prior, cranium)
    white = (tissues[1] > 0.99) & (cranium > 0.99)
    assert np.median(even[white]) == pytest.approx(0.97, abs=0.005)
    before, after = (np.std(np.log(t[white])) for t in (noisy, even))
    assert after < 0.35 * before
    gray = (tissues[0] > 0.99) & (cranium > 0.99)
    assert np.median(even[gray]) / 0.97 == pytest.approx(90 / 120, abs=0.02)


def test_pits_of_the_rim_are_filled_and_the_rest_stays():
    axes = voxel_axes((60, 60, 60), np.eye(4))
    carried = Ellipsoid((30, 30, 30), (20, 22, 18)).inside(axes, 2.0)
    carried[30:32, 30:32, 46:49] = 0.3
    smooth = smooth_cranium(carried)
    assert smooth[30, 30, 46] > 0.9
    assert smooth.sum() == pytest.approx(4 / 3 * np.pi * 20 * 22 * 18, rel=0.02)


def test_maps_are_carried_to_where_the_points_say(rng):
    shape = (12, 13, 14)
    fields = {
        name: rng.uniform(size=shape).astype(np.float32)
        for name in ("cranium", "vessels", "lesions", "red_nucleus", "substantia_nigra")
    }
    maps = AtlasMaps(
        tissues=rng.uniform(size=(3, *shape)).astype(np.float32),
        mori=rng.integers(0, 129, size=shape).astype(np.uint8),
        melbourne=rng.integers(0, 63, size=shape).astype(np.uint8),
        **fields,
    )
    x, y, z = (axis + AFFINE[i, 3] for i, axis in enumerate(np.indices(shape, dtype=np.float32)))
    carried = maps.carried((x + 2, y - 1, z + 0.25))
    np.testing.assert_array_equal(carried.mori[:-2, 1:], maps.mori[2:, :-1])
    expected = 0.75 * maps.tissues[:, 2:, :-1, :-1] + 0.25 * maps.tissues[:, 2:, :-1, 1:]
    np.testing.assert_allclose(carried.tissues[:, :-2, 1:, :-1], expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SUBJECT_SCANS))
def test_shipped_placements_are_invertible_and_as_recorded(name):
    placement = read_placement(name)
    record = json.loads(WARPS.joinpath(f"{name}.json").read_text())
    assert len(WARPS.joinpath(f"{name}.nii.gz").read_bytes()) < 700_000
    rotation = placement.pack_to_scan[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
    assert np.linalg.det(rotation) > 0

    lattice = placement.to_mni
    determinants = lattice.jacobian_determinants()
    assert determinants.min() > 0.0
    assert record["jacobian_determinant"]["least"] == pytest.approx(determinants.min(), abs=1e-3)
    assert record["correlation_of_t1_inside_the_skull"]["after"] > 0.8
    for corner in ((0, 0, 0), np.subtract(SHAPE, 1)):  # the lattice covers the pack
        index = (AFFINE[:3, :3] @ corner + AFFINE[:3, 3] - lattice.origin_mm) / lattice.spacing_mm
        assert ((index >= 0) & (index <= np.subtract(lattice.displacement.shape[:3], 1))).all()

    back = lattice.inverted(lattice.displacement.shape[:3], lattice.spacing_mm, lattice.origin_mm)
    points = np.array([[0, 0, 0], [12, -18, 8], [-30, -65, -40], [40, 30, 20], [-45, -20, -10]], float)
    np.testing.assert_allclose(lattice.map_points(back.map_points(points)), points, atol=0.5)
