"""What is not an image of a head, or not the image it is called, is refused by its values and its header."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmb_jax.errors import NotAnalysableError
from cmb_jax.io.volume import Volume
from cmb_jax.scan.judge import (
    Judgement,
    coherence,
    judge_brain,
    judge_fluid,
    judge_grid,
    judge_intensity,
    judge_name,
    judge_phase,
)
from cmb_jax.scan.phase_range import PhaseRange, range_of
from tests.scan.heads import AFFINE, SHAPE, head

HEAD = head()


@pytest.fixture(autouse=True)
def real_limits(monkeypatch):
    """Those of the program, which tests with miniature heads do without."""
    monkeypatch.setattr("cmb_jax.scan.judge.NARROWEST_MM", (100.0, 100.0, 40.0))


def stored_phase(form):
    turn = (HEAD.phase + np.pi) / (2 * np.pi)
    return {
        "radians": HEAD.phase,
        "0-4095": np.rint(turn * 4095),
        "uint8": np.rint(turn * 255),
        "0..1": turn,
        "degrees": np.degrees(HEAD.phase),
    }[form].astype(np.float32)


@pytest.mark.parametrize("image", [HEAD.swi, HEAD.magnitude])
@pytest.mark.parametrize("seed", range(3))
def test_scans_pass_at_any_scale_in_any_box(image, seed):
    rng = np.random.default_rng(seed)
    scaled = np.float32(10 ** rng.uniform(-12, 12)) * image
    padded = np.pad(scaled, [tuple(pair) for pair in rng.integers(0, 50, (3, 2))])
    for data in (scaled, padded, scaled[::-1], np.where(HEAD.magnitude > 0.4, scaled, 0)):
        assert judge_intensity(data).reasons == ()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        *((stored_phase(form), "phase") for form in ("radians", "0-4095", "0..1", "degrees")),
        (np.where(HEAD.magnitude > 0.08, stored_phase("0-4095"), 0), "phase"),  # as masks leave it
        ((HEAD.swi - HEAD.swi.mean()) / HEAD.swi.std(), "negative"),  # z-scored
        (np.digitize(HEAD.magnitude, [0.3, 0.9, 1.1]) * (HEAD.magnitude > 0.3) * 1.0, "labels"),
        ((HEAD.magnitude > 0.4) * 7.0, "labels"),
        (ndimage.minimum_filter(HEAD.swi, (1, 1, 4)), "projection"),
        (np.random.default_rng(0).rayleigh(size=SHAPE), "noise"),
    ],
)
def test_other_images_are_told(image, word):
    if word == "labels":
        image = ndimage.median_filter(image, 5)
    (reason,) = judge_intensity(np.asarray(image, np.float32)).reasons
    assert word in reason


def test_phase_that_is_none():
    swi, phase = HEAD.swi, HEAD.phase
    assert judge_phase(phase, phase, swi) == judge_phase(np.degrees(phase), phase, swi)
    assert judge_phase(phase, phase, swi).reasons == judge_phase(phase, phase, swi).warnings == ()
    (same,) = judge_phase(3e-7 * swi, 6 * swi - 3, swi).reasons
    assert "SWI" in same
    labels = np.rint(ndimage.gaussian_filter(HEAD.magnitude, 4))
    assert "labels" in judge_phase(labels, labels, swi).reasons[0]
    noise = np.random.default_rng(2).uniform(-np.pi, np.pi, SHAPE).astype(np.float32)
    (doubt,) = judge_phase(noise, noise, swi).warnings
    assert "noise" in doubt


def test_coherence_bears_a_steep_background_but_not_noise():
    tissue = HEAD.magnitude > 0.5
    ramp = np.angle(np.exp(1j * (HEAD.phase + 1.1 * np.arange(SHAPE[0])[:, None, None])))
    assert coherence(ramp, tissue) > 0.9
    assert coherence(np.random.default_rng(1).uniform(-3, 3, SHAPE), tissue) < 0.2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a, None),
        (lambda a: np.diag([0.001, 0.001, 0.001, 1]) @ a, "voxels"),  # meters
        (lambda a: np.diag([10, 10, 10, 1]) @ a, "voxels"),  # centimeters
        (lambda a: np.diag([1e5, 1e5, 1e5, 1]) @ a, "voxels"),
        (lambda a: a * [0.5, 0.5, 0.5, 1], "large"),
        (lambda a: a * [1.8, 3.0, 1, 1], "large"),  # 2.9 x 4.8 x 3 mm
        (lambda a: a @ (np.eye(4) + 0.2 * np.eye(4, k=1) * [[1], [0], [0], [0]]), "sheared"),
        (lambda a: a * [2.2, 2.2, 0.5, 1], "coarse"),
    ],
)
def test_geometry_that_is_no_head(change, word):
    verdict = judge_grid(HEAD.volume(HEAD.swi, change(AFFINE)))
    if word is None:
        assert verdict.reasons == ()
    else:
        assert any(word in reason for reason in verdict.reasons), verdict


def test_zeros_about_a_head_are_no_part_of_its_size():
    padded = np.pad(HEAD.swi, [(200, 200), (10, 0), (0, 300)])
    assert judge_grid(Volume.from_array(padded, AFFINE)).reasons == ()


def test_thick_slices_are_told_and_large_voxels_refused():
    assert "coarse" in judge_grid(HEAD.volume(HEAD.swi, AFFINE * [1, 1, 1.4, 1])).warnings[0]
    assert "coarse" in judge_grid(HEAD.volume(HEAD.swi, AFFINE * [2.125, 2.125, 1.13, 1])).reasons[0]


def test_cut_outs_will_do_where_no_head_is_needed():
    part = HEAD.volume(HEAD.swi[20:60, 20:60, 5:15])
    assert judge_grid(part).reasons
    assert judge_grid(part, head=False).reasons == ()


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "FLAIR.nii", "ct_head.nii.gz", "x_Chimap.nii.gz"])
def test_another_contrast_is_told_by_its_name(name):
    (reason,) = judge_name(Path("/data/swi") / name).reasons
    assert "rename it" in reason


@pytest.mark.parametrize(
    "name",
    ["image.nii.gz", "sub-CT01_swi.nii.gz", "CT-17_SWI.nii", "ses-T1_part-mag_T2starw.nii.gz", "t10.nii"],
)
def test_names_of_susceptibility_weighted_images_are_not_mistaken(name):
    assert judge_name(Path("/t1w/flair") / name).reasons == ()
    assert judge_name(None).reasons == ()


def of_two_tissues(fluid, white, rim=0.9):
    """A volume of 1 mm voxels with ventricles of one signal and white matter of another, and their masks.

    The masks err by a voxel or two, as region maps do: the rim of the ventricles shows other tissue.
    """
    x, y, z = np.indices((40, 40, 30)) - np.array([20, 20, 15])[:, None, None, None]
    distance = np.sqrt(x**2 + y**2 + z**2)
    data = np.select([distance < 8, distance < 10], [fluid, rim * white], white)
    noise = np.random.default_rng(0).normal(0, 0.02, data.shape)
    return Volume.from_array(np.float32(data + noise), np.eye(4)), distance < 10, distance >= 12


def spoiled_gradient_echo(density, t1_ms, t2s_ms, tr_ms, flip_deg, te_ms):
    """Signal of the steady state (Ernst & Anderson 1966) with the decay at the echo."""
    e1, flip = np.exp(-tr_ms / t1_ms), np.deg2rad(flip_deg)
    return density * np.sin(flip) * (1 - e1) / (1 - e1 * np.cos(flip)) * np.exp(-te_ms / t2s_ms)


@pytest.mark.parametrize("tr_ms", [20, 28, 50, 700])
@pytest.mark.parametrize("flip_deg", [10, 15, 20, 25])
@pytest.mark.parametrize("te_ms", [10, 20, 40])
def test_fluid_of_gradient_echoes_is_not_refused(tr_ms, flip_deg, te_ms):
    fluid = spoiled_gradient_echo(1.0, 4000, 1000, tr_ms, flip_deg, te_ms)
    white = spoiled_gradient_echo(0.7, 850, 50, tr_ms, flip_deg, te_ms)
    assert judge_fluid(*of_two_tissues(fluid / white, 1.0)) == Judgement()


@pytest.mark.parametrize(("fluid", "kind"), [(0.1, "reasons"), (0.2, "reasons"), (0.35, "warnings")])
def test_dark_fluid_is_another_contrast(fluid, kind):
    """R2* maps and FLAIR, magnetization-prepared T1-weighted images: refused; moderate ones: told."""
    found = judge_fluid(*of_two_tissues(fluid, 1.0))
    assert "R2 maps" in getattr(found, kind)[0]
    image, ventricles, white = of_two_tissues(fluid, 1.0)
    assert judge_fluid(image, ventricles, np.zeros_like(white)) == Judgement()
    assert judge_fluid(image, np.zeros_like(ventricles), white) == Judgement()


BRAIN = ndimage.binary_fill_holes(ndimage.gaussian_filter(HEAD.magnitude, 1) > 0.5)
AWAY = ndimage.distance_transform_edt(~BRAIN, sampling=(1.6, 1.6, 3.0))


def with_skull(bone, fat):
    """Bone and fat of some signal around the brain, in layers of 6 mm, and noise."""
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE)
    around = np.select([AWAY < 6, AWAY < 12], [bone, fat], HEAD.magnitude)
    return np.where(BRAIN, HEAD.swi, np.abs(around + noise))


@pytest.mark.parametrize(
    "image",
    [
        HEAD.swi,
        HEAD.magnitude,
        HEAD.swi * BRAIN,
        with_skull(0.1, 3.0),  # as T1-weighting shows fat
        with_skull(0.2, 0.5),
        HEAD.magnitude * np.exp(np.linspace(-1, 1, SHAPE[0]))[:, None, None],
        ndimage.gaussian_filter(HEAD.swi, 1),
    ],
)
def test_brains_of_scans_pass(image):
    assert judge_brain(HEAD.volume(image), BRAIN) == Judgement()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (with_skull(2.5, 0.9), "CT"),
        (with_skull(1.0, 1.0), "CT"),
        (HEAD.swi.max() - HEAD.swi, "inverted"),
        (np.where(BRAIN, np.maximum(1.0 - HEAD.swi, 0.01), 0), "inverted"),
    ],
)
def test_ct_and_inverted_images_are_refused(image, word):
    assert word in judge_brain(HEAD.volume(image), BRAIN).reasons[0]


def test_labels_of_a_part_of_the_brain_refuse_nothing():
    part = BRAIN & (np.arange(SHAPE[0]) < 40)[:, None, None]
    assert judge_brain(HEAD.volume(HEAD.swi), part) == Judgement()


def test_a_mask_that_is_too_small_is_no_ct(monkeypatch):
    monkeypatch.setattr("cmb_jax.scan.judge._LEAST_BRAIN_CM3", 0.0)  # this head is a small one
    shrunk = ndimage.distance_transform_edt(BRAIN, sampling=(1.6, 1.6, 3.0)) > 10.0
    assert judge_brain(HEAD.volume(with_skull(0.1, 1.2)), shrunk).reasons == ()


def test_bright_vessels_are_told():
    image = np.where(BRAIN, np.maximum(2 * ndimage.gaussian_filter(HEAD.swi, 3) - HEAD.swi, 0), 0)
    found = judge_brain(HEAD.volume(image), BRAIN)
    assert found.reasons == ()
    assert "veins should be dark" in found.warnings[0]


def test_refusal_is_one_line():
    with pytest.raises(NotAnalysableError, match="the SWI is not analysable") as error:
        judge_intensity(HEAD.phase).enforce("SWI")
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=25)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6))
def test_any_linear_phase_is_told_by_filling_its_range(low, width):
    turn = (HEAD.phase.astype(np.float64) + np.pi) / (2 * np.pi)
    found = range_of(low + width * turn)
    assert abs(found.low - low) < 0.01 * width
    assert abs(found.high - low - width) < 0.01 * width


@pytest.mark.parametrize("form", ["uint8", "0..1", "degrees"])
def test_units_that_once_were_taken_for_others(form):
    data = stored_phase(form)
    found = range_of(data)
    assert found not in (PhaseRange.ZERO_4095, PhaseRange.ZERO_2PI, PhaseRange.RADIANS)
    assert found.width == pytest.approx({"uint8": 255, "0..1": 1, "degrees": 360}[form], rel=0.01)
