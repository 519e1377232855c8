"""Susceptibility-weighted imaging: high-pass phase, phase mask, echo combination.

Pure functions on (X, Y, Z) arrays, jitted; the slice plane is (X, Y), spacing in mm, phase in radians.
"""

from cmb_jax.swi.filters import DEFAULT_WIDTH_MM, high_pass, homodyne_phase, low_pass, phase_trust
from cmb_jax.swi.weighting import (
    PHASE_MASK_POWER,
    SwiImage,
    combine_echoes,
    minimum_intensity_projection,
    phase_mask,
    susceptibility_weighted,
)

__all__ = [
    "DEFAULT_WIDTH_MM",
    "PHASE_MASK_POWER",
    "SwiImage",
    "combine_echoes",
    "high_pass",
    "homodyne_phase",
    "low_pass",
    "minimum_intensity_projection",
    "phase_mask",
    "phase_trust",
    "susceptibility_weighted",
]
