"""What a spoiled gradient echo shows of tissue and blood: proton density, T1 by field strength, oxygenation.

Columns of tissue are those of `phantom.tissue`: grey, white, CSF, soft, air, then its NUCLEI.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

BRAIN_SIGNAL = 0.75  # mean of gray and white matter without T2* decay: signals are relative to it

# Proton density over that of CSF and T1 in ms at 3 T, put together from Rooney et al., Magn Reson Med 57:308
# (2007), and Wright et al., MAGMA 21:121 (2008). Soft tissue and air take no signal from here.
_DENSITY = np.array([0.82, 0.70, 1.0, 0.0, 0.0, 0.81, 0.80, 0.73, 0.76, 0.74, 0.74, 0.77])
_T1_MS = np.array([1400, 860, 4300, 1000, 1000, 1270, 1210, 980, 1120, 1000, 1050, 1150.0])
# T1 grows with a power of the field (Rooney et al. 2007); that of CSF does not.
_T1_POWER = np.array([0.38, 0.38, 0.0, 0.0, 0.0, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38])
_DENSITY_SPREAD, _T1_SPREAD = 0.03, 0.08  # of a subject's value over the tabulated one
_BLOOD_DENSITY, _BLOOD_T1_MS, _BLOOD_T1_POWER = 0.85, 1900.0, 0.34

HEMATOCRIT = (0.32, 0.50)
OXYGENATION = (0.50, 0.78)  # of venous blood


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blood:
    """A subject's venous blood."""

    chi_ppm: jax.Array  # () against plasma
    r2_star: jax.Array  # () 1/s at the subject's field strength
    signal: jax.Array  # () without decay, BRAIN_SIGNAL being that of brain


def ernst_angle_deg(tr_ms: float | jax.Array, t1_ms: float | jax.Array) -> jax.Array:
    """The flip angle in degrees at which a spoiled gradient echo has the most signal: acos(exp(-TR/T1))."""
    return jnp.rad2deg(jnp.arccos(jnp.exp(-jnp.asarray(tr_ms) / t1_ms)))


def spoiled_signal(
    density: jax.Array | float,
    t1_ms: jax.Array | float,
    tr_ms: jax.Array | float,
    flip_deg: jax.Array | float,
) -> jax.Array:
    """Steady state at TE 0: M0 sin a (1 - E1) / (1 - E1 cos a), E1 = exp(-TR/T1) (Ernst, Anderson 1966)."""
    angle = jnp.deg2rad(jnp.asarray(flip_deg))
    left = jnp.exp(-jnp.asarray(tr_ms) / t1_ms)
    return density * jnp.sin(angle) * (1 - left) / (1 - left * jnp.cos(angle))


def t1_weighting(
    t1_ms: jax.Array | float, tr_ms: jax.Array | float, flip_deg: jax.Array | float
) -> jax.Array:
    """-d ln S / d ln T1 of `spoiled_signal`: 0 is proton-density-weighted, 1 the most T1-weighted."""
    cosine = jnp.cos(jnp.deg2rad(jnp.asarray(flip_deg)))
    rate = jnp.asarray(tr_ms) / t1_ms
    left = jnp.exp(-rate)
    return rate * left * (1 / (1 - left) - cosine / (1 - left * cosine))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Contrast:
    """What a sequence shows of one subject without decay."""

    signal: jax.Array  # (12,) of the tissues
    blood: jax.Array  # () of venous blood
    t1_weighting: jax.Array  # () of gray and white matter, see `t1_weighting`


def draw_contrast(key: jax.Array, tr_ms: jax.Array, flip_deg: jax.Array, b0_t: jax.Array) -> Contrast:
    """Signals of a subject's tissues, the mean of gray and white matter being BRAIN_SIGNAL."""
    k_density, k_t1 = jax.random.split(key)

    def vary(k: jax.Array, values: np.ndarray, spread: float) -> jax.Array:
        draw = jnp.clip(jax.random.normal(k, values.shape), -2.0, 2.0)
        return jnp.asarray(values, jnp.float32) * (1.0 + spread * draw)

    t1 = vary(k_t1, _T1_MS, _T1_SPREAD) * (b0_t / 3.0) ** jnp.asarray(_T1_POWER, jnp.float32)
    signal = spoiled_signal(vary(k_density, _DENSITY, _DENSITY_SPREAD), t1, tr_ms, flip_deg)
    blood_t1 = _BLOOD_T1_MS * (b0_t / 3.0) ** _BLOOD_T1_POWER
    blood = spoiled_signal(_BLOOD_DENSITY, blood_t1, tr_ms, flip_deg)
    scale = BRAIN_SIGNAL / jnp.mean(signal[:2])
    return Contrast(signal * scale, blood * scale, jnp.mean(t1_weighting(t1[:2], tr_ms, flip_deg)))


def blood_susceptibility(hematocrit: jax.Array | float, oxygenation: jax.Array | float) -> jax.Array:
    """ppm (SI) against plasma: 4 pi Hct (0.27 (1 - Y) - 0.03) (Spees et al. 2001, Jain et al. 2012)."""
    return jnp.asarray(4 * math.pi * hematocrit * (0.27 * (1 - oxygenation) - 0.03))


def blood_r2_star(hematocrit: jax.Array, oxygenation: jax.Array, b0_t: jax.Array) -> jax.Array:
    """1/s: 15 + 302 (1 - Y)^2 at 3 T and Hct 0.44 (Zhao et al., Magn Reson Med 58:592, 2007).

    The second term grows with Hct and with B0^1.5, which also meets the 7 ms of venous blood at 7 T.
    """
    return 15.0 + 302.0 * (1 - oxygenation) ** 2 * (hematocrit / 0.44) * (b0_t / 3.0) ** 1.5


def draw_blood(key: jax.Array, b0_t: jax.Array, signal: jax.Array) -> Blood:
    """Venous blood from a hematocrit and an oxygenation; signal (): see `Contrast.blood`."""
    k_cells, k_oxygen = jax.random.split(key)
    cells = jax.random.uniform(k_cells, (), minval=HEMATOCRIT[0], maxval=HEMATOCRIT[1])
    oxygen = jax.random.uniform(k_oxygen, (), minval=OXYGENATION[0], maxval=OXYGENATION[1])
    return Blood(blood_susceptibility(cells, oxygen), blood_r2_star(cells, oxygen, b0_t), signal)
