"""The paramagnetic sign is read from veins of every direction, or else not claimed."""

import functools

import nibabel as nib
import numpy as np
import pytest

from cmb_jax.scan.phase_sign import decide_phase_sign, field_direction
from cmb_jax.scan.swi import homodyne_phase

SHAPE, SPACING = (72, 72, 48), (0.7, 0.7, 0.7)


def cylinder_field(grid, center, direction, radius, chi, b0):
    """Relative field (ppm) of an infinitely long cylinder, and its inside; the closed formula."""
    away = grid - center
    along = away @ direction
    radial = away - along[..., None] * direction
    distance = np.linalg.norm(radial, axis=-1)
    cos_theta = direction @ b0
    b0_across = b0 - cos_theta * direction
    # sin^2(theta) cos(2 phi), phi from the main field's part across the cylinder
    cosine = (radial @ b0_across) / np.maximum(distance, 1e-9)
    pattern = 2 * cosine**2 - (1 - cos_theta**2)
    inside = distance < radius
    outside_field = chi / 2 * (radius / np.maximum(distance, radius)) ** 2 * pattern
    return np.where(inside, chi / 6 * (3 * cos_theta**2 - 1), outside_field), inside


@functools.cache
def head(seed, chi, b0=(0.0, 0.0, 1.0), veins=25, snr=20.0):
    """Magnitude and phase at 3 T and 20 ms of bright tissue with dark cylinders in every direction."""
    rng = np.random.default_rng(seed)
    grid = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True)], indexing="ij"), -1
    )
    field = 0.02 * np.sin(grid[..., 0] / 25) + 0.001 * grid[..., 1]  # a smooth background, ppm
    magnitude = np.ones(SHAPE)
    for _ in range(veins):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        center = rng.uniform(0.1, 0.9, 3) * SHAPE * SPACING
        shift, inside = cylinder_field(grid, center, direction, rng.uniform(0.5, 1.0), chi, np.array(b0))
        field = field + shift
        magnitude[inside] = 0.5
    signal = magnitude * np.exp(2j * np.pi * 42.577 * 3.0 * 0.020 * field)
    noise = rng.normal(size=(2, *SHAPE)) / snr
    signal = signal + noise[0] + 1j * noise[1]
    return np.abs(signal).astype(np.float32), np.angle(signal).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stored_sign", [1, -1])
def test_veins_decide(seed, stored_sign):
    magnitude, phase = head(seed, chi=0.2)
    decision = decide_phase_sign(stored_sign * phase, magnitude, SPACING)
    assert decision.confident
    assert decision.sign == stored_sign
    assert "blocks" in decision.reason
    assert "\n" not in decision.reason


def test_oblique_slices():
    direction = (0.0, 0.8, 0.6)
    magnitude, phase = head(2, chi=0.2, b0=direction)
    decision = decide_phase_sign(-phase, magnitude, SPACING, direction)
    assert (decision.sign, decision.confident) == (-1, True)


def test_no_claim_without_evidence():
    magnitude, phase = head(3, chi=0.0)  # dark lines, but no susceptibility
    decision = decide_phase_sign(phase, magnitude, SPACING)
    assert not decision.confident
    assert decision.sign == 1


@pytest.mark.parametrize("stored_sign", [1, -1])
@pytest.mark.parametrize("power", [3, 5])
def test_the_mask_of_an_swi_decides_without_any_vein(stored_sign, power):
    magnitude, phase = head(3, chi=0.0)
    filtered = np.asarray(homodyne_phase(phase, magnitude, SPACING))
    swi = magnitude * np.clip(1 - filtered / np.pi, 0, 1) ** power
    decision = decide_phase_sign(stored_sign * phase, swi, SPACING)
    assert (decision.sign, decision.confident) == (stored_sign, True)
    assert "mask" in decision.reason


def test_slices_in_which_the_sign_is_turned_over_are_noticed(monkeypatch):
    monkeypatch.setattr("cmb_jax.scan.phase_sign._MIN_VOXELS", 500)  # the slices are small
    magnitude, phase = head(3, chi=0.0)
    swi = magnitude * np.clip(1 - np.asarray(homodyne_phase(phase, magnitude, SPACING)) / np.pi, 0, 1) ** 4
    assert decide_phase_sign(phase, swi, SPACING).confident
    phase = phase.copy()
    phase[:, :, 20:24] *= -1
    decision = decide_phase_sign(phase, swi, SPACING)
    assert not decision.confident
    assert "some slices" in decision.reason


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_as_phase_decides_nothing(seed):
    magnitude, phase = head(4, chi=0.2)
    swi = magnitude * np.clip(1 - np.asarray(homodyne_phase(phase, magnitude, SPACING)) / np.pi, 0, 1) ** 4
    noise = np.random.default_rng(seed).uniform(-np.pi, np.pi, SHAPE).astype(np.float32)
    for image in (magnitude, swi):
        assert not decide_phase_sign(noise, image, SPACING).confident


def test_too_little_tissue():
    rng = np.random.default_rng(5)
    magnitude = np.zeros((16, 16, 16), np.float32)
    magnitude[7:9, 7:9, 7:9] = 1
    decision = decide_phase_sign(rng.uniform(-3, 3, magnitude.shape), magnitude, (1.0, 1.0, 1.0))
    assert not decision.confident


def test_field_direction_of_a_turned_slab():
    turn = nib.eulerangles.euler2mat(x=0.4)
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.5, 0.5, 2.0)
    # B0 lies along world z; in array axes that is the transposed rotation's z column
    np.testing.assert_allclose(field_direction(affine), turn.T @ [0, 0, 1], atol=1e-12)
