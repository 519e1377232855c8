"""The effect of an implanted body on complex data, against the formulas for a sphere."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.implant.effect import Implants, effect_of_groups
from cmb_jax.implant.lesions import EDGE_MM, GAP_MM, place, random_lesions
from cmb_jax.implant.truth import noise_sd, truth_labels
from cmb_jax.phantom.field import phase_per_ppm as turns
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.types import MimicKind

OBLIQUE = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
SHAPE, SPACING, RADIUS, CHI = (60, 56, 52), (0.6, 0.6, 0.6), 2.0, 0.1
CENTER = np.array([18.13, 16.6, 15.47])


def ball(center=CENTER, radius=RADIUS, chi=CHI, r2_star=0.0, drop=0.0, length=0.0, direction=(0, 0, 1)):
    def column(value):
        return jnp.asarray([value], jnp.float32)

    return Implants(
        center_mm=column(center),
        direction=column(direction),
        length_mm=column(length),
        radius_mm=column(radius),
        chi_ppm=column(chi),
        r2_star=column(r2_star),
        signal_drop=column(drop),
    )


def effect(body, te_ms=(20.0,), b0_t=3.0, sign=1, b=(0, 0, 1.0), shape=SHAPE, spacing=SPACING):
    return effect_of_groups([body], te_ms, b0_t, sign, b, shape, spacing)


def vectors(shape=SHAPE, spacing=SPACING, center=CENTER):
    axes = [np.arange(n) * h - c for n, h, c in zip(shape, spacing, center, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def sphere_phase(points, b, te_ms=20.0, b0_t=3.0, radius=RADIUS, chi=CHI):
    r = np.linalg.norm(points, axis=-1)
    field = chi / 3 * (radius / r) ** 3 * (3 * (points @ b / r) ** 2 - 1)
    return np.where(r > radius, 2 * np.pi * 42.577 * b0_t * te_ms / 1000 * field, 0.0), r


def turned(a, b):
    return np.abs(np.angle(np.exp(1j * (np.asarray(a, np.float64) - b))))


@pytest.mark.parametrize("b", [np.array([0, 0, 1.0]), OBLIQUE], ids=["along z", "oblique"])
@pytest.mark.parametrize(
    ("spacing", "shape", "limit"), [(SPACING, SHAPE, 0.01), ((0.5, 0.5, 2.0), (72, 66, 16), 0.04)]
)  # a slice as thick as the radius: its mean is not the value at its center
def test_outside_a_sphere_the_phase_is_the_dipole(b, spacing, shape, limit):
    gain, shift = effect(ball(), b=b, spacing=spacing, shape=shape)
    expected, r = sphere_phase(vectors(shape, spacing), b)
    peak = turns(20.0, 3.0) * CHI * 2 / 3
    error = turned(shift[0], expected) / peak
    assert error[r >= 1.5 * RADIUS].max() < limit
    full_scale = 2 * np.pi
    assert error[r >= 4 * RADIUS].max() * peak < 1e-4 * full_scale
    nothing = peak * (RADIUS / r) ** 3 < 1e-4 * full_scale
    assert nothing.any()
    assert np.abs(shift[0][nothing]).max() < 1e-4 * full_scale
    assert np.abs(gain[0][r >= 2 * RADIUS] - 1).max() < 3e-3
    assert np.all(gain[0][r >= 7 * RADIUS] == 1)


def test_there_is_no_edge_where_a_patch_ends():
    """A strong lesion: the dipole at voxel centers everywhere beyond the near field, no step between."""
    _, shift = effect(ball(chi=1.5), b=OBLIQUE)
    expected, r = sphere_phase(vectors(), OBLIQUE, chi=1.5)
    for low in np.arange(3.0, 8.0, 0.5):
        shell = (r >= low * RADIUS) & (r < (low + 0.5) * RADIUS)
        if shell.any():
            assert turned(shift[0], expected)[shell].max() < 0.03 * turns(20.0, 3.0) * 0.5 * (1 / low) ** 3


def test_matches_the_mean_over_points_of_the_voxel():
    """Near the surface spins dephase: the mean of 16^3 points per voxel gives signal and phase."""
    spacing, center, shape, chi = (1.0, 1.0, 2.0), np.array([12.2, 11.7, 12.5]), (24, 24, 13), 0.8
    body = ball(center, 2.5, chi, r2_star=80.0, drop=0.5)
    gain, shift = effect(body, b=OBLIQUE, spacing=spacing, shape=shape)
    total = np.zeros(shape, complex)
    steps = (np.arange(16) + 0.5) / 16 - 0.5
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        points = vectors(shape, spacing, center - offset * np.array(spacing))
        phase, r = sphere_phase(points, OBLIQUE, radius=2.5, chi=chi)
        total += np.where(r <= 2.5, 0.5 * np.exp(-0.02 * 80.0), 1.0) * np.exp(1j * phase)
    difference = np.abs(gain[0] * np.exp(1j * shift[0]) - total / 16**3)
    r = np.linalg.norm(vectors(shape, spacing, center), axis=-1)
    assert np.abs(total / 16**3)[r < 4].min() < 0.3  # there is something to get wrong
    assert difference.max() < 0.15
    assert difference[r > 4.5].max() < 0.01
    assert np.sqrt(np.mean(difference[r < 6] ** 2)) < 0.03


def test_phase_is_linear_in_echo_time_and_field_strength():
    _, both = effect(ball(), te_ms=(10.0, 20.0))
    _, high = effect(ball(), te_ms=(10.0,), b0_t=6.0)
    _, r = sphere_phase(vectors(), OBLIQUE)
    outside = r > 2 * RADIUS
    np.testing.assert_allclose(both[1][outside], 2 * both[0][outside], rtol=0.01, atol=1e-4)
    np.testing.assert_allclose(high[0][outside], both[1][outside], rtol=0.01, atol=1e-4)


def test_opposite_susceptibility_and_opposite_sign_of_the_data():
    gain, shift = effect(ball(r2_star=50.0), b=OBLIQUE)
    for body, sign in ((ball(r2_star=50.0, chi=-CHI), 1), (ball(r2_star=50.0), -1)):
        other, turned_round = effect(body, b=OBLIQUE, sign=sign)
        np.testing.assert_allclose(turned_round, -shift, atol=1e-4)
        np.testing.assert_allclose(other, gain, atol=1e-4)
    pole = tuple(np.rint((CENTER + np.array([0, 0, 1.6 * RADIUS])) / SPACING).astype(int))
    assert effect(ball())[1][0][pole] > 0  # paramagnetic: positive phase at the poles
    assert effect(ball(chi=-CHI))[1][0][pole] < 0


def test_inside_the_signal_falls_by_r2_star_and_drop():
    gain, _ = effect(ball(chi=1e-6, r2_star=100.0, drop=0.75))
    r = np.linalg.norm(vectors(), axis=-1)
    np.testing.assert_allclose(gain[0][r < RADIUS - 1.2], 0.25 * np.exp(-0.02 * 100.0), rtol=0.03)
    lost = np.sum(1 - effect(ball(chi=1e-6, drop=0.4))[0]) * np.prod(SPACING)
    assert lost == pytest.approx(0.4 * 4 / 3 * np.pi * RADIUS**3, rel=0.01)


def test_a_tube_along_and_across_the_field():
    """Long against its radius: chi / 3 inside along the field, -chi / 6 across it."""
    for direction, inside in (((0, 0, 1), 1 / 3), ((1, 0, 0), -1 / 6)):
        body = ball(radius=1.0, length=12.0, chi=0.3, direction=direction)
        _, shift = effect(body, te_ms=(5.0,), spacing=(0.4, 0.4, 0.4), shape=(90, 84, 78))
        middle = tuple(np.rint(CENTER / 0.4).astype(int))
        assert shift[0][middle] == pytest.approx(turns(5.0, 3.0) * 0.3 * inside, rel=0.08)


def test_bodies_at_the_edge_and_several_at_once():
    near = ball(center=np.array([0.0, 0.3, 15.0]))
    gain, shift = effect(near)
    assert np.isfinite(gain).all()
    expected, r = sphere_phase(vectors(center=np.array([0.0, 0.3, 15.0])), np.array([0, 0, 1.0]))
    assert turned(shift[0], expected)[r >= 1.5 * RADIUS].max() < 0.02
    both = [jnp.concatenate(pair) for pair in zip(*map(_columns, (near, ball())), strict=True)]
    names = [f.name for f in dataclasses.fields(Implants)]
    _, together = effect(Implants(**dict(zip(names, both, strict=True))))
    assert turned(together, shift + effect(ball())[1]).max() < 1e-3


def _columns(bodies):
    return [getattr(bodies, f.name) for f in dataclasses.fields(Implants)]


def _placed(seed, count=4, mimics=4, mask=None):
    rng = np.random.default_rng(seed)
    lesions = random_lesions(rng, count, mimics, (1.0, 2.0), 3.0)
    mask = np.pad(np.ones((50, 46, 30), bool), 5) if mask is None else mask
    return place(rng, lesions, lesions.apparent_mm(20.0, 3.0), mask, (0.8, 0.8, 1.0)), mask


def test_places_lie_in_the_mask_and_apart_and_follow_the_seed():
    lesions, mask = _placed(3)
    apparent = lesions.apparent_mm(20.0, 3.0)
    extent = np.maximum(apparent, lesions.length_mm) / 2
    again, other = _placed(3)[0], _placed(4)[0]
    np.testing.assert_array_equal(lesions.center_mm, again.center_mm)
    assert not np.array_equal(lesions.center_mm, other.center_mm)
    apart = np.linalg.norm(lesions.center_mm[:, None] - lesions.center_mm[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (apart >= extent[:, None] + extent[None] + GAP_MM).all()
    assert (lesions.center_mm - extent[:, None] >= EDGE_MM - 0.5).all()
    grid = Grid(mask.shape, (0.8, 0.8, 1.0), (0.0, 0.0, 0.0))
    labels, kinds = truth_labels(lesions, apparent, grid)
    assert mask[(labels > 0) | (kinds > 0)].all()
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert set(np.unique(kinds)) == {0, MimicKind.CALCIFICATION_PARENCHYMAL, MimicKind.MEDULLARY_VEIN}
    for row in range(4):
        middle = np.argwhere(labels == row + 1).mean(axis=0)
        assert np.abs(middle - lesions.center_mm[row] / (0.8, 0.8, 1.0)).max() <= 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"only \d+ of 400 lesions"):
        _placed(0, count=400, mimics=0)
    with pytest.raises(UserError, match="finds no room"):
        _placed(0, mask=np.pad(np.ones((3, 3, 3), bool), 20))


def test_noise_is_measured_beside_structure(rng):
    smooth = 100 + np.add.outer(np.add.outer(np.arange(40.0), np.arange(40.0)), np.arange(20.0))
    noisy = smooth + rng.normal(scale=3.0, size=smooth.shape)
    assert noise_sd(noisy, np.ones(smooth.shape, bool)) == pytest.approx(3.0, rel=0.03)
