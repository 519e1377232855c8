"""Susceptibility, transverse relaxation and signal of a subject's tissues, voxel by voxel of the pack.

Susceptibility and R2* at 3 T after Marques et al. 2021 (QSM reconstruction challenge 2.0), varied from
subject to subject; the iron of the deep nuclei after Hallgren and Sourander 1958 (J Neurochem 3:41), by age.
Signal without decay is that of a spoiled gradient echo: proton density, T1 by field strength, oxygenation of
blood. Columns of tissue are gray, white, CSF, soft, air, then `NUCLEI`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom import head
from cmb_jax.phantom.field import CHI_AIR
from cmb_jax.phantom.geometry import Grid, cubic_weights, linear_at, smooth_noise
from cmb_jax.phantom.settings import Tier
from cmb_jax.phantom.types import MimicKind

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


def spoiled_signal(
    density: jax.Array | float,
    t1_ms: jax.Array | float,
    tr_ms: jax.Array | float,
    flip_deg: jax.Array | float,
) -> jax.Array:
    """Steady state at TE 0: M0 sin a (1 - E1) / (1 - E1 cos a), E1 = exp(-TR/T1) (Ernst, Anderson 1966)."""
    angle = jnp.deg2rad(jnp.asarray(flip_deg))
    e1 = jnp.exp(-jnp.asarray(tr_ms) / t1_ms)
    return density * jnp.sin(angle) * (1 - e1) / (1 - e1 * jnp.cos(angle))


def t1_weighting(
    t1_ms: jax.Array | float, tr_ms: jax.Array | float, flip_deg: jax.Array | float
) -> jax.Array:
    """-d ln S / d ln T1 of `spoiled_signal`: 0 is proton-density-weighted, 1 the most T1-weighted."""
    cosine = jnp.cos(jnp.deg2rad(jnp.asarray(flip_deg)))
    rate = jnp.asarray(tr_ms) / t1_ms
    e1 = jnp.exp(-rate)
    return rate * e1 * (1 / (1 - e1) - cosine / (1 - e1 * cosine))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Contrast:
    """What a sequence shows of one subject without decay."""

    signal: jax.Array  # (12,) of the tissues
    blood: jax.Array  # () of venous blood
    t1_weighting: jax.Array  # () of gray and white matter, see `t1_weighting`


def _vary(key: jax.Array, values: np.ndarray | jax.Array, spread: np.ndarray | float) -> jax.Array:
    """Normal draws about tabulated values, cut off at two standard deviations; spread over the value."""
    draw = jnp.clip(jax.random.normal(key, values.shape), -2.0, 2.0)
    return jnp.asarray(values, jnp.float32) * (1.0 + jnp.asarray(spread, jnp.float32) * draw)


def draw_contrast(key: jax.Array, tr_ms: jax.Array, flip_deg: jax.Array, b0_t: jax.Array) -> Contrast:
    """Signals of a subject's tissues, the mean of gray and white matter being BRAIN_SIGNAL."""
    k_density, k_t1 = jax.random.split(key)
    t1 = _vary(k_t1, _T1_MS, _T1_SPREAD) * (b0_t / 3.0) ** jnp.asarray(_T1_POWER, jnp.float32)
    signal = spoiled_signal(_vary(k_density, _DENSITY, _DENSITY_SPREAD), t1, tr_ms, flip_deg)
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


IRON_RICH = tuple(n for n in head.NUCLEI if n not in (Channel.CAUDATE, Channel.THALAMUS))
ARTERIAL_CORE = 0.7  # of the vessel prior
TEXTURE_VOXELS = 3.0  # pack voxels from one point of the texture's lattice to the next

# One column per tissue: gray, white, CSF, soft, air; `iron_mg` gives those of NUCLEI.
_CHI_PPM = np.array([0.020, -0.030, 0.019, 0.0, CHI_AIR])
_R2_STAR = np.array([17.0, 21.0, 3.0, 30.0, 0.0])
# Standard deviation of a subject's value over the tabulated one.
_CHI_SPREAD = np.array([0.2, 0.15, 0.1, 0.0, 0.01])
_R2_SPREAD = np.array([0.1, 0.1, 0.2, 0.1, 0.0])
_R2_SPREAD_ALL = 0.12  # of a factor on all of a subject's R2*: shim, hydration, temperature

AGES = (45.0, 90.0)  # years
# Non-heme iron in mg per 100 g of fresh tissue at an age in years: most * (1 - exp(-rate * age)) + least,
# after Hallgren and Sourander, for caudate, putamen and pallidum. For thalamus, red nucleus, substantia nigra
# and dentate they give means of adults; the dentate's, 10.35, is raised to what its susceptibility in vivo
# (0.152 ppm, Marques) asks for. QSM finds the last three to rise with age; by how much is our choice.
_IRON_MOST = np.array([9.66, 14.62, 21.41, 0.0, 0.0, 0.0, 0.0])
_IRON_RATE = np.array([0.05, 0.04, 0.09, 0.0, 0.0, 0.0, 0.0])
_IRON_LEAST = np.array([0.33, 0.46, 0.37, 4.76, 19.48, 18.46, 20.0])
_IRON_RISE = np.array([0.0, 0.0, 0.0, 0.0, 0.004, 0.004, 0.004])  # share per year, from 60 on
_IRON_SPREAD = np.array([0.23, 0.25, 0.16, 0.24, 0.25, 0.25, 0.25])  # theirs, at most a quarter
# Straight lines through Marques' nuclei (chi 0.131 and 0.020 ppm, R2* 40 and 21 1/s in pallidum and thalamus,
# with the iron of an age of 30) have slopes of 0.0071 and 1.2; Langkammer et al. 2012 found 0.0097 ppm.
_CHI_OF_IRON = (-0.014, 0.0080)  # ppm, ppm per mg / 100 g
_R2_STAR_OF_IRON = (15.0, 1.3)  # 1/s at 3 T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TissueValues:
    """One subject's tissue values: (12,) each, in the order gray, white, CSF, soft, air, NUCLEI."""

    chi_ppm: jax.Array
    r2_star: jax.Array  # 1/s at the subject's field strength
    contrast: Contrast
    atrophy: jax.Array  # () 0..1
    hyperintensity: jax.Array  # () threshold on the prior of white-matter hyperintensities
    texture: jax.Array  # (x, y, z, 3) on the texture's lattice: chi in ppm, relative signal, lesion threshold
    artery_signal: jax.Array  # () of the arterial prior, over the tissue's
    siderosis: jax.Array  # (4,) pack mm of its center and its radius, 0: none
    siderosis_ppm: jax.Array  # ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadVolume:
    """A subject's tissues on the pack's grid."""

    values: jax.Array  # (X, Y, Z, 4): chi in ppm (air is +9.4), R2* in 1/s, signal, fraction of sinus blood
    code: jax.Array  # (X, Y, Z) uint8 region code
    mimic: jax.Array  # (X, Y, Z) uint8 MimicKind of what tissue makes


def texture_shape(anatomy: head.PackedAnatomy) -> tuple[int, int, int]:
    """Points of the texture's lattice."""
    x, y, z = (int(np.ceil((n - 1) / TEXTURE_VOXELS)) + 1 for n in anatomy.words.shape[:3])
    return (x, y, z)


def draw_age(key: jax.Array, tier: Tier) -> tuple[jax.Array, jax.Array]:
    """A subject's age in years, within `AGES`, and how far the brain is shrunk, 0..1: half of it by age."""
    k_age, k_atrophy = jax.random.split(key)
    age = jax.random.uniform(k_age, minval=AGES[0], maxval=AGES[1])
    return age, tier.atrophy * 0.5 * (_elderly(age) + jax.random.uniform(k_atrophy))


def _elderly(age: jax.Array) -> jax.Array:
    return (age - AGES[0]) / (AGES[1] - AGES[0])


def iron_mg(age: jax.Array) -> jax.Array:
    """Mean non-heme iron of NUCLEI (7,), mg per 100 g of fresh tissue, at an age in years."""
    grown = _IRON_MOST * (1.0 - jnp.exp(-_IRON_RATE * age)) + _IRON_LEAST
    return grown * (1.0 + _IRON_RISE * (age - 60.0))


def draw_tissue(
    key: jax.Array,
    anatomy: head.PackedAnatomy,
    b0_t: jax.Array,
    tr_ms: jax.Array,
    flip_deg: jax.Array,
    age: jax.Array,
    atrophy: jax.Array,
    tier: Tier,
) -> TissueValues:
    """A subject's values; R2* grows in proportion to the field, white-matter lesions with age."""
    # The number of keys and the place of each are part of the phantom's version: another split changes every
    # subject.
    keys = jax.random.split(key, 11)
    iron = _vary(keys[0], iron_mg(age), _IRON_SPREAD)
    shape = (*texture_shape(anatomy), 3)
    fine = smooth_noise(keys[1], shape, sigma=0.6)
    coarse = smooth_noise(keys[2], shape, sigma=3.0)
    texture = fine * jnp.array([0.006, 0.012, 0.1]) + coarse * jnp.array([0.008, 0.02, 0.05])
    load = tier.hyperintensity * 0.5 * (_elderly(age) + jax.random.uniform(keys[3]))
    # fast flow makes arteries bright, or dephases them to a void
    void = jax.random.uniform(keys[4]) < tier.artery_void
    bright = jax.random.uniform(keys[5])
    artery = jnp.where(void, 0.4 * bright, 1.0 + 0.4 * bright)
    chi = _vary(keys[6], _CHI_PPM, _CHI_SPREAD)
    r2_star = _vary(keys[7], _R2_STAR, _R2_SPREAD)
    all_r2_star = _vary(keys[10], np.ones(1), _R2_SPREAD_ALL)
    r2_star = jnp.concatenate([r2_star, _R2_STAR_OF_IRON[0] + _R2_STAR_OF_IRON[1] * iron])
    return TissueValues(
        chi_ppm=jnp.concatenate([chi, _CHI_OF_IRON[0] + _CHI_OF_IRON[1] * iron]),
        r2_star=r2_star * all_r2_star * (b0_t / 3.0),
        contrast=draw_contrast(keys[8], tr_ms, flip_deg, b0_t),
        atrophy=atrophy,
        hyperintensity=0.85 - 0.65 * load,
        texture=texture,
        artery_signal=artery,
        **_draw_siderosis(keys[9], anatomy, tier),
    )


def _draw_siderosis(key: jax.Array, anatomy: head.PackedAnatomy, tier: Tier) -> dict[str, jax.Array]:
    """The two fields of `TissueValues`: a focus of superficial siderosis over the convexity."""
    k_present, k_place, k_radius, k_chi = jax.random.split(key, 4)
    # upwards and to the sides, where superficial siderosis lies; scaled to about a brain's half axes in mm
    direction = jax.random.normal(k_place, (3,)) * jnp.array([1.0, 1.0, 0.5]) + jnp.array([0.0, 0.0, 0.7])
    direction = direction / jnp.linalg.norm(direction)
    center = anatomy.center_mm + direction * jnp.array([60.0, 78.0, 58.0])
    present = jax.random.uniform(k_present) < tier.siderosis
    radius = jnp.where(present, jax.random.uniform(k_radius, minval=12.0, maxval=28.0), 0.0)
    chi_ppm = jax.random.uniform(k_chi, minval=0.3, maxval=0.9)
    return {"siderosis": jnp.append(center, radius), "siderosis_ppm": chi_ppm}


def mix_tissue(
    channels: jax.Array, texture: jax.Array, siderotic: jax.Array, values: TissueValues
) -> jax.Array:
    """chi, R2*, signal and fraction of sinus blood (P, 4) from channels (P, bytes over 255).

    texture (P, 3); siderotic (P,): how far the cortex' surface is stained there, 0..1.
    """
    # Nuclei take their share of a voxel first, and gray, white, CSF, soft tissue and air divide the rest;
    # fractions of nuclei that overlap in the atlas are scaled to 1.
    nuclei = channels[:, jnp.array(head.NUCLEI)]
    covered = jnp.minimum(jnp.sum(nuclei, axis=1, keepdims=True), 1.0)
    nuclei = nuclei / jnp.maximum(jnp.sum(nuclei, axis=1, keepdims=True), 1.0)
    base = head.shrink_cortex(channels, values.atrophy)
    fractions = jnp.concatenate([base * (1.0 - covered), nuclei], axis=1)

    t1 = channels[:, Channel.T1]
    soft = fractions[:, Channel.SOFT_TISSUE]
    brain = 1.0 - soft - fractions[:, Channel.AIR]
    bone = soft * jnp.clip(1.0 - 2.5 * t1, 0.0, 1.0)  # dark in T1: skull
    expected_t1 = fractions[:, :3] @ jnp.array([0.62, 0.9, 0.25]) + 0.72 * covered[:, 0]
    deviation = jnp.clip(t1 - expected_t1, -0.3, 0.3) * brain  # the texture of the head itself

    threshold = values.hyperintensity + texture[:, 2]
    hyper = jnp.clip((channels[:, Channel.LESION_PRIOR] - threshold) / 0.1, 0.0, 1.0)
    hyper = hyper * fractions[:, Channel.WHITE_MATTER]
    chi = fractions @ values.chi_ppm + brain * (texture[:, 0] + 0.02 * deviation) + 0.025 * hyper - 1.0 * bone
    r2_star = fractions @ values.r2_star + 60.0 * bone - 5.0 * hyper
    signal = fractions @ values.contrast.signal + 0.85 * jnp.clip(t1, 0.0, 1.0) * soft
    # The deviations of the T1 image are those of T1; lesions have more water and a T1 that is 40 % longer.
    short = values.contrast.t1_weighting
    signal = signal * (
        1.0 + brain * (texture[:, 1] + 0.3 * short * deviation) + (0.12 - 0.34 * short) * hyper
    )

    stain = siderotic * channels[:, head.Extra.PIAL] * brain
    chi = chi + values.siderosis_ppm * stain
    r2_star = r2_star + 60.0 * stain

    # The vessel prior holds the dural sinuses behind and above, the circle of Willis below and in front.
    prior, venous = channels[:, Channel.VESSEL_PRIOR], channels[:, head.Extra.VENOUS]
    sinus = jnp.clip((prior - 0.3) / 0.4, 0.0, 1.0) * venous
    # The prior is a mean over many people: only its core is as narrow as an artery.
    artery = jnp.clip((prior - ARTERIAL_CORE) / 0.2, 0.0, 1.0) * (1.0 - venous)
    signal = signal * (1.0 + (values.artery_signal - 1.0) * artery)
    return jnp.stack([chi, r2_star, signal, sinus], axis=1)


def _labels(
    channels: jax.Array, code: jax.Array, siderotic: jax.Array, atrophy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Region code after atrophy, and the mimic that tissue makes: uint8 (P,) each."""
    region = region_of(code)
    # later kinds overwrite earlier ones: the more specific structure names the voxel
    base = head.shrink_cortex(channels, atrophy)
    cortex = (region >= Region.FRONTAL) & (region <= Region.INSULA) | (region == Region.CEREBELLUM)
    now_csf = cortex & (base[:, Channel.CSF] > 0.5)
    code = jnp.where(now_csf, code - region + Region.SULCAL_CSF, code).astype(jnp.uint8)

    brain = region != Region.OUTSIDE
    prior, venous = channels[:, Channel.VESSEL_PRIOR], channels[:, head.Extra.VENOUS] > 0.5
    iron = jnp.sum(channels[:, jnp.array(IRON_RICH)], axis=1) > 0.5
    mimic = jnp.where(brain & (channels[:, head.Extra.AIR_NEAR] > 0.02), int(MimicKind.AIR_TISSUE_BORDER), 0)
    mimic = jnp.where(iron, int(MimicKind.IRON_NUCLEUS), mimic)
    mimic = jnp.where((prior > 0.5) & venous, int(MimicKind.SINUS), mimic)
    mimic = jnp.where((prior > ARTERIAL_CORE) & ~venous, int(MimicKind.ARTERY), mimic)
    stained = brain & (siderotic * channels[:, head.Extra.PIAL] > 0.4)
    return code, jnp.where(stained, int(MimicKind.SUPERFICIAL_SIDEROSIS), mimic).astype(jnp.uint8)


def head_volume(anatomy: head.PackedAnatomy, values: TissueValues) -> HeadVolume:
    """A subject's tissues on the pack's grid, plane by plane to stay in the cache."""
    # Mixed once per subject on the pack's grid: four numbers per voxel are then interpolated to the image
    # instead of fifteen fractions, which is what most of a simulation's time went to.
    shape = anatomy.words.shape[:3]
    wx, wy, wz = (
        cubic_weights(jnp.arange(n) / TEXTURE_VOXELS, m)
        for n, m in zip(shape, texture_shape(anatomy), strict=True)
    )
    texture = jnp.einsum("yj,zk,ijkc->iyzc", wy, wz, values.texture, optimize="optimal")
    focus = anatomy.to_index[:, :3] @ values.siderosis[:3] + anatomy.to_index[:, 3]
    reach = values.siderosis[3] * jnp.abs(anatomy.to_index[0, 0])
    away = (jnp.arange(shape[1])[:, None] - focus[1]) ** 2 + (jnp.arange(shape[2]) - focus[2]) ** 2

    def plane(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        words, weights, x = part
        data = head.unpack(words.reshape(-1, words.shape[-1]))
        channels = data.astype(jnp.float32) / 255.0
        grain = jnp.tensordot(weights, texture, axes=1).reshape(-1, 3)
        distance = jnp.sqrt(away.reshape(-1) + (x - focus[0]) ** 2)
        siderotic = jnp.clip((reach - distance) / 4.0, 0.0, 1.0)
        code, mimic = _labels(channels, data[:, head.Extra.CODE], siderotic, values.atrophy)
        return mix_tissue(channels, grain, siderotic, values), code, mimic

    parts = (anatomy.words, wx, jnp.arange(shape[0], dtype=jnp.float32))
    mixed, code, mimic = jax.lax.map(plane, parts)
    return HeadVolume(mixed.reshape(*shape, 4), code.reshape(shape), mimic.reshape(shape))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TissueMaps:
    """(X, Y, Z) on the simulation grid."""

    chi_ppm: jax.Array  # against soft tissue: air is +9.4
    r2_star: jax.Array  # 1/s
    signal: jax.Array  # without relaxation
    sinus: jax.Array  # fraction of the venous blood of sinuses


def tissue_maps(anatomy: head.PackedAnatomy, volume: HeadVolume, pose: head.Pose, grid: Grid) -> TissueMaps:
    """The subject's tissue on the simulation grid, linear between the pack's voxels."""

    def sample(points: jax.Array) -> jax.Array:
        return linear_at(volume.values, head.voxel_index(anatomy, points))

    values = head.for_each_plane(pose, grid, sample).reshape(*grid.shape, 4)
    return TissueMaps(*(values[..., c] for c in range(4)))


def label_maps(
    anatomy: head.PackedAnatomy, volume: HeadVolume, pose: head.Pose, grid: Grid
) -> tuple[jax.Array, jax.Array]:
    """Region codes and the mimics that tissue makes on the acquired grid, uint8 (X, Y, Z) each; nearest."""
    nx, ny, nz = volume.code.shape
    # both labels in one number, so that each voxel is looked up once
    both = volume.code.astype(jnp.uint16) + (volume.mimic.astype(jnp.uint16) << 8)
    rows = both.reshape(-1)

    def sample(points: jax.Array) -> jax.Array:
        index = jnp.round(head.voxel_index(anatomy, points)).astype(jnp.int32)
        index = jnp.clip(index, 0, jnp.array([nx - 1, ny - 1, nz - 1]))
        return rows[(index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]]

    labels = head.for_each_plane(pose, grid, sample).reshape(grid.shape)
    return (labels & 0xFF).astype(jnp.uint8), (labels >> 8).astype(jnp.uint8)
