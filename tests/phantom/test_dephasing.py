"""The echo about small bodies beside the formula of a ball, summed over many points in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.acquisition import cropped_spectrum
from cmb_jax.phantom.field import (
    Inclusions,
    add_smooth_balls,
    convolve_dipole,
    dephase_about_bodies,
    dephased_echo,
    echo_signal,
    reaches,
)
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.lesions import seen_mm

SPACING = (0.6, 0.6, 0.75)
GRID = Grid.over((19.2, 19.2, 24.0), (32, 32, 32))
TE, B0, R2 = 20.0, 3.0, 100.0
TURN = 2 * np.pi * 42.577 * B0 * TE / 1000  # radians a ppm
ALONG_Z = (0.0, 0.0, 1.0)


def inclusions(center, diameter, chi, r2=R2, drop=0.0):
    return Inclusions(
        jnp.asarray([center], jnp.float32), jnp.full((1, 3), diameter / 2), jnp.array([chi]),
        jnp.array([r2]), jnp.array([drop]), jnp.array([True]),
    )  # fmt: skip


@jax.jit
def echo_of(bodies, b):
    te, b0 = jnp.float32(TE), jnp.float32(B0)
    reach = reaches(bodies, te, b0, GRID)
    chi = add_smooth_balls(jnp.zeros(GRID.shape), bodies, reach, grid=GRID)
    field = convolve_dipole(chi, b, spacing_mm=GRID.spacing_mm, padded=(40, 40, 40))
    echo = dephased_echo(jnp.ones(GRID.shape), jnp.zeros(GRID.shape), field, te, b0)
    return dephase_about_bodies(echo, bodies, reach, te, b0, b, grid=GRID)


def box_mean(center, diameter, chi, at, box, b, step=0.1):
    """Complex signal over tissue of a box (3,) mm about `at`, from the formula of a ball."""
    axes = []
    for p, c, width in zip(at, center, box, strict=True):
        n = max(1, round(width / step))
        axes.append(p - c + ((np.arange(n) + 0.5) / n - 0.5) * width)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    r = np.linalg.norm(points, axis=-1)
    a = diameter / 2
    cosine = points @ np.asarray(b) / r
    field = np.where(r > a, chi / 3 * (a / np.maximum(r, a)) ** 3 * (3 * cosine**2 - 1), 0.0)
    return np.mean(np.where(r > a, 1.0, np.exp(-TE / 1000 * R2)) * np.exp(1j * TURN * field))


@pytest.mark.parametrize(("diameter", "chi"), [(1.0, 0.5), (1.5, 1.0), (2.0, 1.0), (3.0, 1.5)])
def test_signal_of_four_lesions_as_on_a_grid_of_a_tenth_of_a_millimeter(diameter, chi):
    """Three voxels along z are 2.25 mm; at the center, 0.6 and 1.2 mm beside it."""
    bodies = inclusions((0.0, 0.0, 0.0), diameter, chi)
    echo = np.asarray(echo_of(bodies, jnp.array(ALONG_Z)))
    for n in range(3):
        expected = box_mean((0, 0, 0), diameter, chi, (0.6 * n, 0, 0), (0.6, 0.6, 2.25), ALONG_Z)
        assert abs(abs(echo[16 + n, 16, 15:18].mean()) - abs(expected)) < 0.03


@pytest.mark.parametrize("chi", [0.8, -2.0])
def test_off_the_grid_and_in_an_oblique_field(chi):
    """Voxel by voxel, magnitude and phase, near the body and where only its dipole is left."""
    center, b = (0.21, -0.17, 0.3), (0.3, -0.2, np.sqrt(1 - 0.13))
    echo = np.asarray(echo_of(inclusions(center, 1.6, chi), jnp.asarray(b, jnp.float32)))
    for index in np.ndindex(9, 9, 9):
        at = np.array(index) - 4
        place = at * np.array(SPACING)
        expected = box_mean(center, 1.6, chi, place, SPACING, b, step=0.05)
        found = echo[tuple(at + 16)]
        assert abs(found - expected) < (0.05 if np.linalg.norm(place) < 2.0 else 0.03)


@pytest.mark.parametrize(("diameter", "chi", "r2", "drop"), [(5.0, 1.5, R2, 0.0), (4.0, -2.0, 150.0, 0.75)])
def test_large_lesions_are_voids_without_rings(diameter, chi, r2, drop):
    """Means over 2 mm, as of slices: outward in plane the magnitude rises, in rows and diagonally."""
    echo = np.asarray(echo_of(inclusions((0.0, 0.0, 0.0), diameter, chi, r2, drop), jnp.array(ALONG_Z)))
    slab = np.abs(echo[:, :, 15:18].mean(axis=2))
    steps = np.arange(15)
    for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1)):
        line = slab[16 + x * steps, 16 + y * steps]
        assert line[0] < 0.2
        assert line[-1] > 0.9
        assert (np.maximum.accumulate(line) - line).max() < 0.06
    image = np.abs(np.fft.ifftn(cropped_spectrum(jnp.asarray(echo), (38, 38, 12))))[..., 6]
    core = image[17:22, 17:22]
    assert core.max() < 0.45  # what a cut k-space rings with; no bright middle
    checker = (core * (-1.0) ** np.add.outer(np.arange(5), np.arange(5))).mean()
    assert abs(checker) < 0.05


def test_bodies_beyond_the_grid_and_empty_slots_change_nothing():
    far = inclusions((60.0, 0.0, 0.0), 3.0, 1.0)
    empty = dataclasses.replace(inclusions((0.0, 0.0, 0.0), 3.0, 1.0), valid=jnp.array([False]))
    for bodies in (far, empty):
        np.testing.assert_allclose(np.asarray(echo_of(bodies, jnp.array(ALONG_Z))), 1.0, atol=1e-5)


def test_bodies_are_vmapped_and_reach_over_the_rim():
    """Two subjects at once, a body at the corner of the grid: the same as alone."""
    both = [inclusions((0.1, 0.2, -0.3), 2.0, 1.0), inclusions((9.0, -9.4, 11.4), 2.6, -1.5)]
    b = jnp.array(ALONG_Z)
    together = jax.vmap(lambda bodies: echo_of(bodies, b))(jax.tree.map(lambda *v: jnp.stack(v), *both))
    for one, alone in zip(together, both, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(echo_of(alone, b)), atol=1e-4)


def test_a_linear_phase_leaves_its_sinc_and_a_uniform_field_all():
    """A ramp of d radians per voxel: sinc(d / 2 pi) of the signal, to 0.03 up to half a turn."""
    te, b0 = jnp.float32(TE), jnp.float32(B0)
    one, shape = jnp.ones((8, 6, 5)), (8, 6, 5)
    for d in (0.0, 0.5, 1.5, np.pi):
        field = jnp.asarray(np.arange(6) * d / TURN, jnp.float32)[:, None] * one
        echo = dephased_echo(one, 20.0 * one, field, te, b0)
        point = echo_signal(one, 20.0 * one, field, te, b0)
        ratio = np.asarray(echo / point)[:, 1:-1]
        assert shape == echo.shape
        np.testing.assert_allclose(ratio, np.sinc(d / (2 * np.pi)), atol=0.03)


@pytest.mark.parametrize(
    ("diameter", "chi"),
    [(1.0, 0.5), (1.5, 1.0), (2.0, 1.0), (3.0, 1.5), (5.0, 1.5), (2.2, -2.0), (4.0, -2.0)],
)
def test_apparent_diameter_is_the_width_at_half_depth(diameter, chi):
    """In plane, in slices of 2 mm, to a fifth; the profile is that of the formula, not of the simulator."""
    at = np.arange(0.0, 6.0, 0.1)
    profile = np.array(
        [abs(box_mean((0, 0, 0), diameter, chi, (x, 0, 0), (0.5, 0.5, 2.0), ALONG_Z)) for x in at]
    )
    depth = (1 - profile) / (1 - profile).max()
    last = np.flatnonzero(depth > 0.5)[-1]
    width = 2 * (at[last] + 0.1 * (depth[last] - 0.5) / (depth[last] - depth[last + 1]))
    said = float(seen_mm(jnp.float32(diameter), jnp.float32(TE), jnp.float32(B0), jnp.float32(chi)))
    assert said == pytest.approx(width, rel=0.2)
