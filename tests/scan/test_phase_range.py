"""Phase ranges told apart and brought to radians."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmb_jax.errors import UserError
from cmb_jax.scan.phase_range import PhaseRange, detect_phase_range, phase_to_radians

TRUE = np.random.default_rng(3).uniform(-math.pi, math.pi, size=(20, 20, 5))

STORED = {
    PhaseRange.RADIANS: TRUE.astype(np.float32),
    PhaseRange.PLUS_MINUS_4096: np.rint(TRUE * 4096 / math.pi).astype(np.int16),
    PhaseRange.ZERO_4095: np.clip(np.rint((TRUE + math.pi) * 4096 / (2 * math.pi)), 0, 4095).astype(np.int16),
    PhaseRange.MILLIRADIANS: np.rint(TRUE * 1000).astype(np.int16),
    PhaseRange.ZERO_2PI: (TRUE % (2 * math.pi)).astype(np.float32),
    PhaseRange.SYMMETRIC: (TRUE * 0.0036743 / np.abs(TRUE).max()).astype(np.float32),
}


def differ(a, b):
    return np.abs(np.angle(np.exp(1j * (np.asarray(a, np.float64) - b))))


@pytest.mark.parametrize("kind", list(PhaseRange))
def test_each_range_is_told_and_undone(kind):
    assert detect_phase_range(STORED[kind]) is kind
    radians = phase_to_radians(STORED[kind], kind)
    assert radians.dtype == np.float32
    assert differ(radians, TRUE).max() < (0.002 if kind is not PhaseRange.SYMMETRIC else 0.01)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.degrees(TRUE), PhaseRange.SYMMETRIC),
        (0.4 * TRUE - 0.1, PhaseRange.RADIANS),  # high-passed
        (np.rint(0.3 * TRUE * 4096 / math.pi + 200), PhaseRange.PLUS_MINUS_4096),  # high-passed
        (STORED[PhaseRange.PLUS_MINUS_4096] // 2 * 2, PhaseRange.PLUS_MINUS_4096),  # slope 2, -4096..4094
        (np.rint(700 + 2000 * np.abs(TRUE) / math.pi), PhaseRange.ZERO_4095),
    ],
)
def test_variants(data, kind):
    assert detect_phase_range(data) is kind


@pytest.mark.parametrize(
    "data",
    [np.array([0.0, 70000.0]), np.array([-11.3, 20.1]), np.array([-0.01, 0.004]), np.array([-500.0, 9000.0])],
)
def test_no_range_fits(data):
    with pytest.raises(UserError, match="state the range"):
        detect_phase_range(data)


@settings(deadline=None)
@given(hnp.arrays(np.float64, (3, 2), elements=st.floats(-50, 50)))
def test_radians_are_wrapped_into_the_half_open_interval(data):
    radians = phase_to_radians(data, PhaseRange.RADIANS)
    assert (radians.astype(np.float64) > -math.pi).all()
    assert (radians.astype(np.float64) <= math.pi).all()
    assert differ(radians, data).max() < 1e-5
