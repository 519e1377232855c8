"""Region inference: grids against SciPy, cleaning and trust on drawn heads, and views that are too small."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, RegionMap, Side, region_of, side_of
from cmb_jax.detector.network import params_of
from cmb_jax.errors import UserError
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import Volume
from cmb_jax.io.weights import save_weights
from cmb_jax.regions import predict as inference
from cmb_jax.regions.grid import GRID_MM, GRID_SHAPE
from cmb_jax.regions.network import RegionNet
from cmb_jax.regions.predict import (
    BUNDLED_WEIGHTS,
    LEAST_MARGIN,
    TURNS,
    brain_mask_on,
    clean_labels,
    doubt_messages,
    intensity_mask,
    largest_component,
    predict_regions,
    region_code_on,
    split_sides,
    trust_messages,
)

MIDDLE = (np.array(GRID_SHAPE) - 1) / 2


def distance(radii_mm, center_mm=(0, 0, 0)):
    """Normalized squared distance from a center (z, y, x) of the grid, 1 on the ellipsoid's surface."""
    index = np.meshgrid(*(np.arange(n) for n in GRID_SHAPE), indexing="ij", sparse=True)
    return sum(
        (((i - m) * GRID_MM - c) / r) ** 2
        for i, m, c, r in zip(index, MIDDLE, center_mm, radii_mm, strict=True)
    )


@pytest.fixture
def head():
    """(region, side logit, view): an ellipsoid of 1.4 litres with all three zones."""
    region = np.where(distance((66, 82, 66)) < 1, Region.FRONTAL, Region.OUTSIDE)
    region = np.where(distance((25, 30, 30)) < 1, Region.THALAMUS, region)
    region = np.where(distance((30, 35, 45), (-42, -35, 0)) < 1, Region.CEREBELLUM, region)
    side_logit = np.broadcast_to(np.arange(GRID_SHAPE[2]) - MIDDLE[2], GRID_SHAPE)
    return region, side_logit, np.ones(GRID_SHAPE, bool)


def cleaned(head):
    region, side_logit, view = head
    return (*clean_labels(region, region, side_logit, view), view)


def test_a_good_map_is_trusted(head):
    region, side, view = cleaned(head)
    np.testing.assert_array_equal(region, head[0])
    assert trust_messages(region, side, view) == ()


def test_islands_and_holes_go(head):
    region, side_logit, view = head
    dirty = region.copy()
    dirty[2:6, 2:6, 2:6] = Region.TEMPORAL
    dirty[48, 56, 40:43] = Region.OUTSIDE
    inner = np.full(GRID_SHAPE, Region.INSULA)
    got, _ = clean_labels(dirty, inner, side_logit, view)
    assert (got[2:6, 2:6, 2:6] == Region.OUTSIDE).all()
    assert (got[48, 56, 40:43] == Region.INSULA).all()
    same = np.ones(GRID_SHAPE, bool)
    same[2:6, 2:6, 2:6] = same[48, 56, 40:43] = False
    np.testing.assert_array_equal(got[same], region[same])


def test_sides_are_two_connected_halves(head, rng):
    region, side_logit, _ = head
    brain = region != Region.OUTSIDE
    noisy = np.sign(side_logit) * 2 + rng.normal(scale=3, size=GRID_SHAPE)
    noisy[40:50, 40:50, 20:28] = 8.0  # an island of "right" on the left
    side = split_sides(noisy, brain)
    for value in (Side.LEFT, Side.RIGHT):
        assert ndimage.label(side == value)[1] == 1
    np.testing.assert_array_equal(side > 0, brain)
    want = np.where(side_logit > 0, Side.RIGHT, Side.LEFT)
    assert (side == want)[brain].mean() > 0.98


def test_largest_component():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, :3] = mask[3:5, 3:5, 3:5] = True
    assert largest_component(mask).sum() == 8
    assert not largest_component(np.zeros((2, 2, 2), bool)).any()


@pytest.mark.parametrize(
    ("face", "cut"),
    [("top", np.s_[60:]), ("bottom", np.s_[:30]), ("left", np.s_[:, :, :30]), ("front", np.s_[:, 80:])],
)
def test_a_cut_brain_is_named(head, face, cut):
    region, side_logit, view = head
    view = view.copy()
    view[cut] = False
    region, side = clean_labels(region, region, side_logit, view)
    assert any(f"at the {face}" in message for message in trust_messages(region, side, view))


def test_implausible_maps_are_named(head):
    region, side, view = cleaned(head)
    empty = np.zeros_like(region)
    assert any("0 cm3" in message for message in trust_messages(empty, empty, view))
    no_cerebellum = np.where(region == Region.CEREBELLUM, Region.FRONTAL, region)
    assert any("infratentorial" in message for message in trust_messages(no_cerebellum, side, view))
    one_sided = np.where(side > 0, Side.RIGHT, side)
    assert any("100 %" in message for message in trust_messages(region, one_sided, view))
    swapped = np.where(side > 0, 3 - side, 0)
    assert any("wrong sides" in message for message in trust_messages(region, swapped, view))
    whole = np.full(GRID_SHAPE, Region.FRONTAL)
    assert any("plausible" in message for message in trust_messages(whole, side, view))


def test_doubts_are_named():
    surer = dict.fromkeys(TURNS, 0.5)
    assert doubt_messages(0.6, surer) == ()
    (message,) = doubt_messages(0.6, surer | {"upside down": 0.7, "back to front": 0.65})
    assert "upside down" in message
    for confidence in (0.6 + 0.9 * LEAST_MARGIN, 0.6 - 0.9 * LEAST_MARGIN):
        (message,) = doubt_messages(confidence, surer | {"back to front": 0.6})
        assert "does not look like a head" in message


def oblique(spacing, degrees=(10, -6, 4)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = [-30.0, -45.0, -20.0]
    return affine


@pytest.mark.parametrize("turned", [False, True])
def test_codes_on_another_grid_match_scipy(rng, turned):
    code = rng.integers(0, 48, (20, 22, 24)).astype(np.uint8)
    region_map = RegionMap(code=code, affine=oblique((2.0, 2.0, 2.0)))
    affine = oblique((0.9, 1.1, 2.9), (4, 0, 20) if turned else (10, -6, 4))
    affine[:3, 3] += [0.13, 0.07, 0.11]
    volume = Volume.from_array(np.ones((50, 40, 20)), affine)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(region_map.affine)
    nearest = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(int)
    inside = np.all((nearest >= 0) & (nearest < code.shape), axis=-1)
    want = np.where(inside, code[tuple(np.moveaxis(np.where(inside[..., None], nearest, 0), -1, 0))], 0)
    got = region_code_on(volume, region_map)
    assert got.dtype == np.uint8
    assert 0.05 < inside.mean() < 1
    assert (got == want).mean() > 0.999  # points halfway between two voxels may go either way
    np.testing.assert_array_equal(brain_mask_on(volume, region_map), region_of(got) > 0)


def test_intensity_mask_finds_tissue_on_air(rng):
    tissue = distance((50, 60, 50)) < 1
    image = np.where(tissue, 100.0, 4.0) + rng.normal(scale=5, size=GRID_SHAPE)
    got = intensity_mask(np.abs(image), np.ones(GRID_SHAPE, bool))
    assert 2 * (got & tissue).sum() / (got.sum() + tissue.sum()) > 0.97


def test_intensity_mask_without_air_is_nearly_everything(rng):
    view = np.zeros(GRID_SHAPE, bool)
    view[40:50, 50:60, 40:50] = True
    image = np.where(view, 100 + rng.normal(scale=8, size=GRID_SHAPE), 0)
    image[44:46, 50:60, 44] = 20.0  # a vein
    got = intensity_mask(image, view)
    assert not got[~view].any()
    assert got[view].mean() > 0.95


def test_a_small_field_of_view_is_not_trusted(rng):
    data = 50 + 5 * rng.random((40, 40, 20))
    volume = Volume.from_array(data, oblique((0.469, 0.469, 1.0)))
    region_map = predict_regions(volume, weights=Path("never-read.safetensors"))
    assert not region_map.trusted
    assert "19 x 19 x 20 mm" in region_map.messages[0]
    assert brain_mask_on(volume, region_map).mean() > 0.9
    assert (side_of(region_map.code) == Side.NONE).all()


def test_an_empty_volume_is_not_trusted():
    volume = Volume.from_array(np.zeros((40, 40, 20)), np.diag([1.0, 1.0, 1.0, 1.0]))
    region_map = predict_regions(volume)
    assert not region_map.trusted
    assert not region_map.code.any()
    assert any("no tissue" in message for message in region_map.messages)


def test_weights_that_do_not_fit(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"a": np.zeros(3)}, {})
    volume = Volume.from_array(np.ones((100, 100, 40)), np.diag([2.0, 2.0, 4.0, 1.0]))
    with pytest.raises(UserError, match="another configuration"):
        predict_regions(volume, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no such weights file"):
        predict_regions(volume, tmp_path / "none.safetensors")


def test_untrained_weights_give_an_untrusted_map(tmp_path, rng):
    save_weights(tmp_path / "w.safetensors", params_of(RegionNet(nnx.Rngs(0))), {})
    volume = Volume.from_array(rng.random((96, 112, 60)), oblique((2.0, 2.0, 3.0)))
    region_map = predict_regions(volume, tmp_path / "w.safetensors")
    assert not region_map.trusted
    assert region_map.code.shape == GRID_SHAPE[::-1]


def test_the_mirror_image_gives_the_mirrored_map():
    """Left and right carry no other mark than the mirror, whatever the weights."""
    params = params_of(RegionNet(nnx.Rngs(1)))
    image = np.random.default_rng(2).random(GRID_SHAPE).astype(np.float32)
    region, inner, side = inference._labeler()(image, params)
    flipped = inference._labeler()(image[:, :, ::-1].copy(), params)
    # The percentile of `normalize` is taken on a lattice that the mirror shifts: not exactly equal.
    agree = np.asarray(region) == np.asarray(flipped[0])[:, :, ::-1]
    assert agree.mean() > 0.99
    np.testing.assert_allclose(side, -np.asarray(flipped[2])[:, :, ::-1], atol=0.02)
    assert int(inner.min()) > 0


@pytest.mark.assets
def test_bundled_weights_label_a_drawn_head():
    from cmb_jax.anatomy.assets import load_pack
    from cmb_jax.regions.samples import build_source, make_sample

    source = build_source(load_pack())
    sample = jax.jit(make_sample)(source, jax.random.key(987_654))
    data = np.asarray(sample.image).transpose(2, 1, 0)
    volume = Volume.from_array(data, np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0]))
    got = region_of(region_code_on(volume, predict_regions(volume)))
    want = np.asarray(sample.region).transpose(2, 1, 0)
    zone_got, zone_want = ZONE_OF_REGION[got], ZONE_OF_REGION[want]
    for zone in (1, 2, 3):
        overlap = 2 * ((zone_got == zone) & (zone_want == zone)).sum()
        assert overlap / ((zone_got == zone).sum() + (zone_want == zone).sum()) > 0.45
    assert jnp.isfinite(sample.image).all()


def no_head(kind, shape=(110, 120, 80), spacing=(1.8, 1.9, 2.0)):
    """A volume (X, Y, Z) as phantoms for quality control, or other parts of the body, are."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    speckle = 1 + 4 * ndimage.gaussian_filter(rng.normal(size=shape), 4)
    signal = {
        "sphere": x**2 + y**2 + z**2 < 75**2,
        "shell": (x / 65) ** 2 + (y / 85) ** 2 + (z / 65) ** 2 < 1,
        "bottle": np.hypot(x, y) < 60,
        "knee": speckle * (0.5 * (np.hypot(x, y) < 65) + 0.4 * (np.hypot(x - 20, y) < 25)),
        "noise": np.zeros(shape),
    }[kind]
    image = 1000 * signal + 10 * np.abs(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    return Volume.from_array(image.astype(np.float32), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize("kind", ["sphere", "shell", "bottle", "knee", "noise"])
def test_bundled_weights_do_not_take_anything_for_a_head(kind):
    region_map = predict_regions(no_head(kind))
    assert not region_map.trusted
    assert any("look like a head" in line or "seems to be" in line for line in region_map.messages)


def test_bundled_weights_know_the_demo_and_notice_when_it_is_turned():
    volume = read_volume(next((BUNDLED_WEIGHTS.parents[1] / "demo").rglob("*_swi.nii.gz")))
    assert predict_regions(volume).trusted
    turned = dataclasses.replace(volume, data=volume.data[:, :, ::-1])
    assert any("upside down" in line for line in predict_regions(turned).messages)


def test_the_rounding_of_an_affine_does_not_decide_the_grid(monkeypatch, rng):
    """The shift to the brain's middle is often 3 mm to the last bit, as (2, 1, 2) mm is here."""
    region = np.zeros(GRID_SHAPE, np.int32)
    region[20:78, 20:93, 20:78] = Region.FRONTAL
    full = np.ones(GRID_SHAPE, bool)
    monkeypatch.setattr(inference, "_label", lambda *_: (region, np.full(GRID_SHAPE, Side.LEFT), full))
    tilted = Rotation.from_euler("x", 8, degrees=True).as_matrix() @ np.diag([2.2, 2.1, 2.5])
    data = np.pad(np.ones((70, 80, 64), np.float32), 2)
    grids = []
    for _ in range(12):
        affine = np.eye(4)
        affine[:3, :3] = tilted + rng.normal(scale=1e-7, size=(3, 3))
        grids.append(predict_regions(Volume.from_array(data, affine)).affine)
    for grid in grids[1:]:
        np.testing.assert_allclose(grid, grids[0], atol=1e-3)
