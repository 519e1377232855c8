"""The simulator's physics in JAX and in plain NumPy are the same numbers."""

import numpy as np

from benchmarks.sides import field_jax, field_numpy

OPTIONS = {"shape": [40, 48, 36], "matrix": [36, 45, 13]}


def test_both_sides_compute_the_same_scan():
    ours, other = (side.prepare(OPTIONS, "cpu").run() for side in (field_jax, field_numpy))
    swi, phase = (np.asarray(part) for part in ours)
    assert swi.shape == tuple(OPTIONS["matrix"])
    np.testing.assert_allclose(swi, other[0], atol=1e-4 * other[0].max())
    # a phase of pi may come out as -pi
    assert np.abs(np.angle(np.exp(1j * (phase - other[1])))).max() < 1e-4 * np.pi
