"""Where microbleeds lie in a subject, how large and how strong they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.bodies import (
    MAX_APPARENT_MM,
    MAX_CHI_PPM,
    PHI0_RAD,
    Bodies,
    apparent_diameters,
    bloomed_mm,
    blooming,
    ellipsoids,
    log_normal,
    phase_per_ppm,
    region_codes,
    seen_mm,
)
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.head import HeadMaps, draw_voxels, in_regions, sample_head, tissue_mask
from cmb_jax.phantom.packed import PackedAnatomy
from cmb_jax.phantom.pose import Pose, to_pack
from cmb_jax.phantom.tiers import Tier
from cmb_jax.phantom.types import CMB_KIND

MAX_CMBS = 96
_CANDIDATES = 768  # drawn before the rules of distance and tissue thin them out
_CLUSTERED = 0.1  # share of microbleeds that may lie right beside another
_PATIENT_ZERO, _PATIENT_MEAN, _PATIENT_SHAPE, _PATIENT_MAX = 0.25, 10.0, 0.7, 60
DIAMETERS_MM = (1.0, 5.0)  # true ones, unless the settings say otherwise; faint ones start lower
_FAINT_DIAMETERS_MM = (0.7, 1.6)
_FAINT_CHI_PPM = (0.3, 1.0)


def draw_count(key: jax.Array, mean_cmbs: jax.Array, patient_like: jax.Array) -> jax.Array:
    """How many microbleeds: as in patients (many none, heavy tail), or Poisson about the mean."""
    k_zero, k_rate, k_count, k_mean = jax.random.split(key, 4)
    rate = jax.random.gamma(k_rate, _PATIENT_SHAPE) * (_PATIENT_MEAN / _PATIENT_SHAPE)
    patients = jnp.minimum(1 + jax.random.poisson(k_count, rate), _PATIENT_MAX)
    patients = jnp.where(jax.random.uniform(k_zero) < _PATIENT_ZERO, 0, patients)
    return jnp.where(patient_like, patients, jnp.minimum(jax.random.poisson(k_mean, mean_cmbs), MAX_CMBS))


def _zone_weights(head: HeadMaps) -> jax.Array:
    """(3, X, Y, Z) where lobar, deep and infratentorial microbleeds occur."""
    gray, white = head.channels[..., Channel.GRAY_MATTER], head.channels[..., Channel.WHITE_MATTER]
    solid = tissue_mask(head.channels)
    junction = 0.25 + 3.0 * gray * white + 0.6 * gray  # cortex and gray-white junction
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


def _apart(
    points: jax.Array, reach_mm: jax.Array, gap_mm: jax.Array, wanted: jax.Array, usable: jax.Array,
    taken: jax.Array, taken_reach_mm: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Accept candidates in turn: their indices (MAX_CMBS,) and which slots are filled (MAX_CMBS,).

    A candidate is taken while fewer than `wanted` are, if it is usable and its apparent border, reach_mm from
    its center, keeps its gap_mm from those of all before it and of the `taken` (T, 3).
    """
    clear = jnp.linalg.norm(points[:, None] - taken, axis=2) - reach_mm[:, None] - taken_reach_mm
    usable = usable & (jnp.min(clear, axis=1) >= jnp.maximum(gap_mm, 1.0))

    def step(state, candidate):
        places, reaches, chosen, count = state
        index, point, reach, gap, ok = candidate
        near = jnp.linalg.norm(places - point, axis=1) - reaches - reach
        near = jnp.min(jnp.where(jnp.arange(MAX_CMBS) < count, near, jnp.inf))
        ok = ok & (near >= gap) & (count < wanted)
        slot = jnp.where(ok, count, MAX_CMBS)  # out of range: dropped
        return (
            places.at[slot].set(point, mode="drop"),
            reaches.at[slot].set(reach, mode="drop"),
            chosen.at[slot].set(index, mode="drop"),
            count + ok,
        ), None

    start = (jnp.zeros((MAX_CMBS, 3)), jnp.zeros(MAX_CMBS), jnp.zeros(MAX_CMBS, jnp.int32), jnp.int32(0))
    rows = (jnp.arange(len(points), dtype=jnp.int32), points, reach_mm, gap_mm, usable)
    (_, _, chosen, count), _ = jax.lax.scan(step, start, rows)
    return chosen, jnp.arange(MAX_CMBS) < count


def _in_tissue(
    anatomy: PackedAnatomy, pose: Pose, lattice: Grid, points: jax.Array, atrophy: jax.Array
) -> jax.Array:
    """True where a point and at least four of six neighbors 1.2 mm away lie in gray or white matter."""
    around = jnp.concatenate([jnp.zeros((1, 3)), 1.2 * jnp.eye(3), -1.2 * jnp.eye(3)])
    probes = (points[:, None] + around).reshape(-1, 3)
    channels, code = sample_head(anatomy, to_pack(pose, lattice, probes), atrophy)
    region = (code % 16).astype(jnp.int32).reshape(-1, 7)
    solid = tissue_mask(channels).reshape(-1, 7)
    brain = (region > Region.OUTSIDE) & (region < Region.VENTRICLE)
    return solid[:, 0] & brain[:, 0] & (jnp.sum(solid & brain, axis=1) >= 5)


def _make_visible(
    radius: jax.Array, chi: jax.Array, floor_mm: jax.Array | float, te_ms: jax.Array, b0_t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Strengthen what would stay under floor_mm across, weaken what would grow over 10 mm: radius and chi.

    Susceptibility first, up to 2.5 ppm; then the radius.
    """
    floor, most = bloomed_mm(floor_mm) / 2, bloomed_mm(MAX_APPARENT_MM) / 2
    needed = (floor / radius) ** 3 * 3 * PHI0_RAD / phase_per_ppm(te_ms, b0_t)
    chi = jnp.where(radius < floor, jnp.clip(needed, chi, jnp.maximum(chi, MAX_CHI_PPM)), chi)
    radius = jnp.maximum(radius, floor / blooming(te_ms, b0_t, chi))
    return jnp.minimum(radius, most / blooming(te_ms, b0_t, chi)), chi


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionDraw:
    """What the settings say of the microbleeds, as numbers."""

    mean_cmbs: jax.Array  # () of a Poisson draw
    patient_like: jax.Array  # (): counts as in patients instead
    diameters_mm: jax.Array  # (2,) smallest and largest true diameter
    exact: jax.Array  # (): diameters uniform in the logarithm within that range, none made visible
    gap_mm: jax.Array  # () between apparent borders, negative: they may overlap


def _sizes(
    key: jax.Array, te_ms: jax.Array, b0_t: jax.Array, draw: LesionDraw, tier: Tier
) -> tuple[jax.Array, jax.Array]:
    """Radius in mm and susceptibility in ppm of every candidate, (_CANDIDATES,) each."""
    keys = jax.random.split(key, 6)
    shape = (_CANDIDATES,)
    low, high = draw.diameters_mm
    clear = log_normal(keys[0], shape, 2.1, 0.35, low, high)
    own = jnp.exp(jax.random.uniform(keys[1], shape, minval=jnp.log(low), maxval=jnp.log(high) + 1e-6))
    chi = log_normal(keys[2], shape, 0.9, 0.5, 0.3, MAX_CHI_PPM)
    radius = jnp.where(draw.exact, own, clear) / 2
    seen, stronger = _make_visible(radius, chi, tier.min_apparent_mm, te_ms, b0_t)
    radius, chi = jnp.where(draw.exact, radius, seen), jnp.where(draw.exact, chi, stronger)

    faint = (jax.random.uniform(keys[3], shape) < tier.faint_share) & ~draw.exact
    small = jax.random.uniform(keys[4], shape, minval=_FAINT_DIAMETERS_MM[0], maxval=_FAINT_DIAMETERS_MM[1])
    weak = jax.random.uniform(keys[5], shape, minval=_FAINT_CHI_PPM[0], maxval=_FAINT_CHI_PPM[1])
    return jnp.where(faint, small / 2, radius), jnp.where(faint, weak, chi)


def draw_microbleeds(
    key: jax.Array,
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    others: Bodies,
    atrophy: jax.Array,
    te_ms: jax.Array,
    b0_t: jax.Array,
    draw: LesionDraw,
    tier: Tier,
    *,
    lattice: Grid,
    grid: Grid,
) -> Bodies:
    """Microbleeds of a subject (MAX_CMBS slots), apart from each other and from the `others`.

    Lobar, deep and infratentorial in the mean proportion 60 : 20 : 20, which varies much from subject to
    subject. Apparent borders keep a distance of 3 mm or more, one in ten only the settings' least distance.
    """
    keys = jax.random.split(key, 11)
    wanted = draw_count(keys[0], draw.mean_cmbs, draw.patient_like)
    share = jax.random.dirichlet(keys[1], jnp.array([2.4, 0.8, 0.8]))
    weights = _zone_weights(head)
    there = jnp.sum(weights, axis=(1, 2, 3)) > 0
    zone = jax.random.categorical(keys[2], jnp.log(share * there + 1e-9), shape=(_CANDIDATES,))
    points = jnp.stack(
        [draw_voxels(k, w, grid, _CANDIDATES) for k, w in zip(keys[3:6], weights, strict=True)]
    )
    points = points[zone, jnp.arange(_CANDIDATES)]
    usable = _in_tissue(anatomy, pose, lattice, points, atrophy) & there[zone]

    radius, chi = _sizes(keys[6], te_ms, b0_t, draw, tier)
    reach = seen_mm(2 * radius, te_ms, b0_t, chi) / 2
    clustered = jax.random.uniform(keys[7], (_CANDIDATES,)) < _CLUSTERED
    gap = jnp.where(clustered | (draw.gap_mm < 0), draw.gap_mm, jnp.maximum(draw.gap_mm, 3.0))
    other_reach = jnp.where(others.valid, apparent_diameters(others, te_ms, b0_t) / 2, -1e6)
    chosen, valid = _apart(points, reach, gap, wanted, usable, others.center_mm, other_reach)

    center = jnp.where(valid[:, None], points[chosen], 0.0)
    return Bodies(
        center,
        ellipsoids(keys[8], radius[chosen], 0.1),
        chi[chosen],
        jax.random.uniform(keys[9], (MAX_CMBS,), minval=50.0, maxval=200.0),
        jnp.full((MAX_CMBS,), CMB_KIND, jnp.int32),
        region_codes(anatomy, pose, lattice, center),
        valid,
    )
