"""Where microbleeds and calcifications lie in a subject, how large and how strong they are."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.geometry import Grid, PackedAnatomy, Pose, sample_pack, to_pack
from cmb_jax.phantom.planning import HeadMaps, blur, draw_voxels, in_regions, tissue_mask
from cmb_jax.phantom.protocols import GAMMA_BAR_MHZ_PER_T
from cmb_jax.phantom.types import FOCAL_MIMICS, MimicKind

MAX_CMBS = 96
MAX_PER_MIMIC = 4
MAX_CALCIFICATIONS = MAX_PER_MIMIC * len(FOCAL_MIMICS)
_CANDIDATES = 768  # drawn before the rules of distance and tissue thin them out
_PHI0_RAD = 1.5  # a voxel's phase counts as seen from here on
MAX_APPARENT_MM = 10.0
MIN_APPARENT_MM = 2.0
MAX_CHI_PPM = 2.5
_PATIENT_ZERO, _PATIENT_MEAN, _PATIENT_SHAPE, _PATIENT_MAX = 0.25, 10.0, 0.7, 60


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Ellipsoids in the image frame, padded; `valid` marks the real ones."""

    centre_mm: jax.Array  # (N, 3)
    radii_mm: jax.Array  # (N, 3)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at 3 T
    kind: jax.Array  # (N,) int32
    code: jax.Array  # (N,) uint8 region code at the centre
    valid: jax.Array  # (N,) bool


def blooming(te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent over true radius of a ball: max(1, (2 pi gammabar B0 TE dchi / (3 phi0))^(1/3)).

    Where the dipole's phase on the axis, (2/3) 2 pi gammabar B0 TE dchi (a / r)^3, falls to 2 phi0.
    """
    turns = 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0
    return jnp.maximum(1.0, (turns * jnp.abs(chi_ppm) / (3.0 * _PHI0_RAD)) ** (1.0 / 3.0))


def draw_count(key: jax.Array, mean_cmbs: jax.Array, patient_like: bool) -> jax.Array:
    """How many microbleeds: as in patients (many none, heavy tail), or Poisson about the mean."""
    k_zero, k_rate, k_count = jax.random.split(key, 3)
    if not patient_like:
        return jnp.minimum(jax.random.poisson(k_count, mean_cmbs), MAX_CMBS)
    rate = jax.random.gamma(k_rate, _PATIENT_SHAPE) * (_PATIENT_MEAN / _PATIENT_SHAPE)
    count = jnp.minimum(1 + jax.random.poisson(k_count, rate), _PATIENT_MAX)
    return jnp.where(jax.random.uniform(k_zero) < _PATIENT_ZERO, 0, count)


def _zone_weights(head: HeadMaps) -> jax.Array:
    """(3, X, Y, Z) where lobar, deep and infratentorial microbleeds occur."""
    grey, white = head.channels[..., Channel.GREY_MATTER], head.channels[..., Channel.WHITE_MATTER]
    solid = tissue_mask(head.channels)
    junction = 0.25 + 3.0 * grey * white + 0.6 * grey  # cortex and grey-white junction
    lobar = in_regions(
        head.region, Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL, Region.INSULA
    )
    posterior = 1.0 + 1.6 * (head.region == Region.OCCIPITAL) + 0.4 * (head.region == Region.TEMPORAL)
    nuclei = in_regions(head.region, Region.BASAL_GANGLIA, Region.THALAMUS)
    around = in_regions(
        head.region,
        Region.INTERNAL_CAPSULE,
        Region.EXTERNAL_CAPSULE,
        Region.DEEP_WHITE_MATTER,
        Region.CORPUS_CALLOSUM,
    )
    below = in_regions(head.region, Region.BRAINSTEM, Region.CEREBELLUM)
    return jnp.stack([lobar * posterior * junction, nuclei * 1.0 + around * 0.12, below * 1.0]) * solid


def _far_apart(points: jax.Array, wanted: jax.Array, gap_mm: jax.Array, taken: jax.Array, usable: jax.Array):
    """Accept candidates in turn: (slots, 3) points and (slots,) bool.

    A candidate is taken while fewer than `wanted` are, if it is usable and keeps its own gap_mm from all
    those before it and 7 mm from `taken` (T, 3).
    """

    def step(state, candidate):
        kept, count = state
        point, gap, ok = candidate
        near = jnp.min(
            jnp.where(jnp.arange(MAX_CMBS) < count, jnp.linalg.norm(kept - point, axis=1), jnp.inf)
        )
        ok = ok & (near >= gap) & (jnp.min(jnp.linalg.norm(taken - point, axis=1)) >= 7.0) & (count < wanted)
        kept = jnp.where(ok, kept.at[count].set(point), kept)
        return (kept, count + ok), None

    start = (jnp.full((MAX_CMBS, 3), 1e6), jnp.int32(0))
    (kept, count), _ = jax.lax.scan(step, start, (points, gap_mm, usable))
    return kept, jnp.arange(MAX_CMBS) < count


def _in_tissue(anatomy: PackedAnatomy, pose: Pose, lattice: Grid, points: jax.Array) -> jax.Array:
    """True where a point and at least four of six neighbours 1.2 mm away lie in grey or white matter."""
    around = jnp.concatenate([jnp.zeros((1, 3)), 1.2 * jnp.eye(3), -1.2 * jnp.eye(3)])
    probes = (points[:, None] + around).reshape(-1, 3)
    channels, code = sample_pack(anatomy, to_pack(pose, lattice, probes))
    region = (code % 16).astype(jnp.int32).reshape(-1, 7)
    solid = tissue_mask(channels).reshape(-1, 7)
    brain = (region > Region.OUTSIDE) & (region < Region.VENTRICLE)
    return solid[:, 0] & brain[:, 0] & (jnp.sum(solid & brain, axis=1) >= 5)


def _codes_at(anatomy: PackedAnatomy, pose: Pose, lattice: Grid, points: jax.Array) -> jax.Array:
    return sample_pack(anatomy, to_pack(pose, lattice, points))[1]


def _log_normal(key: jax.Array, shape: tuple[int, ...], median: float, sigma: float, low: float, high: float):
    return jnp.clip(median * jnp.exp(sigma * jax.random.normal(key, shape)), low, high)


def _make_visible(radius: jax.Array, chi: jax.Array, te_ms: jax.Array, b0_t: jax.Array):
    """Strengthen what would stay under 2 mm across, weaken what would grow over 10 mm: radius and chi.

    Susceptibility first, up to 2.5 ppm; then the radius.
    """
    turns = 2 * math.pi * GAMMA_BAR_MHZ_PER_T * b0_t * te_ms / 1000.0
    needed = (MIN_APPARENT_MM / 2 / radius) ** 3 * 3 * _PHI0_RAD / turns
    chi = jnp.where(radius < MIN_APPARENT_MM / 2, jnp.clip(needed, chi, jnp.maximum(chi, MAX_CHI_PPM)), chi)
    radius = jnp.maximum(radius, MIN_APPARENT_MM / 2 / blooming(te_ms, b0_t, chi))
    return jnp.minimum(radius, MAX_APPARENT_MM / 2 / blooming(te_ms, b0_t, chi)), chi


@functools.partial(jax.jit, static_argnames=("lattice", "grid", "patient_like"))
def draw_microbleeds(
    key: jax.Array,
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    taken_mm: jax.Array,
    mean_cmbs: jax.Array,
    te_ms: jax.Array,
    b0_t: jax.Array,
    *,
    lattice: Grid,
    grid: Grid,
    patient_like: bool,
) -> Bodies:
    """Microbleeds of a subject (MAX_CMBS slots), at least 7 mm from the points `taken_mm` (T, 3).

    Lobar, deep and infratentorial in the mean proportion 60 : 20 : 20, which varies much from subject to
    subject. Centres keep 6 mm from each other, one in ten only 4 mm.
    """
    keys = jax.random.split(key, 11)
    wanted = draw_count(keys[0], mean_cmbs, patient_like)
    share = jax.random.dirichlet(keys[1], jnp.array([2.4, 0.8, 0.8]))
    weights = _zone_weights(head)
    zone = jax.random.categorical(keys[2], jnp.log(share + 1e-6), shape=(_CANDIDATES,))
    points = jnp.stack(
        [draw_voxels(k, w, grid, _CANDIDATES) for k, w in zip(keys[3:6], weights, strict=True)]
    )
    points = points[zone, jnp.arange(_CANDIDATES)]
    usable = _in_tissue(anatomy, pose, lattice, points)
    gap = jnp.where(jax.random.uniform(keys[6], (_CANDIDATES,)) < 0.1, 4.0, 6.0)
    kept, valid = _far_apart(points, wanted, gap, taken_mm, usable)

    radius = _log_normal(keys[7], (MAX_CMBS,), 2.1, 0.35, 1.0, 5.0) / 2
    chi = _log_normal(keys[8], (MAX_CMBS,), 0.9, 0.5, 0.3, MAX_CHI_PPM)
    radius, chi = _make_visible(radius, chi, te_ms, b0_t)
    squeeze = jnp.exp(jnp.clip(0.1 * jax.random.normal(keys[9], (MAX_CMBS, 3)), -0.2, 0.2))
    squeeze = squeeze / jnp.prod(squeeze, axis=1, keepdims=True) ** (1 / 3)
    r2_star = jax.random.uniform(keys[10], (MAX_CMBS,), minval=50.0, maxval=200.0)
    centre = jnp.where(valid[:, None], kept, 0.0)
    code = _codes_at(anatomy, pose, lattice, centre)
    return Bodies(
        centre, radius[:, None] * squeeze, chi, r2_star, jnp.zeros(MAX_CMBS, jnp.int32), code, valid
    )


def _calcification_weights(head: HeadMaps) -> jax.Array:
    """(5, X, Y, Z) in the order of FOCAL_MIMICS."""
    x, y, z = (head.pack_mm[..., a] for a in range(3))
    grey, white = head.channels[..., Channel.GREY_MATTER], head.channels[..., Channel.WHITE_MATTER]
    solid = tissue_mask(head.channels)
    cerebrum = in_regions(head.region, Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)
    pallidum = head.channels[..., Channel.PALLIDUM] ** 2
    atrium = jnp.exp(-(((jnp.abs(x) - 24) / 6) ** 2) - ((y + 40) / 8) ** 2 - ((z - 10) / 10) ** 2)
    choroid = (head.region == Region.VENTRICLE) * atrium
    pineal = jnp.exp(-((x / 2) ** 2) - ((y + 32) / 3) ** 2 - ((z - 1) / 3) ** 2)
    pial = in_regions(head.region, Region.SULCAL_CSF) * blur(grey, 1.0)
    parenchymal = cerebrum * solid * (0.3 + white)
    # A little everywhere in the brain's middle: in a pack without the structure the draw stays defined.
    return jnp.stack([pallidum, choroid, pineal, pial, parenchymal]) + 1e-9 * jnp.exp(-(x**2 + y**2) / 400)


@functools.partial(jax.jit, static_argnames=("lattice", "grid"))
def draw_calcifications(
    key: jax.Array, anatomy: PackedAnatomy, pose: Pose, head: HeadMaps, *, lattice: Grid, grid: Grid
) -> Bodies:
    """Calcifications of a subject: MAX_PER_MIMIC slots of each of FOCAL_MIMICS; diamagnetic."""
    keys = jax.random.split(key, 5)
    means = jnp.array([0.9, 1.4, 0.7, 0.8, 0.5])  # pallidum, choroid plexus, pineal, pial, parenchymal
    caps = jnp.array([MAX_PER_MIMIC, MAX_PER_MIMIC, 1, MAX_PER_MIMIC, MAX_PER_MIMIC])
    count = jnp.minimum(jax.random.poisson(keys[0], means), caps)
    valid = (jnp.arange(MAX_PER_MIMIC) < count[:, None]).reshape(-1)
    kind = jnp.repeat(jnp.asarray([int(k) for k in FOCAL_MIMICS], jnp.int32), MAX_PER_MIMIC)
    weights = _calcification_weights(head)
    points = jnp.concatenate(
        [
            draw_voxels(k, w, grid, MAX_PER_MIMIC)
            for k, w in zip(jax.random.split(keys[1], len(FOCAL_MIMICS)), weights, strict=True)
        ]
    )
    large = (kind == MimicKind.CALCIFICATION_PINEAL) | (kind == MimicKind.CALCIFICATION_CHOROID)
    radius = _log_normal(keys[2], kind.shape, 2.2, 0.35, 1.0, 5.0) / 2 * jnp.where(large, 1.3, 1.0)
    squeeze = jnp.exp(jnp.clip(0.2 * jax.random.normal(keys[3], (kind.shape[0], 3)), -0.4, 0.4))
    chi = -jax.random.uniform(keys[4], kind.shape, minval=1.0, maxval=3.0)
    code = _codes_at(anatomy, pose, lattice, points)
    r2_star = jnp.full(kind.shape, 150.0)
    return Bodies(points, radius[:, None] * squeeze, chi, r2_star, kind, code, valid)
