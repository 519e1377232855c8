"""Settings that every test shares; they must stand before the first use of JAX."""

import os

# Eight simulated devices for the sharding tests; low optimization because compiling dominates small tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # eight devices on two busy cores may wait for each other for longer than the default of 40 s
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A simulated device holds a thread while it waits for the others. XLA's pools are as large as this says; as
# large as the number of devices, any other work in them leaves one device without a thread, for ever.
os.environ.setdefault("NPROC", "32")

import jax
import numpy as np
import pytest
from absl import flags

from cmb_jax.scan import judge

judge.NARROWEST_MM = (0.0, 0.0, 0.0)  # the heads of tests are miniatures; tests/scan has the real limits

# Commands that tests call turn the cache on for the whole process; writing a program of eight devices into it
# crashed jaxlib 0.10.2 once, after 3000 tests.
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_cpu_enable_async_dispatch", False)  # one program at a time on the simulated devices
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
