import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmb_jax.phantom.tissue import (
    BRAIN_SIGNAL,
    blood_r2_star,
    blood_susceptibility,
    draw_contrast,
    spoiled_signal,
    t1_weighting,
)

GRAY, WHITE, CSF = 0, 1, 2


def _steady(density, t1, tr, flip):
    """Longitudinal magnetization after 3000 pulses with perfect spoiling."""
    z = 1.0
    for _ in range(3000):
        transverse = z * np.sin(np.radians(flip))
        z = 1 + (z * np.cos(np.radians(flip)) - 1) * np.exp(-tr / t1)
    return density * transverse


@pytest.mark.parametrize(("t1", "tr", "flip"), [(860, 30, 15), (4300, 40, 50), (1400, 900, 25), (1000, 8, 5)])
def test_signal_is_the_steady_state_of_repeated_pulses(t1, tr, flip):
    assert float(spoiled_signal(0.8, t1, tr, flip)) == pytest.approx(_steady(0.8, t1, tr, flip), rel=1e-4)


@pytest.mark.parametrize(("tr", "t1"), [(30, 860), (30, 4300), (800, 1400)])
def test_signal_is_largest_at_the_ernst_angle(tr, t1):
    angles = np.linspace(1, 89, 881)
    best = angles[np.argmax(np.asarray(spoiled_signal(1.0, t1, tr, angles)))]
    assert best == pytest.approx(np.degrees(np.arccos(np.exp(-tr / t1))), abs=0.5)


@pytest.mark.parametrize(("tr", "flip"), [(30, 5), (30, 15), (30, 50), (800, 20)])
def test_t1_weighting_is_the_slope_of_the_signal(tr, flip):
    low, high = _steady(1.0, 990, tr, flip), _steady(1.0, 1010, tr, flip)
    slope = -np.log(high / low) / np.log(1010 / 990)
    assert float(t1_weighting(1000, tr, flip)) == pytest.approx(slope, abs=2e-3)


def test_csf_is_dark_on_t1_and_bright_on_density_weighting():
    dark, bright = (
        draw_contrast(jax.random.key(0), jnp.float32(tr), jnp.float32(flip), jnp.float32(3.0))
        for tr, flip in ((25, 30), (1000, 10))
    )
    for made in (dark, bright):
        assert float(jnp.mean(made.signal[:2])) == pytest.approx(BRAIN_SIGNAL, rel=1e-5)
    assert float(dark.signal[CSF]) < 0.5 * float(dark.signal[GRAY]) < 0.5 * float(dark.signal[WHITE])
    assert float(bright.signal[CSF]) > float(bright.signal[GRAY]) > float(bright.signal[WHITE])
    assert float(bright.t1_weighting) < 0.2 < 0.7 < float(dark.t1_weighting)


def test_blood_meets_published_values():
    """0.3 to 0.45 ppm and T2* of 15 to 25 ms in veins at 3 T; about 7 ms at 7 T; darker with less oxygen."""
    assert 0.3 < float(blood_susceptibility(0.42, 0.65)) < 0.45
    rates = [float(blood_r2_star(0.42, 0.65, b0)) for b0 in (1.5, 3.0, 7.0)]
    assert 15 < 1000 / rates[1] < 25
    assert 5.5 < 1000 / rates[2] < 9
    assert float(blood_susceptibility(0.42, 0.5)) > float(blood_susceptibility(0.42, 0.75)) > 0
