"""One small head and one compiled program for all tests of the phantom."""

import jax.numpy as jnp
import pytest

from cmb_jax.anatomy.synthetic import synthetic_pack
from cmb_jax.phantom import PROTOCOLS, TIERS, SubjectSettings, simulate_subject
from cmb_jax.phantom.head import pack_anatomy
from cmb_jax.phantom.simulate import Plan, Ranges

SPACING_MM = 2.0
SETTINGS = SubjectSettings(protocol="thick3", mean_cmbs=30, simulation_spacing_mm=SPACING_MM)


@pytest.fixture(scope="session")
def pack():
    return synthetic_pack()


@pytest.fixture(scope="session")
def anatomy(pack):
    return pack_anatomy(pack)


@pytest.fixture(scope="session")
def plan():
    return Plan.of(PROTOCOLS["thick3"], SPACING_MM)


@pytest.fixture(scope="session")
def ranges():
    return Ranges.of(PROTOCOLS["thick3"], TIERS["easy"], SETTINGS)


@pytest.fixture(scope="session")
def hard(ranges):
    """Numbers of the hard tier, as device scalars."""
    return Ranges.of(PROTOCOLS["thick3"], TIERS["hard"], SETTINGS).tier


@pytest.fixture(scope="session")
def subject(pack):
    return simulate_subject(pack, 11, SETTINGS)


@pytest.fixture(scope="session")
def half():
    return jnp.float32(0.5)
