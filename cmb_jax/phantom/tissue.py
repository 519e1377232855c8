"""Susceptibility, transverse relaxation and signal of the head's tissues on the simulation grid.

Values at 3 T after Marques et al. 2021 (QSM reconstruction challenge 2.0), varied from subject to subject.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.phantom.geometry import (
    Grid,
    PackedAnatomy,
    Pose,
    sample_pack,
    smooth_noise,
    widen_lattice,
)

NUCLEI = (
    Channel.CAUDATE,
    Channel.PUTAMEN,
    Channel.PALLIDUM,
    Channel.THALAMUS,
    Channel.RED_NUCLEUS,
    Channel.SUBSTANTIA_NIGRA,
    Channel.DENTATE,
)
CHI_AIR = 9.4  # ppm against tissue
TEXTURE_SPACING_MM = 3.0

# One column a tissue: grey, white, CSF, soft, air, then NUCLEI. Signal: relative, TR and flip angle included.
_CHI_PPM = np.array([0.020, -0.030, 0.019, 0.0, CHI_AIR, 0.044, 0.038, 0.131, 0.020, 0.100, 0.111, 0.152])
_R2_STAR = np.array([17.0, 21.0, 3.0, 30.0, 0.0, 24.0, 25.0, 40.0, 21.0, 34.0, 38.0, 34.0])
_SIGNAL = np.array([0.80, 0.72, 0.66, 0.0, 0.0, 0.77, 0.77, 0.74, 0.75, 0.74, 0.74, 0.77])
# Standard deviation of a subject's value over the tabulated one.
_CHI_SPREAD = np.array([0.2, 0.15, 0.1, 0.0, 0.01, 0.25, 0.25, 0.25, 0.2, 0.25, 0.25, 0.25])
_R2_SPREAD = np.array([0.1, 0.1, 0.2, 0.1, 0.0, 0.12, 0.12, 0.15, 0.1, 0.15, 0.15, 0.15])
_SIGNAL_SPREAD = np.array([0.04, 0.04, 0.18, 0.0, 0.0, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04])


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TissueValues:
    """One subject's tissue values: (12,) each, in the order grey, white, CSF, soft, air, NUCLEI."""

    chi_ppm: jax.Array
    r2_star: jax.Array  # 1/s at the subject's field strength
    signal: jax.Array
    hyperintensity: jax.Array  # () threshold on the white-matter-hyperintensity prior
    texture: jax.Array  # (*texture lattice, 2): chi in ppm, relative signal


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TissueMaps:
    """(X, Y, Z) on the simulation grid."""

    chi_ppm: jax.Array  # against soft tissue: air is +9.4
    r2_star: jax.Array  # 1/s
    signal: jax.Array  # without relaxation
    sinus: jax.Array  # fraction of venous blood from the vessel prior


def texture_lattice(extent_mm: tuple[float, float, float]) -> Grid:
    """The lattice that carries tissue texture."""
    x, y, z = (int(np.ceil(e / TEXTURE_SPACING_MM)) + 1 for e in extent_mm)
    ox, oy, oz = (-(n - 1) * TEXTURE_SPACING_MM / 2 for n in (x, y, z))
    return Grid((x, y, z), (TEXTURE_SPACING_MM,) * 3, (ox, oy, oz))


@functools.partial(jax.jit, static_argnames=("lattice",))
def draw_tissue(key: jax.Array, b0_t: jax.Array, lattice: Grid) -> TissueValues:
    """A subject's values; R2* grows in proportion to the field."""
    k_chi, k_r2, k_signal, k_lesion, k_fine, k_coarse, k_iron = jax.random.split(key, 7)

    def vary(k: jax.Array, values: np.ndarray, spread: np.ndarray) -> jax.Array:
        draw = jnp.clip(jax.random.normal(k, values.shape), -2.0, 2.0)
        return jnp.asarray(values, jnp.float32) * (1.0 + jnp.asarray(spread, jnp.float32) * draw)

    iron = 1.0 + 0.2 * jnp.clip(jax.random.normal(k_iron), -2.0, 2.0)  # with age, in all nuclei alike
    rise = jnp.concatenate([jnp.ones(5), jnp.full(len(NUCLEI), iron)])
    fine = smooth_noise(k_fine, (*lattice.shape, 2), sigma=0.6)
    coarse = smooth_noise(k_coarse, (*lattice.shape, 2), sigma=3.0)
    return TissueValues(
        vary(k_chi, _CHI_PPM, _CHI_SPREAD) * rise,
        vary(k_r2, _R2_STAR, _R2_SPREAD) * (b0_t / 3.0) * rise,
        vary(k_signal, _SIGNAL, _SIGNAL_SPREAD),
        jax.random.uniform(k_lesion, (), minval=0.2, maxval=0.8),
        fine * jnp.array([0.006, 0.012]) + coarse * jnp.array([0.008, 0.02]),
    )


def mix_tissue(
    channels: jax.Array, texture: jax.Array, y_pack_mm: jax.Array, values: TissueValues
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """chi, R2*, signal and sinus fraction (P,) from pack channels (P, C) and texture (P, 2)."""
    nuclei = channels[:, jnp.array(NUCLEI)]
    covered = jnp.minimum(jnp.sum(nuclei, axis=1, keepdims=True), 1.0)
    nuclei = nuclei / jnp.maximum(jnp.sum(nuclei, axis=1, keepdims=True), 1.0)
    base = channels[:, : Channel.AIR + 1]
    base = base / jnp.maximum(jnp.sum(base, axis=1, keepdims=True), 1e-3)
    fractions = jnp.concatenate([base * (1.0 - covered), nuclei], axis=1)

    t1 = channels[:, Channel.T1]
    soft = fractions[:, Channel.SOFT_TISSUE]
    brain = 1.0 - soft - fractions[:, Channel.AIR]
    bone = soft * jnp.clip(1.0 - 2.5 * t1, 0.0, 1.0)  # dark in T1: skull
    expected_t1 = fractions[:, :3] @ jnp.array([0.62, 0.9, 0.25]) + 0.72 * covered[:, 0]
    own = jnp.clip(t1 - expected_t1, -0.3, 0.3) * brain  # the average brain's own texture

    hyper = jnp.clip((channels[:, Channel.LESION_PRIOR] - values.hyperintensity) / 0.15, 0.0, 1.0)
    hyper = hyper * fractions[:, Channel.WHITE_MATTER]
    chi = fractions @ values.chi_ppm + brain * (texture[:, 0] + 0.02 * own) + 0.025 * hyper - 1.0 * bone
    r2_star = fractions @ values.r2_star + 60.0 * bone
    signal = fractions @ values.signal + 0.85 * jnp.clip(t1, 0.0, 1.0) * soft
    signal = signal * (1.0 + brain * (texture[:, 1] + 0.15 * own) + 0.1 * hyper)

    # The vessel prior holds the dural sinuses behind and above, the circle of Willis below and before.
    vessel = jnp.clip((channels[:, Channel.VESSEL_PRIOR] - 0.3) / 0.4, 0.0, 1.0)
    venous = jax.nn.sigmoid((-25.0 - y_pack_mm) / 4.0)
    return chi, r2_star, signal, vessel * venous


@functools.partial(jax.jit, static_argnames=("lattice", "texture_grid", "grid", "slabs"))
def tissue_maps(
    anatomy: PackedAnatomy,
    pose: Pose,
    values: TissueValues,
    *,
    lattice: Grid,
    texture_grid: Grid,
    grid: Grid,
    slabs: int,
) -> TissueMaps:
    """Tissue of a posed head on `grid`, made slab by slab along x to bound the memory."""
    displacement, wx = widen_lattice(pose.displacement, lattice, grid)
    texture, tx = widen_lattice(values.texture, texture_grid, grid)
    x_mm, y_mm, z_mm = (jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3))
    y_all, z_all = (a.reshape(-1) for a in jnp.meshgrid(y_mm, z_mm, indexing="ij"))

    def slab(part: tuple[jax.Array, jax.Array, jax.Array]):
        x, weights, texture_weights = part
        moved = jnp.tensordot(weights, displacement, axes=1).reshape(len(x), -1, 3)
        grain = jnp.tensordot(texture_weights, texture, axes=1).reshape(-1, 2)
        plane = jnp.stack([jnp.zeros_like(y_all), y_all, z_all], axis=1) @ pose.linear.T + pose.offset
        points = (x[:, None, None] * pose.linear[:, 0] + plane + moved).reshape(-1, 3)
        channels, _ = sample_pack(anatomy, points)
        return mix_tissue(channels, grain, points[:, 1], values)

    parts = (x_mm.reshape(slabs, -1), wx.reshape(slabs, -1, wx.shape[1]), tx.reshape(slabs, -1, tx.shape[1]))
    chi, r2_star, signal, sinus = (m.reshape(grid.shape) for m in jax.lax.map(slab, parts))
    return TissueMaps(chi, r2_star, signal, sinus)
