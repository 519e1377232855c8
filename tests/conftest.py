"""Settings that every test shares; they must stand before the first use of JAX."""

import os

# Eight simulated devices for the sharding tests; low optimisation because compiling dominates small tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # eight devices on two busy cores may wait for each other for longer than the default of 40 s
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
