"""Impossible settings are refused with what is allowed."""

import dataclasses

import numpy as np
import pytest

from cmb_jax.errors import UserError
from cmb_jax.phantom import PROTOCOLS, SubjectSettings, simulate_subject
from cmb_jax.phantom.settings import TIERS, check_protocol, check_settings
from cmb_jax.phantom.simulate import rotation_to_scanner


@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, -0.6, 0.8)])
def test_rotation_to_scanner(direction):
    turn = rotation_to_scanner(direction)
    np.testing.assert_allclose(turn @ direction, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "iso99"}, "choose one of: iso05, iso08, sabre, rss, thick3, swi7t"),
        ({"tier": "brutal"}, "choose one of: easy, hard, end_on"),
        ({"mean_cmbs": -1}, "mean_cmbs is -1; allowed: 0 to 80"),
        ({"simulation_spacing_mm": 0.0}, "0.3 to 4"),
        ({"te_ms": (0.0, 0.0)}, "te_ms is 0 to 0; allowed: 1 to 100 ms"),
        ({"te_ms": (30.0, 20.0)}, "the smaller first"),
        ({"snr": (-5.0, 10.0)}, "snr is -5 to 10; allowed: 1 to"),
        ({"snr": (float("nan"), 10.0)}, "snr is nan"),
        ({"b0_t": -3.0}, "allowed: 0.1 to 14 T"),
        ({"diameters_mm": (2.0, 150.0)}, "diameters_mm is 2 to 150; allowed: 0.2 to 10 mm"),
        ({"gap_mm": 99.0}, "gap_mm is 99"),
    ],
)
def test_bad_settings_name_what_is_allowed(pack, change, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        simulate_subject(pack, 0, SubjectSettings(**change))


def test_a_negative_seed_is_refused(pack):
    with pytest.raises(UserError, match="seed is -1; allowed: 0 to"):
        simulate_subject(pack, -1)


@pytest.mark.parametrize(
    "change",
    [
        {"te_ms": (0.0, 20.0)},
        {"b0_t": (0.0,)},
        {"phase_sign": 0},
        {"snr": (0.0, 1.0)},
        {"field_of_view_mm": (191.3, 240.0, 162.0)},
        {"tilt_deg": (0.0, 90.0)},
        {"spacing_mm": (0.1, 0.1, 2.0)},
        {"discarded_slices": 60},
    ],
)
def test_bad_protocols_are_refused(change):
    for protocol in PROTOCOLS.values():
        check_protocol(protocol)
    with pytest.raises(UserError, match=next(iter(change))):
        check_protocol(dataclasses.replace(PROTOCOLS["iso05"], **change))


def test_own_ranges_replace_the_protocols():
    protocol, tier = check_settings(SubjectSettings(te_ms=(12.0, 13.0), b0_t=7.0, tier="hard"))
    assert protocol.te_ms == (12.0, 13.0)
    assert protocol.b0_t == (7.0,)
    assert protocol.snr == PROTOCOLS["iso05"].snr
    assert tier == TIERS["hard"]


def test_protocols_cover_what_the_field_uses():
    """Field strengths, echo times, both phase signs and every way of storing phase."""
    strengths = {b for p in PROTOCOLS.values() for b in p.b0_t}
    assert strengths == {1.5, 3.0, 7.0}
    assert min(p.te_ms[0] for p in PROTOCOLS.values()) <= 10
    assert max(p.te_ms[1] for p in PROTOCOLS.values()) >= 40
    assert {p.phase_sign for p in PROTOCOLS.values()} == {-1, 1}
    assert {p.phase_storage for p in PROTOCOLS.values()} == {"radians", "pm4096", "0-4095"}
    assert {p.phase for p in PROTOCOLS.values()} == {"filtered", "raw", "none"}
    assert any(p.tilt_deg[1] > 0 for p in PROTOCOLS.values())
