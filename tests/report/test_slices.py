"""Where things land in the pictures: orientation, aspect, markers."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmb_jax.io.volume import Volume
from cmb_jax.report.drawing import (
    AXIAL,
    CORONAL,
    PLANES,
    SAGITTAL,
    Windows,
    centered_frame,
    choose_windows,
    data_uri,
    fitted_frame,
    mask_bounds,
    outline,
    sample_plane,
    take_plane,
    to_gray,
)
from cmb_jax.report.pictures import ThumbnailMaker, glass_brain, quality_mosaic, slabs


def spot_position(picture: np.ndarray) -> tuple[float, float]:
    """Center (x, y) of the bright spot in pixel edge coordinates."""
    weights = np.nan_to_num(picture)
    y, x = np.indices(picture.shape) + 0.5
    return float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


@pytest.mark.parametrize(
    ("plane", "index", "x_side", "y_side"),
    [
        # a voxel at the patient's left, front and top: (x low, y high, z high)
        (AXIAL, 20, "right", "top"),
        (CORONAL, 33, "right", "top"),
        (SAGITTAL, 5, "left", "top"),
    ],
)
def test_the_patients_left_front_top_is_where_the_letters_say(plane, index, x_side, y_side):
    data = np.zeros((30, 40, 25), np.float32)
    data[5, 33, 20] = 1.0
    frame = fitted_frame(plane, (1.0, 1.0, 1.0), tuple((0, n) for n in data.shape), 0.5)
    x, y = spot_position(sample_plane(take_plane(data, plane, index), frame))
    assert (x > frame.width_px / 2) == (x_side == "right")
    assert (y < frame.height_px / 2) == (y_side == "top")
    letters = {"left": plane.left, "right": plane.right}
    assert letters[x_side] == {"axial": "L", "coronal": "L", "sagittal": "A"}[plane.name]
    assert plane.top == {"axial": "A", "coronal": "S", "sagittal": "S"}[plane.name]


@given(
    st.tuples(st.integers(4, 25), st.integers(4, 35), st.integers(3, 14)),
    st.tuples(st.floats(0.4, 2.0), st.floats(0.4, 2.0), st.floats(1.0, 4.0)),
    st.sampled_from(PLANES),
)
def test_a_voxel_is_drawn_where_the_frame_says(voxel, spacing_mm, plane):
    data = np.zeros((30, 40, 18), np.float32)
    data[voxel] = 1.0
    finest = min(spacing_mm)
    frame = fitted_frame(plane, spacing_mm, tuple((0, n) for n in data.shape), finest / 3)
    picture = sample_plane(take_plane(data, plane, voxel[plane.through_axis]), frame)
    expected = frame.to_px(voxel[plane.column_axis], voxel[plane.row_axis])
    np.testing.assert_allclose(spot_position(picture), expected, atol=0.6)


def test_aspect_is_anatomical_with_thick_slices():
    # A ball of radius 8 mm on 0.5 x 0.5 x 2 mm voxels must look round in every plane.
    spacing = (0.5, 0.5, 2.0)
    shape = (64, 64, 16)
    grid = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    ball = (np.sqrt(sum(g**2 for g in grid)) < 8).astype(np.float32)
    for plane in PLANES:
        frame = centered_frame(plane, spacing, (np.array(shape) - 1) / 2, 30.0, 150)
        inside = (
            np.nan_to_num(sample_plane(take_plane(ball, plane, shape[plane.through_axis] / 2 - 0.5), frame))
            > 0.5
        )
        width, height = np.ptp(np.flatnonzero(inside.any(0))) + 1, np.ptp(np.flatnonzero(inside.any(1))) + 1
        assert width * frame.mm_per_px == pytest.approx(16, abs=1.2)
        assert height * frame.mm_per_px == pytest.approx(16, abs=2.2)  # within a slice's thickness


def test_pixels_beyond_the_scan_are_gray_not_invented():
    data = np.full((20, 20), 5.0, np.float32)
    frame = centered_frame(AXIAL, (1.0, 1.0, 1.0), np.array([0.0, 10.0, 0.0]), 10.0, 50)
    picture = sample_plane(data, frame)
    assert np.isnan(picture[:, -20:]).all()  # beyond x = 0, at the patient's left
    assert np.isfinite(picture[:, :20]).all()
    gray = to_gray(picture, 0.0, 5.0)
    assert set(np.unique(gray)) == {38, 255}


def test_gray_window():
    picture = np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]])
    assert to_gray(picture, 0.0, 1.0).tolist() == [[0, 0, 128, 255, 255]]
    assert to_gray(np.zeros((1, 1)), 0.0, 0.0).tolist() == [[0]]


def test_data_uri_is_a_readable_jpeg():
    gray = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (30, 1))
    np.testing.assert_allclose(decode(data_uri(gray)).astype(int), gray, atol=8)


def test_windows_ignore_what_lies_outside_the_brain():
    rng = np.random.default_rng(0)
    swi, mask = rng.uniform(100, 200, (20, 20, 20)), np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True
    swi[~mask] = 1e5
    windows = choose_windows(swi, np.where(mask, 0.3, 3.0), mask)
    assert 100 <= windows.swi[0] < 105
    assert 195 < windows.swi[1] <= 200
    assert windows.phase == pytest.approx((-0.3, 0.3))


def test_mask_bounds():
    mask = np.zeros((5, 6, 7), bool)
    assert mask_bounds(mask) == ((0, 5), (0, 6), (0, 7))
    mask[1:3, 2, 4:7] = True
    assert mask_bounds(mask) == ((1, 3), (2, 3), (4, 7))


def path_points(d: str) -> np.ndarray:
    return np.array([[float(v) for v in p.split()] for p in d.strip("MZ").split("L")])


def test_outline_follows_a_disc():
    y, x = np.indices((80, 100)) + 0.5
    points = path_points(outline((x - 60) ** 2 + (y - 30) ** 2 < 20**2))
    np.testing.assert_allclose(np.hypot(points[:, 0] - 60, points[:, 1] - 30), 20, atol=0.8)
    assert outline(np.zeros((9, 9), bool)) == ""


def test_the_lesion_is_in_the_middle_of_its_thumbnails_and_not_covered(content, make_row, affine):
    index = np.array([40, 50, 12])
    center = affine[:3, :3] @ index + affine[:3, 3]
    swi = np.full(content.swi.shape, 500.0, np.float32)
    swi[tuple(index)] = 0.0
    row = make_row(x_mm=center[0], y_mm=center[1], z_mm=center[2], diameter_mm=3.0)
    subject = dataclasses.replace(content, swi=Volume.from_array(swi, affine), phase=None)
    pictures = ThumbnailMaker(subject, Windows(swi=(-1.0, 500.0), phase=(-1.0, 1.0))).full(row)
    assert pictures.phase == ()
    for picture in pictures.swi:
        assert (picture.width, picture.height) == (160, 160)
        arms = picture.shapes[0].d
        # every arm starts at least the lesion's radius from the center: 1.5 mm of 20 mm are 12 of 160 pixels
        gap = float(arms.split("M")[2].split("H")[0].split()[0]) - 80
        assert gap > 12
        dark = 255.0 - decode(picture.uri)
        np.testing.assert_allclose(spot_position(np.where(dark > 60, dark, 0)), (80, 80), atol=1.5)


def test_overview_pictures_place_left_detections_on_the_right(content, make_row):
    left = make_row(id=9, x_mm=-30.0, y_mm=0.0, z_mm=0.0, side="left")
    windows = choose_windows(content.swi.data, None, content.brain_mask)
    axial, coronal, sagittal = glass_brain(content, [left])
    for picture in (axial, coronal):
        label = next(t for t in picture.labels if t.text == "9")
        assert label.x > picture.width / 2
        assert (
            next(t for t in picture.labels if t.text == "L").x
            > next(t for t in picture.labels if t.text == "R").x
        )
    assert next(t for t in sagittal.labels if t.text == "A").x < sagittal.width / 2
    ringed = [p for p in slabs(content, [left], windows) if any("ring" in s.style for s in p.shapes)]
    assert len(ringed) == 1
    assert next(t for t in ringed[0].labels if t.text == "9").x > ringed[0].width / 2


def test_slabs_take_the_minimum_within_the_brain_only(content, affine):
    swi = np.full(content.swi.shape, 500.0, np.float32)
    swi[~content.brain_mask] = -1000.0  # air must not win
    swi[30, 40, 12] = 0.0
    subject = dataclasses.replace(content, swi=Volume.from_array(swi, affine))
    windows = Windows(swi=(0.0, 500.0), phase=(-1.0, 1.0))
    pictures = slabs(subject, [], windows)
    dark = []
    for picture in pictures:
        gray = decode(picture.uri)
        middle = gray[picture.height // 3 : -picture.height // 3, picture.width // 3 : -picture.width // 3]
        dark.append((middle < 128).any())
    assert sum(dark) == 1  # one slab holds the dark voxel; no slab shows the air


def test_quality_mosaic_shows_mask_and_regions(content):
    windows = choose_windows(content.swi.data, None, content.brain_mask)
    pictures = quality_mosaic(content, windows)
    assert len(pictures) == 9
    for picture in pictures:
        assert any(s.style == "brain-outline" and s.d for s in picture.shapes)
        # frontal lies before occipital: higher in an axial picture
        frontal = next(path_points(s.d) for s in picture.shapes if s.style == "region r-frontal")
        occipital = next(path_points(s.d) for s in picture.shapes if s.style == "region r-occipital")
        assert frontal[:, 1].mean() < occipital[:, 1].mean()
    assert len(quality_mosaic(dataclasses.replace(content, region_code=None), windows)) == 9


@pytest.mark.parametrize("diameter_mm", [0.5, 4.0, 10.0])
def test_the_marker_leaves_room_for_thick_slices_and_stays_in_the_picture(content, make_row, diameter_mm):
    # Slices of 5 mm stretch a lesion upwards, so the vertical gap of the coronal picture is wider.
    row = make_row(diameter_mm=diameter_mm)
    windows = Windows(swi=(0.0, 500.0), phase=(-1.0, 1.0))
    axial, coronal, _ = ThumbnailMaker(content, windows).full(row).swi

    def gaps(picture):
        moves = picture.shapes[0].d.split("M")
        right = float(moves[2].split()[0]) - picture.width / 2
        below = float(moves[4].split("V")[0].split()[1]) - picture.height / 2
        return right / 8, below / 8  # 8 pixels a millimeter

    assert gaps(axial)[0] == pytest.approx(gaps(axial)[1], abs=0.02)
    assert diameter_mm / 2 + 2.0 < gaps(axial)[0] < 10.0
    assert gaps(axial)[0] < gaps(coronal)[1] < 10.0
