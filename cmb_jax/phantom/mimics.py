"""Focal mimics of microbleeds: calcifications and cavernomas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.bodies import Bodies, ellipsoids, log_normal, region_codes
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.head import HeadMaps, blur, draw_voxels, in_regions, tissue_mask
from cmb_jax.phantom.packed import PackedAnatomy
from cmb_jax.phantom.pose import Pose
from cmb_jax.phantom.tiers import Tier
from cmb_jax.phantom.types import CALCIFICATIONS, MimicKind

MAX_PER_KIND = 8
_PAIRED = (0, 1)  # of CALCIFICATIONS: pallidum and choroid plexus
# Share of subjects with each calcification of old age, about what CT of the elderly shows:
# choroid plexus one half to two thirds, nearly always on both sides; pineal gland 70 %; pallidum few.
_CHOROID, _ONE_SIDED, _PINEAL, _PALLIDUM = 0.6, 0.15, 0.7, 0.12
_PIAL_MEAN, _PARENCHYMAL_MEAN = 0.8, 0.5
_PER_SIDE = MAX_PER_KIND // 2
_GLOMUS_MM = 2.5  # sigma of the specks about their glomus
# Median, least and greatest diameter in mm of a body of each of CALCIFICATIONS
_DIAMETERS_MM = np.array(
    [(1.2, 0.7, 2.2), (1.6, 1.0, 3.0), (3.8, 3.0, 5.0), (2.2, 1.0, 5.0), (2.2, 1.0, 5.0)]
)
CALCIFICATION_R2_STAR = 150.0
CAVERNS = 14  # blood-filled spaces of a cavernoma
_CAVERNOMA_DIAMETERS_MM = (5.0, 14.0)


def _weights(head: HeadMaps) -> jax.Array:
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


def _counts(key: jax.Array, tier: Tier) -> jax.Array:
    """(5, 2) bodies of each of CALCIFICATIONS; of what is paired on the left and on the right."""
    keys = jax.random.split(key, 8)
    usual = jnp.minimum(tier.calcifications, 1.0)  # what most old people have is no more in harder tiers
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


def _both_sides(key: jax.Array, weight: jax.Array, head: HeadMaps, grid: Grid) -> jax.Array:
    """(MAX_PER_KIND, 3) points drawn by `weight`: half of them about a place on either side."""
    points = []
    for sign, k in zip((-1, 1), jax.random.split(key), strict=True):
        k_place, k_points = jax.random.split(k)
        there = weight * (sign * head.mni_mm[..., 0] > 0)
        place = draw_voxels(k_place, there, grid, 1)[0]
        x, y, z = (
            jnp.exp(-0.5 * ((jnp.asarray(grid.axis_mm(a), jnp.float32) - place[a]) / _GLOMUS_MM) ** 2)
            for a in range(3)
        )
        near = there * x[:, None, None] * y[:, None] * z
        points.append(draw_voxels(k_points, near, grid, _PER_SIDE))
    return jnp.concatenate(points)


def draw_calcifications(
    key: jax.Array,
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    tier: Tier,
    *,
    lattice: Grid,
    grid: Grid,
) -> Bodies:
    """Calcifications of a subject: MAX_PER_KIND slots of each of CALCIFICATIONS; diamagnetic."""
    keys = jax.random.split(key, 6)
    weights = _weights(head)
    count = _counts(keys[0], tier) * (jnp.sum(weights, axis=(1, 2, 3)) > 0)[:, None]
    # The first half of the slots of what is paired is on the left, the second on the right.
    slot = jnp.arange(MAX_PER_KIND)
    per_kind = [slot % _PER_SIDE < count[k, slot // _PER_SIDE] for k in _PAIRED]
    valid = jnp.stack([*per_kind, *(slot < count[k, 0] for k in range(len(per_kind), len(CALCIFICATIONS)))])
    kind = jnp.repeat(jnp.asarray([int(k) for k in CALCIFICATIONS], jnp.int32), MAX_PER_KIND)
    paired = [_both_sides(k, weights[i], head, grid) for i, k in zip(_PAIRED, keys[1:3], strict=True)]
    single = [
        draw_voxels(k, w, grid, MAX_PER_KIND)
        for k, w in zip(jax.random.split(keys[3], 3), weights[len(paired) :], strict=True)
    ]
    points = jnp.concatenate([*paired, *single])
    k_size, k_shape = jax.random.split(keys[4])
    median, low, high = jnp.asarray(np.repeat(_DIAMETERS_MM, MAX_PER_KIND, axis=0), jnp.float32).T
    radius = log_normal(k_size, kind.shape, median, 0.3, low, high) / 2
    return Bodies(
        points,
        ellipsoids(k_shape, radius, 0.2),
        -jax.random.uniform(keys[5], kind.shape, minval=1.0, maxval=3.0),
        jnp.full(kind.shape, CALCIFICATION_R2_STAR),
        kind,
        region_codes(anatomy, pose, lattice, points),
        valid.reshape(-1),
    )


def draw_cavernoma(
    key: jax.Array,
    anatomy: PackedAnatomy,
    pose: Pose,
    head: HeadMaps,
    tier: Tier,
    *,
    lattice: Grid,
    grid: Grid,
) -> tuple[Bodies, Bodies]:
    """A cavernoma as one body (1 slot), and as what is drawn: its `CAVERNS` blood-filled spaces.

    Spaces of old blood of differing susceptibility crowd in a ball of 5 to 14 mm, as on a mulberry.
    """
    keys = jax.random.split(key, 8)
    solid = tissue_mask(head.channels) & (head.region != Region.OUTSIDE)
    center = draw_voxels(keys[0], solid.astype(jnp.float32), grid, 1)
    there = (jax.random.uniform(keys[1], (1,)) < tier.cavernoma) & jnp.any(solid)
    low, high = _CAVERNOMA_DIAMETERS_MM
    radius = jax.random.uniform(keys[2], (1,), minval=low, maxval=high) / 2
    code = region_codes(anatomy, pose, lattice, center)
    whole = Bodies(
        center, radius[:, None] * jnp.ones(3), jnp.array([0.8]), jnp.array([60.0]),
        jnp.array([int(MimicKind.CAVERNOMA)], jnp.int32), code, there,
    )  # fmt: skip
    way = jax.random.normal(keys[3], (CAVERNS, 3))
    way = way / jnp.linalg.norm(way, axis=1, keepdims=True)
    out = jax.random.uniform(keys[4], (CAVERNS, 1)) ** (1 / 3)
    share = jax.random.uniform(keys[5], (CAVERNS,), minval=0.25, maxval=0.45)
    spaces = Bodies(
        center + way * out * (1.0 - share[:, None]) * radius,
        ellipsoids(keys[6], share * radius, 0.15),
        jax.random.uniform(keys[7], (CAVERNS,), minval=0.3, maxval=1.5),
        jnp.full((CAVERNS,), 60.0),
        jnp.full((CAVERNS,), int(MimicKind.CAVERNOMA), jnp.int32),
        jnp.repeat(code, CAVERNS),
        jnp.repeat(there, CAVERNS),
    )
    return whole, spaces


def join(*bodies: Any) -> Any:
    """All bodies, of one dataclass, in one: their arrays end to end."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *bodies)
