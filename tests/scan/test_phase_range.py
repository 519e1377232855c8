"""Phase ranges told apart and brought to radians."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.scan.phase_range import (
    NAMED,
    PhaseRange,
    asked_range,
    detect_phase_range,
    phase_to_radians,
    range_of,
)

TRUE = np.random.default_rng(3).uniform(-math.pi, math.pi, size=(60, 60, 5))

STORED = {
    PhaseRange.RADIANS: TRUE.astype(np.float32),
    PhaseRange.PLUS_MINUS_4096: np.rint(TRUE * 4096 / math.pi).astype(np.int16),
    PhaseRange.ZERO_4095: np.clip(np.rint((TRUE + math.pi) * 4096 / (2 * math.pi)), 0, 4095).astype(np.int16),
    PhaseRange.MILLIRADIANS: np.rint(TRUE * 1000).astype(np.int16),
    PhaseRange.ZERO_2PI: (TRUE % (2 * math.pi)).astype(np.float32),
}


def differ(a, b):
    return np.abs(np.angle(np.exp(1j * (np.asarray(a, np.float64) - b))))


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.name)
def test_each_range_is_told_and_undone(kind):
    assert detect_phase_range(STORED[kind]) is kind
    radians = phase_to_radians(STORED[kind], kind)
    assert radians.dtype == np.float32
    assert differ(radians, TRUE).max() < 0.002
    assert asked_range([kind.name]) is kind


@pytest.mark.parametrize(
    ("data", "low", "high"),
    [
        (np.degrees(TRUE), -180, 180),
        (np.rint((TRUE + math.pi) / (2 * math.pi) * 255).astype(np.uint8), 0, 255),
        ((TRUE + math.pi) / (2 * math.pi), 0, 1),
        (TRUE * 0.0036743 / math.pi, -0.0036743, 0.0036743),
        (STORED[PhaseRange.PLUS_MINUS_4096] // 2 * 2, -4096, 4096),  # slope 2
        (np.where(np.random.default_rng(0).random(TRUE.shape) < 0.5, 0, np.degrees(TRUE)), -180, 180),
    ],
)
def test_any_linear_range_is_told_where_it_is_filled(data, low, high):
    found = detect_phase_range(data)
    assert found.low == pytest.approx(low, abs=0.01 * (high - low))
    assert found.high == pytest.approx(high, abs=0.01 * (high - low))
    assert differ(phase_to_radians(data, found), TRUE)[np.asarray(data) != 0].max() < 0.06


@pytest.mark.parametrize(
    "data",
    [
        np.array([0.0, 70000.0]),
        np.random.default_rng(0).normal(0, 0.3, (40, 40, 9)),  # high-passed, cut out of its noise
        np.random.default_rng(0).gamma(4.0, 100.0, (40, 40, 9)),  # an intensity
        np.rint(700 + 2000 * np.abs(TRUE) / math.pi) ** 2,
        np.zeros((9, 9, 9)),
    ],
)
def test_what_does_not_fill_its_range_is_refused(data):
    with pytest.raises(NotAnalysableError, match="state the range with --phase-range"):
        detect_phase_range(data)


def test_a_stated_range_must_not_contradict_the_values():
    high_passed = np.random.default_rng(0).normal(0, 0.3, (40, 40, 9))
    assert range_of(high_passed, PhaseRange.RADIANS) is PhaseRange.RADIANS
    assert range_of(30 * high_passed, PhaseRange.RADIANS) is PhaseRange.RADIANS  # unwrapped
    own = asked_range(["0", "255"])
    assert range_of(STORED[PhaseRange.ZERO_4095] // 16, own) is own
    with pytest.raises(NotAnalysableError, match="does not lie in the stated range"):
        range_of(STORED[PhaseRange.ZERO_4095], own)
    with pytest.raises(NotAnalysableError, match="fills the range from 0 to 255"):
        range_of(STORED[PhaseRange.ZERO_4095] // 16, PhaseRange.ZERO_4095)


@pytest.mark.parametrize("words", [["pm2048"], ["0"], ["0", "1", "2"], ["1", "0"], ["0", "inf"], ["x", "y"]])
def test_ranges_that_are_none(words):
    with pytest.raises(UserError, match="--phase-range"):
        asked_range(words)


@settings(deadline=None)
@given(hnp.arrays(np.float64, (3, 2), elements=st.floats(-50, 50)))
def test_radians_are_wrapped_into_the_half_open_interval(data):
    radians = phase_to_radians(data, PhaseRange.RADIANS)
    assert (radians.astype(np.float64) > -math.pi).all()
    assert (radians.astype(np.float64) <= math.pi).all()
    assert differ(radians, data).max() < 1e-5
