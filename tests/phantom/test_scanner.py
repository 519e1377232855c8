"""Coils, sampling and ranges against explicit coils and explicit k-space in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.acquisition import (
    MAX_COILS,
    Receive,
    ScannerRanges,
    axis_window,
    combine_coils,
    draw_receive,
    draw_scanner,
    draw_sensitivities,
    k_space_window,
    widen_scanner,
    windowed_noise,
)
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.settings import PROTOCOLS
from tests.phantom.scanners import plain_scanner

GRID = Grid.over((192.0, 240.0, 160.0), (24, 30, 20))


def _points(grid):
    axes = [grid.axis_mm(a) for a in range(3)]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3), jnp.float32)


@pytest.mark.parametrize(("length", "share", "partial"), [(32, 1.0, 0.75), (30, 0.8, 1.0), (33, 0.6, 0.8)])
def test_partial_sampling_is_what_zeros_in_k_space_give(rng, length, share, partial):
    image = rng.normal(size=length) + 1j * rng.normal(size=length)
    weights = np.asarray(axis_window(length, jnp.float32(share), jnp.float32(partial), jnp.float32(0.0)))
    spectrum = np.fft.fftshift(np.fft.fft(image))
    order = np.arange(length) - length // 2
    edge = share * length / 2
    measured = (np.abs(order) <= edge + 1e-4) & (order >= edge * (1 - 2 * partial) - 1e-4)
    slow = np.fft.ifft(np.fft.ifftshift(np.where(measured, spectrum, 0)))
    np.testing.assert_allclose(np.fft.ifft(np.fft.fft(image) * weights), slow, atol=1e-6)
    kept = weights.sum() / length
    assert kept == pytest.approx(share * partial, abs=2 / length)


def test_smoothing_leaves_the_middle_and_takes_the_edge():
    for strength in (0.0, 0.5, 1.0):
        weights = np.asarray(axis_window(64, jnp.float32(1.0), jnp.float32(1.0), jnp.float32(strength)))
        assert weights[0] == pytest.approx(1.0)
        assert weights[32] == pytest.approx(1 - strength, abs=1e-6)
        assert (np.diff(weights[:33]) <= 1e-6).all()


def test_a_plain_scanner_measures_all_of_k_space():
    np.testing.assert_array_equal(k_space_window(plain_scanner(), (16, 15, 12)), 1.0)


def test_noise_has_unit_deviation_whatever_is_measured():
    for changes in ({}, {"partial_x": 0.75, "in_plane": 0.6, "smoothing": 0.5}, {"along_slices": 0.5}):
        window = k_space_window(plain_scanner(**changes), (32, 32, 16))
        noise = np.asarray(windowed_noise(jax.random.key(2), window))
        assert noise.real.std() == pytest.approx(1.0, rel=0.04)
        assert noise.imag.std() == pytest.approx(1.0, rel=0.04)
        spectrum = np.abs(np.fft.fftn(noise))
        assert spectrum[np.asarray(window) == 0].max(initial=0.0) < 1e-2


def test_matched_combination_of_a_uniform_object_has_one_phase():
    """Explicit coil images with noise, combined with conjugate sensitivities."""
    points = _points(GRID)
    for coils in (4, 8):
        maps = np.asarray(draw_sensitivities(jax.random.key(coils), jnp.float32(coils), points))
        assert (np.abs(maps).sum(axis=1) > 0).sum() == coils
        total = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
        combined = (np.conj(maps) * maps * np.exp(0.7j)).sum(axis=0) / total
        np.testing.assert_allclose(combined, total * np.exp(0.7j), rtol=1e-4)
        step = np.diff(total.reshape(GRID.shape), axis=0) / total.reshape(GRID.shape)[1:]
        assert np.abs(step).max() < 0.2  # smooth: 8 mm steps


@pytest.mark.parametrize(("squares", "coils"), [(0.0, 6), (1.0, 4), (1.0, 8)])
@pytest.mark.parametrize("level", [0.0, 1.5, 8.0])
def test_magnitudes_are_distributed_as_those_of_explicit_coils(rng, squares, coils, level):
    """Mean and standard deviation of 8000 voxels, signal over noise from 0 up."""
    shape = (20, 20, 20)
    maps = rng.normal(size=coils) + 1j * rng.normal(size=coils)
    maps /= np.linalg.norm(maps)
    noise = rng.normal(size=(coils, 100000)) + 1j * rng.normal(size=(coils, 100000))
    images = level * maps[:, None] + noise
    slow = np.linalg.norm(images, axis=0) if squares else np.abs(np.conj(maps) @ images)

    ones = jnp.ones(shape)
    drawn = windowed_noise(jax.random.key(1), ones)
    receive = Receive(ones, ones, ones.astype(jnp.complex64))
    scanner = plain_scanner(sum_of_squares=squares, coils=coils)
    image = (level * jnp.exp(0.3j) * ones).astype(jnp.complex64)
    fast = np.asarray(combine_coils(image, drawn, receive, ones, scanner)[0])
    assert fast.mean() == pytest.approx(slow.mean(), rel=0.02)
    assert fast.std() == pytest.approx(slow.std(), rel=0.04)


def test_phase_of_the_plain_sum_is_that_of_summed_coils(rng):
    """Angle and noise of the phase, where coils partly cancel."""
    maps = np.exp(1j * np.array([0.0, 0.9, 2.0, 2.9]))
    level = 30.0
    noise = rng.normal(size=(4, 50000)) + 1j * rng.normal(size=(4, 50000))
    slow = np.angle((level * maps[:, None] / 2 + noise).sum(axis=0))  # root sum of squares: level
    shape = (20, 20, 20)
    ones = jnp.ones(shape)
    plain = (maps / 2).sum() / 2  # over the root of the number of coils
    receive = Receive(ones, ones, jnp.full(shape, plain, jnp.complex64))
    drawn = windowed_noise(jax.random.key(1), ones)
    fast = combine_coils(level * ones.astype(jnp.complex64), drawn, receive, ones, plain_scanner(coils=4))[1]
    assert np.asarray(fast).mean() == pytest.approx(slow.mean(), abs=2e-3)
    assert np.asarray(fast).std() == pytest.approx(slow.std(), rel=0.04)


def test_noise_map_is_the_deviation_over_seeds():
    """Measured over 200 draws, with acceleration 3; it peaks in the middle at 1 + (3 - 1)^2 / 4 = 2."""
    receive = draw_receive(jax.random.key(3), plain_scanner(coils=6, acceleration=3.0, correction=0.0), GRID)
    noise = np.asarray(receive.noise)
    assert noise.max() == pytest.approx(2.0, rel=0.03)
    middle = np.unravel_index(noise.argmax(), noise.shape)
    assert np.abs(np.array(middle) - np.array(GRID.shape) / 2).max() < 6
    window = jnp.ones(GRID.shape)

    @jax.vmap
    def run(key):
        image = jnp.full(GRID.shape, 50.0, jnp.complex64)
        return combine_coils(image, windowed_noise(key, window), receive, receive.noise, plain_scanner())[0]

    measured = np.asarray(run(jax.random.split(jax.random.key(4), 200))).std(axis=0)
    assert np.corrcoef(measured.ravel(), noise.ravel())[0, 1] > 0.9
    assert np.mean(measured / noise) == pytest.approx(1.0, abs=0.02)


def test_intensity_correction_flattens_the_profile():
    off, on = (
        np.asarray(draw_receive(jax.random.key(3), plain_scanner(coils=8, correction=c), GRID).gain)
        for c in (0.0, 1.0)
    )
    np.testing.assert_allclose(on, 1.0, atol=1e-5)
    edge, middle = off[3, 15, 10], off[12, 15, 10]
    assert edge > 1.1 * middle  # array coils: brighter near the skull


def _winding(phase):
    """Turns of a phase (X, Y) around each cell of four pixels."""
    ring = [phase[:-1, :-1], phase[1:, :-1], phase[1:, 1:], phase[:-1, 1:], phase[:-1, :-1]]
    steps = [np.angle(np.exp(1j * (b - a))) for a, b in itertools.pairwise(ring)]
    return np.rint(sum(steps) / (2 * np.pi))


def test_only_the_plain_sum_leaves_open_ended_fringe_lines():
    poles = {0.0: 0, 1.0: 0}
    for seed in range(6):
        for unmatched in poles:
            scanner = plain_scanner(coils=8, unmatched_phase=unmatched)
            phase = np.angle(draw_receive(jax.random.key(seed), scanner, GRID).phase)
            poles[unmatched] += sum(int(np.abs(_winding(p)).sum()) for p in np.moveaxis(phase, 2, 0))
    assert poles[0.0] == 0 < poles[1.0]


def test_drawn_scanners_lie_in_their_ranges():
    for protocol in PROTOCOLS.values():
        ranges = protocol.scanner
        drawn = jax.vmap(lambda k, r=ranges: draw_scanner(k, r, jnp.float32(28.0)))(
            jax.random.split(jax.random.key(0), 200)
        )
        for name in ("flip_deg", "acceleration", "mask_power", "homodyne_mm", "along_slices", "smoothing"):
            low, high = getattr(ranges, name)
            values = np.asarray(getattr(drawn, name))
            assert low - 1e-4 <= values.min() <= values.max() <= high + 1e-4
        assert np.asarray(drawn.tr_ms).min() >= 33.0 - 1e-4
        assert set(np.unique(drawn.coils)) <= set(range(1, MAX_COILS + 1))
        assert np.asarray(drawn.in_plane).min() < 1.0 == np.asarray(drawn.in_plane).max()


def test_wider_ranges_hold_the_own_ones():
    own = ScannerRanges()
    assert widen_scanner(own, 0.0) == own
    wide = widen_scanner(own, 0.3)
    assert wide.mask_power == (pytest.approx(2.1), 5.0)
    assert wide.homodyne_mm == (5.0, pytest.approx(15.6))
    assert wide.along_slices == own.along_slices  # nothing is drawn there
    assert wide.tr_ms[0] < own.tr_ms[0] < own.tr_ms[1] < wide.tr_ms[1]
