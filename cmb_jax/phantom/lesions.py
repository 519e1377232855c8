"""Microbleeds and their focal mimics: where they lie in a subject, how large and how strong they are.

All are ellipsoids of a susceptibility of their own, with a true size and an apparent one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.field import Inclusions, phase_per_ppm
from cmb_jax.phantom.head import (
    HeadMaps,
    blur,
    codes_at,
    draw_voxels,
    in_regions,
    sample_head,
    tissue_mask,
    to_pack,
)
from cmb_jax.phantom.settings import Tier
from cmb_jax.phantom.types import CALCIFICATIONS, CMB_KIND, MimicKind

MAX_APPARENT_MM = 10.0
MAX_CHI_PPM = 2.5
PHI0_RAD = 1.5  # a voxel's phase counts as seen from here on
SHARP_MM = 1.8  # what blooms to more than this across has its border where the phase gets steep


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Ellipsoids in the image frame, padded; `valid` marks the real ones."""

    center_mm: jax.Array  # (N, 3)
    radii_mm: jax.Array  # (N, 3)
    chi_ppm: jax.Array  # (N,) against the surroundings
    r2_star: jax.Array  # (N,) added, 1/s at 3 T
    kind: jax.Array  # (N,) int32
    code: jax.Array  # (N,) uint8 region code at the center
    valid: jax.Array  # (N,) bool

    @property
    def mean_radius_mm(self) -> jax.Array:
        """(N,) geometric mean of the radii."""
        return jnp.prod(self.radii_mm, axis=1) ** (1 / 3)

    def inclusions(self, r2_factor: jax.Array | float, signal_drop: float) -> Inclusions:
        """What they do to the echo: added R2* is `r2_factor` times that at 3 T."""
        drop = jnp.full(self.chi_ppm.shape, signal_drop)
        decay = self.r2_star * r2_factor
        return Inclusions(self.center_mm, self.radii_mm, self.chi_ppm, decay, drop, self.valid)


def blooming(te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent over true radius of a small ball: max(1, (2 pi gammabar B0 TE dchi / (3 phi0))^(1/3)).

    Where the dipole's phase on the axis, (2/3) 2 pi gammabar B0 TE dchi (a / r)^3, falls to 2 phi0.
    """
    return jnp.maximum(1.0, (phase_per_ppm(te_ms, b0_t) * jnp.abs(chi_ppm) / (3.0 * PHI0_RAD)) ** (1.0 / 3.0))


def seen_mm(true_mm: jax.Array, te_ms: jax.Array, b0_t: jax.Array, chi_ppm: jax.Array) -> jax.Array:
    """Apparent diameters of balls of true diameters in mm: full width of the void at half its depth.

    That of a small ball is its own times `blooming`. One that would then be d mm across, more than
    `SHARP_MM`, ends where the spins of a voxel point apart: where its phase, chi a^3 / r^3, changes by a
    fixed amount per millimeter, chi a^3 / r^4. It is (SHARP_MM d^3)^(1/4) across. At most `MAX_APPARENT_MM`
    unless the body itself is larger.
    """
    bloomed = true_mm * blooming(te_ms, b0_t, chi_ppm)
    steep = (SHARP_MM * bloomed**3) ** 0.25
    return jnp.maximum(true_mm, jnp.minimum(jnp.minimum(bloomed, steep), MAX_APPARENT_MM))


def bloomed_mm(apparent_mm: jax.Array | float) -> jax.Array:
    """True diameter times `blooming` of what is to look `apparent_mm` across: the inverse of `seen_mm`."""
    return jnp.maximum(apparent_mm, (apparent_mm**4 / SHARP_MM) ** (1 / 3))


def apparent_diameters(bodies: Bodies, te_ms: jax.Array, b0_t: jax.Array) -> jax.Array:
    """(N,) mm: `seen_mm` of the balls of the bodies' volumes."""
    return seen_mm(2 * bodies.mean_radius_mm, te_ms, b0_t, bodies.chi_ppm)


def log_normal(key: jax.Array, shape: tuple[int, ...], median: float, sigma: float, low, high) -> jax.Array:
    """Clipped log-normal draws."""
    return jnp.clip(median * jnp.exp(sigma * jax.random.normal(key, shape)), low, high)


def ellipsoids(key: jax.Array, radius_mm: jax.Array, spread: float) -> jax.Array:
    """(N, 3) radii of randomly squeezed balls of the same volume as those of radius (N,)."""
    squeeze = jnp.clip(spread * jax.random.normal(key, (*radius_mm.shape, 3)), -2 * spread, 2 * spread)
    return radius_mm[:, None] * jnp.exp(squeeze - jnp.mean(squeeze, axis=1, keepdims=True))


def _region_codes(head: HeadMaps, points_mm: jax.Array) -> jax.Array:
    """(P,) uint8 region code at image points (P, 3)."""
    return codes_at(head.anatomy, to_pack(head.pose, points_mm))


def join(*bodies: Any) -> Any:
    """All bodies, of one dataclass, in one: their arrays end to end."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *bodies)


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
    # a Poisson count whose rate is gamma-distributed: negative binomial, with the heavy tail of patients
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


def _accept(
    points: jax.Array, reach_mm: jax.Array, gap_mm: jax.Array, wanted: jax.Array, usable: jax.Array,
    taken: jax.Array, taken_reach_mm: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Accept candidates in turn: their indices (MAX_CMBS,) and which slots are filled (MAX_CMBS,).

    A candidate is taken while fewer than `wanted` are, if it is usable and its apparent border, reach_mm from
    its center, keeps its gap_mm from those of all before it and of the `taken` (T, 3).
    """
    # In turn, because whether a candidate has room depends on those accepted before it. How many that are is
    # not static: all MAX_CMBS slots are there from the start and are filled one by one.
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


def _in_tissue(head: HeadMaps, points: jax.Array) -> jax.Array:
    """(P,) whether a point and at least four of six neighbors 1.2 mm away lie in gray or white matter."""
    # two neighbors may lie outside: cortex is thin, and microbleeds occur in it
    around = jnp.concatenate([jnp.zeros((1, 3)), 1.2 * jnp.eye(3), -1.2 * jnp.eye(3)])
    probes = (points[:, None] + around).reshape(-1, 3)
    channels, code = sample_head(head.anatomy, to_pack(head.pose, probes), head.atrophy)
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
    # Blooming depends on chi times volume: what a radius lacks, susceptibility can make up, within limits.
    needed = (floor / radius) ** 3 * 3 * PHI0_RAD / phase_per_ppm(te_ms, b0_t)
    chi = jnp.where(radius < floor, jnp.clip(needed, chi, jnp.maximum(chi, MAX_CHI_PPM)), chi)
    radius = jnp.maximum(radius, floor / blooming(te_ms, b0_t, chi))
    return jnp.minimum(radius, most / blooming(te_ms, b0_t, chi)), chi


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionDraw:
    """What the settings say about the microbleeds, as numbers."""

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
    uniform = jnp.exp(jax.random.uniform(keys[1], shape, minval=jnp.log(low), maxval=jnp.log(high) + 1e-6))
    chi = log_normal(keys[2], shape, 0.9, 0.5, 0.3, MAX_CHI_PPM)
    radius = jnp.where(draw.exact, uniform, clear) / 2
    seen, stronger = _make_visible(radius, chi, tier.min_apparent_mm, te_ms, b0_t)
    radius, chi = jnp.where(draw.exact, radius, seen), jnp.where(draw.exact, chi, stronger)

    faint = (jax.random.uniform(keys[3], shape) < tier.faint_share) & ~draw.exact
    small = jax.random.uniform(keys[4], shape, minval=_FAINT_DIAMETERS_MM[0], maxval=_FAINT_DIAMETERS_MM[1])
    weak = jax.random.uniform(keys[5], shape, minval=_FAINT_CHI_PPM[0], maxval=_FAINT_CHI_PPM[1])
    return jnp.where(faint, small / 2, radius), jnp.where(faint, weak, chi)


def draw_microbleeds(
    key: jax.Array,
    head: HeadMaps,
    others: Bodies,
    te_ms: jax.Array,
    b0_t: jax.Array,
    draw: LesionDraw,
    tier: Tier,
) -> Bodies:
    """Microbleeds of a subject (MAX_CMBS slots), apart from each other and from the `others`.

    Lobar, deep and infratentorial in the mean proportion 60 : 20 : 20, which varies much from subject to
    subject. Apparent borders keep a distance of 3 mm or more, one in ten only the settings' least distance.
    """
    keys = jax.random.split(key, 11)
    wanted = draw_count(keys[0], draw.mean_cmbs, draw.patient_like)
    # the parameters of a Dirichlet draw are its mean proportions times how little it varies (4 in all)
    share = jax.random.dirichlet(keys[1], jnp.array([2.4, 0.8, 0.8]))
    weights = _zone_weights(head)
    there = jnp.sum(weights, axis=(1, 2, 3)) > 0
    zone = jax.random.categorical(keys[2], jnp.log(share * there + 1e-9), shape=(_CANDIDATES,))
    # Every candidate is drawn once per zone and its zone picks one: shapes do not depend on the draw.
    points = jnp.stack(
        [draw_voxels(k, w, head.grid, _CANDIDATES) for k, w in zip(keys[3:6], weights, strict=True)]
    )
    points = points[zone, jnp.arange(_CANDIDATES)]
    usable = _in_tissue(head, points) & there[zone]

    radius, chi = _sizes(keys[6], te_ms, b0_t, draw, tier)
    reach = seen_mm(2 * radius, te_ms, b0_t, chi) / 2
    clustered = jax.random.uniform(keys[7], (_CANDIDATES,)) < _CLUSTERED
    gap = jnp.where(clustered | (draw.gap_mm < 0), draw.gap_mm, jnp.maximum(draw.gap_mm, 3.0))
    other_reach = jnp.where(others.valid, apparent_diameters(others, te_ms, b0_t) / 2, -1e6)
    chosen, valid = _accept(points, reach, gap, wanted, usable, others.center_mm, other_reach)

    center = jnp.where(valid[:, None], points[chosen], 0.0)
    return Bodies(
        center,
        ellipsoids(keys[8], radius[chosen], 0.1),
        chi[chosen],
        jax.random.uniform(keys[9], (MAX_CMBS,), minval=50.0, maxval=200.0),
        jnp.full((MAX_CMBS,), CMB_KIND, jnp.int32),
        _region_codes(head, center),
        valid,
    )


MAX_PER_KIND = 8
_PAIRED = (0, 1)  # of CALCIFICATIONS: pallidum and choroid plexus
# Share of subjects with each calcification of old age, about what CT of the elderly shows:
# choroid plexus one half to two thirds, nearly always on both sides; pineal gland 70 %; pallidum few.
_CHOROID, _ONE_SIDED, _PINEAL, _PALLIDUM = 0.6, 0.15, 0.7, 0.12
_PIAL_MEAN, _PARENCHYMAL_MEAN = 0.8, 0.5
_PER_SIDE = MAX_PER_KIND // 2
_GLOMUS_MM = 2.5  # sigma of the specks about their glomus
# Median, least and greatest diameter in mm of a body of each of CALCIFICATIONS
_CALCIFICATION_DIAMETERS_MM = np.array(
    [(1.2, 0.7, 2.2), (1.6, 1.0, 3.0), (3.8, 3.0, 5.0), (2.2, 1.0, 5.0), (2.2, 1.0, 5.0)]
)
CALCIFICATION_R2_STAR = 150.0
CAVERNS = 14  # blood-filled spaces of a cavernoma
_CAVERNOMA_DIAMETERS_MM = (5.0, 14.0)


def _calcification_weights(head: HeadMaps) -> jax.Array:
    """(5, X, Y, Z) in the order of CALCIFICATIONS."""
    x, y, z = (head.mni_mm[..., a] for a in range(3))
    gray, white = head.channels[..., Channel.GRAY_MATTER], head.channels[..., Channel.WHITE_MATTER]
    solid = tissue_mask(head.channels)
    cerebrum = in_regions(head.region, Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)
    pallidum = head.channels[..., Channel.PALLIDUM] ** 2
    atrium = jnp.exp(-(((jnp.abs(x) - 24) / 6) ** 2) - ((y + 40) / 8) ** 2 - ((z - 10) / 10) ** 2)
    choroid = (head.region == Region.VENTRICLE) * atrium
    pineal = jnp.exp(-((x / 2) ** 2) - ((y + 32) / 3) ** 2 - ((z - 1) / 3) ** 2)
    pial = in_regions(head.region, Region.SULCAL_CSF) * blur(gray, 1.0)
    parenchymal = cerebrum * solid * (0.3 + white)
    return jnp.stack([pallidum, choroid, jnp.where(pineal > 1e-3, pineal, 0.0), pial, parenchymal])


def _calcification_counts(key: jax.Array, tier: Tier) -> jax.Array:
    """(5, 2) number of each of CALCIFICATIONS: left and right where paired, else (all, 0)."""
    keys = jax.random.split(key, 8)
    usual = jnp.minimum(tier.calcifications, 1.0)  # what most old people have: not more in hard tiers
    specks = jax.random.randint(keys[0], (2,), 2, _PER_SIDE + 1)
    alone = jax.random.uniform(keys[1]) < _ONE_SIDED
    side = jnp.arange(2) == jax.random.randint(keys[2], (), 0, 2)
    choroid = specks * (jax.random.uniform(keys[3]) < usual * _CHOROID) * (~alone | side)
    pallidum = jax.random.randint(keys[4], (2,), 1, 3)
    pallidum = pallidum * (jax.random.uniform(keys[5]) < tier.calcifications * _PALLIDUM)
    pineal = jax.random.uniform(keys[6]) < usual * _PINEAL
    others = jax.random.poisson(keys[7], jnp.array([_PIAL_MEAN, _PARENCHYMAL_MEAN]) * tier.calcifications)
    single = jnp.concatenate([pineal[None].astype(jnp.int32), jnp.minimum(others, MAX_PER_KIND)])
    return jnp.concatenate(
        [jnp.stack([pallidum, choroid]), jnp.stack([single, jnp.zeros(3, jnp.int32)], axis=1)]
    )


def _both_sides(key: jax.Array, weight: jax.Array, head: HeadMaps) -> jax.Array:
    """(MAX_PER_KIND, 3) points drawn by `weight`: half of them about a place on either side."""
    points = []
    for sign, k in zip((-1, 1), jax.random.split(key), strict=True):
        k_place, k_points = jax.random.split(k)
        there = weight * (sign * head.mni_mm[..., 0] > 0)
        place = draw_voxels(k_place, there, head.grid, 1)[0]
        x, y, z = (
            jnp.exp(-0.5 * ((jnp.asarray(head.grid.axis_mm(a), jnp.float32) - place[a]) / _GLOMUS_MM) ** 2)
            for a in range(3)
        )
        near = there * x[:, None, None] * y[:, None] * z
        points.append(draw_voxels(k_points, near, head.grid, _PER_SIDE))
    return jnp.concatenate(points)


def draw_calcifications(key: jax.Array, head: HeadMaps, tier: Tier) -> Bodies:
    """Calcifications of a subject: MAX_PER_KIND slots of each of CALCIFICATIONS; diamagnetic."""
    keys = jax.random.split(key, 6)
    weights = _calcification_weights(head)
    count = _calcification_counts(keys[0], tier) * (jnp.sum(weights, axis=(1, 2, 3)) > 0)[:, None]
    # Of paired kinds the first half of the slots is on the left, the second on the right.
    slot = jnp.arange(MAX_PER_KIND)
    per_kind = [slot % _PER_SIDE < count[k, slot // _PER_SIDE] for k in _PAIRED]
    valid = jnp.stack([*per_kind, *(slot < count[k, 0] for k in range(len(per_kind), len(CALCIFICATIONS)))])
    kind = jnp.repeat(jnp.asarray([int(k) for k in CALCIFICATIONS], jnp.int32), MAX_PER_KIND)
    paired = [_both_sides(k, weights[i], head) for i, k in zip(_PAIRED, keys[1:3], strict=True)]
    single = [
        draw_voxels(k, w, head.grid, MAX_PER_KIND)
        for k, w in zip(jax.random.split(keys[3], 3), weights[len(paired) :], strict=True)
    ]
    points = jnp.concatenate([*paired, *single])
    k_size, k_shape = jax.random.split(keys[4])
    diameters = np.repeat(_CALCIFICATION_DIAMETERS_MM, MAX_PER_KIND, axis=0)
    median, low, high = jnp.asarray(diameters, jnp.float32).T
    radius = log_normal(k_size, kind.shape, median, 0.3, low, high) / 2
    return Bodies(
        points,
        ellipsoids(k_shape, radius, 0.2),
        -jax.random.uniform(keys[5], kind.shape, minval=1.0, maxval=3.0),
        jnp.full(kind.shape, CALCIFICATION_R2_STAR),
        kind,
        _region_codes(head, points),
        valid.reshape(-1),
    )


def draw_cavernoma(key: jax.Array, head: HeadMaps, tier: Tier) -> tuple[Bodies, Bodies]:
    """A cavernoma as one body (1 slot), and as what is drawn: its `CAVERNS` blood-filled spaces.

    Spaces of old blood of differing susceptibility crowd in a ball of 5 to 14 mm, as on a mulberry.
    """
    keys = jax.random.split(key, 8)
    solid = tissue_mask(head.channels) & (head.region != Region.OUTSIDE)
    center = draw_voxels(keys[0], solid.astype(jnp.float32), head.grid, 1)
    present = (jax.random.uniform(keys[1], (1,)) < tier.cavernoma) & jnp.any(solid)
    low, high = _CAVERNOMA_DIAMETERS_MM
    radius = jax.random.uniform(keys[2], (1,), minval=low, maxval=high) / 2
    code = _region_codes(head, center)
    whole = Bodies(
        center, radius[:, None] * jnp.ones(3), jnp.array([0.8]), jnp.array([60.0]),
        jnp.array([int(MimicKind.CAVERNOMA)], jnp.int32), code, present,
    )  # fmt: skip
    direction = jax.random.normal(keys[3], (CAVERNS, 3))
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    # the cube root spreads places evenly over the volume of a ball; (1 - share) keeps each space inside it
    distance = jax.random.uniform(keys[4], (CAVERNS, 1)) ** (1 / 3)
    share = jax.random.uniform(keys[5], (CAVERNS,), minval=0.25, maxval=0.45)
    spaces = Bodies(
        center + direction * distance * (1.0 - share[:, None]) * radius,
        ellipsoids(keys[6], share * radius, 0.15),
        jax.random.uniform(keys[7], (CAVERNS,), minval=0.3, maxval=1.5),
        jnp.full((CAVERNS,), 60.0),
        jnp.full((CAVERNS,), int(MimicKind.CAVERNOMA), jnp.int32),
        jnp.repeat(code, CAVERNS),
        jnp.repeat(present, CAVERNS),
    )
    return whole, spaces
