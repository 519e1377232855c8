"""Preparation: geometry is kept, scaling is by the brain, coordinates go there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmb_jax.data.prepare import (
    _interpolate_axis,
    boxes_of_lesions,
    boxes_on_working_grid,
    brain_bounds,
    edge_coordinates,
    points_from_edges,
    prepare,
    resample,
    working_positions,
)
from cmb_jax.io.volume import Volume


def oblique_affine(spacing, angle=0.2):
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = [-30.0, 12.0, 5.0]
    return affine


def blob_volume(center_index, shape=(60, 64, 24), spacing=(0.8, 0.8, 2.0), sigma_mm=2.5):
    axes = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    distance = sum((a - c * s) ** 2 for a, c, s in zip(axes, center_index, spacing, strict=True))
    return Volume.from_array(100.0 - 80.0 * np.exp(-distance / (2 * sigma_mm**2)), oblique_affine(spacing))


def test_a_dark_blob_lies_at_its_own_ras_point_after_preparation():
    volume = blob_volume((31.0, 28.0, 12.0))
    mask = np.zeros(volume.shape, bool)
    mask[8:55, 9:58, 2:22] = True
    prepared = prepare(volume, None, mask)
    darkness = np.clip(1.0 - prepared.image[..., 0].astype(np.float64), 0, None)
    middle_zyx = np.array(ndimage.center_of_mass(darkness)) + 0.5
    point = points_from_edges(middle_zyx[None], prepared.affine)[0]
    expected = volume.affine[:3, :3] @ [31.0, 28.0, 12.0] + volume.affine[:3, 3]
    np.testing.assert_allclose(point, expected, atol=0.1)


def test_working_grid_has_the_asked_spacing_and_the_reference_tissue_becomes_one():
    volume = blob_volume((31.0, 28.0, 12.0))
    mask = np.ones(volume.shape, bool)
    prepared = prepare(volume, None, mask, spacing_mm=(1.0, 0.5, 0.5))
    steps = np.linalg.norm(prepared.affine[:3, :3], axis=0)
    np.testing.assert_allclose(steps, [0.5, 0.5, 1.0], rtol=1e-6)
    assert prepared.image.shape == (48, 102, 96, 2)
    assert np.percentile(prepared.image[..., 0].astype(float), 75) == pytest.approx(1.0, abs=0.02)
    assert not prepared.has_phase
    assert not prepared.image[..., 1].any()


def test_phase_channel_is_the_high_passed_phase_over_pi():
    volume = blob_volume((31.0, 28.0, 12.0))
    phase = np.zeros(volume.shape, np.float32)
    phase[30:33, 27:30, 11:14] = 1.5
    smooth_background = np.linspace(-2.0, 2.0, volume.shape[0])[:, None, None] * np.ones(volume.shape)
    prepared = prepare(volume, (phase + smooth_background).astype(np.float32), np.ones(volume.shape, bool))
    channel = prepared.image[..., 1].astype(np.float32)
    peak = edge_coordinates(
        (volume.affine[:3, :3] @ [31.0, 28.0, 12.0] + volume.affine[:3, 3])[None], prepared.affine
    )[0]
    z, y, x = np.floor(peak).astype(int)
    assert channel[z, y, x] * np.pi == pytest.approx(1.5, abs=0.4)
    # far from the blob the slow background is gone
    assert np.abs(channel[4:10, 40:60, 20:30]).mean() * np.pi < 0.05


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_edge_coordinates_and_points_are_inverse(seed):
    rng = np.random.default_rng(seed)
    affine = oblique_affine(rng.uniform(0.3, 3.0, 3), rng.uniform(-1, 1))
    edges = rng.uniform(-20, 200, (5, 3))
    np.testing.assert_allclose(edge_coordinates(points_from_edges(edges, affine), affine), edges, atol=1e-9)


def test_boxes_are_cubes_in_mm_round_the_center():
    volume = blob_volume((31.0, 28.0, 12.0))
    prepared = prepare(volume, None, np.ones(volume.shape, bool))
    center = (volume.affine[:3, :3] @ [31.0, 28.0, 12.0] + volume.affine[:3, 3])[None]
    box = boxes_of_lesions(center, np.array([4.0]), prepared)[0]
    np.testing.assert_allclose((box[3:] - box[:3]) * [1.0, 0.5, 0.5], 4.0, rtol=1e-5)
    np.testing.assert_allclose(
        (box[3:] + box[:3]) / 2, edge_coordinates(center, prepared.affine)[0], rtol=1e-4
    )
    small = boxes_of_lesions(center, np.array([0.5]), prepared)[0]
    np.testing.assert_allclose((small[3:] - small[:3]) * [1.0, 0.5, 0.5], 2.0, rtol=1e-5)
    assert boxes_of_lesions(np.zeros((0, 3)), np.zeros(0), prepared).shape == (0, 6)


def test_resampling_agrees_with_scipy(rng):
    data = rng.normal(size=(7, 9, 5)).astype(np.float32)
    positions = (np.linspace(-0.4, 6.4, 11), np.arange(9.0), np.linspace(0, 4, 9))
    mesh = np.meshgrid(*positions, indexing="ij")
    expected = ndimage.map_coordinates(data.astype(np.float64), mesh, order=1, mode="nearest")
    np.testing.assert_allclose(resample(data, positions), expected, atol=1e-5)


def test_heads_of_other_sizes_need_no_other_program():
    def run(x, y, z):
        shape = (x, y, z)
        positions = tuple(working_positions(size, 1.0, 0.7) for size in shape)
        return resample(np.ones(shape, np.float32), positions)

    run(40, 50, 60)
    programs = _interpolate_axis._cache_size()
    assert np.array_equal(run(37, 48, 61), np.ones((53, 69, 87)))
    assert _interpolate_axis._cache_size() == programs


def test_working_positions_share_the_outer_edge():
    index = working_positions(10, 2.0, 1.0)
    assert len(index) == 20
    # first voxel of 1 mm is centered 0.5 mm from the edge: 0.25 native voxels, i.e. index -0.25
    assert index[0] == pytest.approx(-0.25)
    assert index[-1] == pytest.approx(9.25)


def test_bounds_hold_the_mask_with_margin_and_stay_inside():
    mask = np.zeros((20, 30, 10), bool)
    mask[5:8, 28, 0] = True
    np.testing.assert_array_equal(brain_bounds(mask, (1.0, 2.0, 4.0), 4.0), [[1, 12], [26, 30], [0, 2]])
    np.testing.assert_array_equal(
        brain_bounds(np.zeros((2, 3, 4), bool), (1, 1, 1), 4.0), [[0, 2], [0, 3], [0, 4]]
    )


def test_boxes_of_the_scans_grid_keep_their_corners_in_space():
    volume = blob_volume((31.0, 28.0, 12.0))
    mask = np.zeros(volume.shape, bool)
    mask[20:40, 20:40, 8:16] = True
    prepared = prepare(volume, None, mask)
    boxes = np.array([[10.0, 25.0, 29.0, 13.0, 31.0, 35.0]])  # 6 x 4.8 x 4.8 mm
    moved = boxes_on_working_grid(boxes, volume.affine, prepared)
    for corner in (slice(0, 3), slice(3, 6)):
        here = volume.affine @ [*(boxes[0, corner][::-1] - 0.5), 1.0]
        there = prepared.affine @ [*(moved[0, corner][::-1] - 0.5), 1.0]
        np.testing.assert_allclose(there, here, atol=1e-4)


def test_boxes_of_the_scans_grid_are_no_thinner_than_allowed():
    volume = blob_volume((31.0, 28.0, 12.0))
    prepared = prepare(volume, None, np.ones(volume.shape, bool))
    one_voxel = np.array([[10.0, 25.0, 29.0, 11.0, 26.0, 30.0]])  # 2 x 0.8 x 0.8 mm
    moved = boxes_on_working_grid(one_voxel, volume.affine, prepared)[0]
    np.testing.assert_allclose((moved[3:] - moved[:3]) * prepared.spacing_mm, 2.0, atol=1e-4)
    middle = prepared.affine @ [*((moved[:3] + moved[3:]) / 2 - 0.5)[::-1], 1.0]
    np.testing.assert_allclose(middle, volume.affine @ [29.0, 25.0, 10.0, 1.0], atol=1e-4)
    assert boxes_on_working_grid(np.zeros((0, 6)), volume.affine, prepared).shape == (0, 6)


def noisy_head(rng, shape=(70, 60, 12), spacing=(0.8, 0.8, 2.0)):
    """A bright ball with a raw phase that wraps, in noise of the air; with the mask of the ball."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = sum((a / 0.7) ** 2 for a in axes) < 1
    smooth = 7.0 * (axes[0] ** 2 + 0.5 * axes[1])
    signal = mask * np.exp(1j * smooth)
    signal = signal + 0.02 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return Volume.from_array(np.abs(signal), oblique_affine(spacing)), np.angle(signal), mask


def widened(volume, phase, mask, pads):
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [low for low, _ in pads]
    return Volume.from_array(np.pad(volume.data, pads), affine), np.pad(phase, pads), np.pad(mask, pads)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=3), st.booleans())
@settings(max_examples=8, deadline=None)
def test_zeros_around_the_head_change_nothing(pads, mask_is_known):
    volume, phase, mask = noisy_head(np.random.default_rng(1))
    if not mask_is_known:
        mask = np.zeros_like(mask)
    plain = prepare(volume, phase, mask)
    wide = prepare(*widened(volume, phase, mask, pads))
    np.testing.assert_array_equal(wide.image, plain.image)
    np.testing.assert_allclose(wide.affine, plain.affine, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e4, 1e12])
def test_a_positive_factor_changes_nothing(rng, factor):
    volume, phase, mask = noisy_head(rng)
    scaled = Volume.from_array(volume.data * np.float32(factor), volume.affine)
    expected, found = prepare(volume, phase, mask).image, prepare(scaled, phase, mask).image
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=2e-3)  # float16 twice


def test_phase_of_air_does_not_enter_as_noise(rng):
    volume, phase, mask = noisy_head(rng)
    prepared = prepare(volume, phase, mask)
    channel = np.abs(prepared.image[..., 1].astype(float))
    inside = prepared.image[..., 0] > 0.5
    far = ndimage.distance_transform_edt(~inside, (1.0, 0.5, 0.5)) > 4
    assert far.sum() > 10_000
    assert channel[far].mean() < 0.02  # noise of +-pi alone: 0.5
    well_inside = ndimage.distance_transform_edt(inside, (1.0, 0.5, 0.5)) > 5
    assert channel[well_inside].mean() < 0.05  # what is smooth is filtered away


def test_filtered_phase_is_told_from_raw_and_left_alone(rng):
    volume, phase, mask = noisy_head(rng, spacing=(0.5, 0.5, 1.0))  # the working grid
    raw = prepare(volume, phase, mask)
    assert not raw.phase_was_filtered
    dots = np.zeros(mask.shape, np.float32)
    dots[20:50:8, 20:40:8, 3:9:3] = 2.0  # small structures on nothing: as after a filter
    done = prepare(volume, dots, mask)
    assert done.phase_was_filtered
    assert done.image[..., 1].max() * np.pi == pytest.approx(2.0, abs=2e-3)


def test_a_wrap_is_interpolated_across_and_not_through_zero():
    """Neighbors of +3 and -3 rad in slices 4 mm thick: between them lies pi, not 0."""
    shape = (40, 40, 8)
    phase = np.zeros(shape, np.float32)
    phase[20, 20, 4], phase[20, 20, 5] = 3.0, -3.0
    volume = Volume.from_array(np.ones(shape), np.diag([0.5, 0.5, 4.0, 1.0]))
    column = prepare(volume, phase, np.ones(shape, bool)).image[:, 20, 20, 1].astype(float) * np.pi
    between = column[18:22]  # centers of slices 4 and 5 lie at edges 18 and 22 of the working grid
    assert np.abs(between).min() > 2.0
