"""What the JAX sides share."""

from __future__ import annotations

import jax

from cmb_jax.ops.cpu import library


def device_peak_mb() -> float | None:
    """The most memory in use on the accelerator."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e6


def convolution_note(device: str, precision: str) -> str:
    """Precision of the network and which convolution kernel runs."""
    return f"{precision}, CPU kernel {library.instruction_set()}" if device == "cpu" else precision
