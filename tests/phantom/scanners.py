"""Scanners for tests."""

import jax.numpy as jnp

from cmb_jax.phantom.acquisition import Scanner

_PLAIN = {
    "tr_ms": 30.0,
    "flip_deg": 15.0,
    "coils": 1.0,
    "sum_of_squares": 0.0,
    "unmatched_phase": 0.0,
    "acceleration": 1.0,
    "partial_x": 1.0,
    "partial_z": 1.0,
    "in_plane": 1.0,
    "along_slices": 1.0,
    "smoothing": 0.0,
    "correction": 1.0,
    "mask_power": 4.0,
    "homodyne_mm": 8.0,
}


def plain_scanner(**changes: float) -> Scanner:
    """All of k-space, white noise, no profile in the magnitude, but for what is changed."""
    return Scanner(**{name: jnp.float32(value) for name, value in (_PLAIN | changes).items()})
