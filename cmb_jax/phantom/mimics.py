"""Focal mimics of microbleeds: calcifications and cavernomas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.bodies import Bodies, ellipsoids, log_normal, region_codes
from cmb_jax.phantom.geometry import Grid
from cmb_jax.phantom.packed import PackedAnatomy
from cmb_jax.phantom.planning import HeadMaps, blur, draw_voxels, in_regions, tissue_mask
from cmb_jax.phantom.pose import Pose
from cmb_jax.phantom.tiers import Tier
from cmb_jax.phantom.types import CALCIFICATIONS, MimicKind

MAX_PER_KIND = 8
MAX_CALCIFICATIONS = MAX_PER_KIND * len(CALCIFICATIONS)
_MEANS = (0.9, 1.4, 0.7, 0.8, 0.5)  # pallidum, choroid plexus, pineal, pial, parenchymal
_CAPS = (MAX_PER_KIND, MAX_PER_KIND, 1, MAX_PER_KIND, MAX_PER_KIND)
CALCIFICATION_R2_STAR = 150.0
CAVERNS = 14  # blood-filled spaces of a cavernoma
_CAVERNOMA_DIAMETERS_MM = (5.0, 14.0)


def _weights(head: HeadMaps) -> jax.Array:
    """(5, X, Y, Z) in the order of CALCIFICATIONS."""
    x, y, z = (head.mni_mm[..., a] for a in range(3))
    grey, white = head.channels[..., Channel.GREY_MATTER], head.channels[..., Channel.WHITE_MATTER]
    solid = tissue_mask(head.channels)
    cerebrum = in_regions(head.region, Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)
    pallidum = head.channels[..., Channel.PALLIDUM] ** 2
    atrium = jnp.exp(-(((jnp.abs(x) - 24) / 6) ** 2) - ((y + 40) / 8) ** 2 - ((z - 10) / 10) ** 2)
    choroid = (head.region == Region.VENTRICLE) * atrium
    pineal = jnp.exp(-((x / 2) ** 2) - ((y + 32) / 3) ** 2 - ((z - 1) / 3) ** 2)
    pial = in_regions(head.region, Region.SULCAL_CSF) * blur(grey, 1.0)
    parenchymal = cerebrum * solid * (0.3 + white)
    return jnp.stack([pallidum, choroid, jnp.where(pineal > 1e-3, pineal, 0.0), pial, parenchymal])


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
    count = jnp.minimum(
        jax.random.poisson(keys[0], jnp.array(_MEANS) * tier.calcifications), jnp.array(_CAPS)
    )
    weights = _weights(head)
    count = jnp.where(jnp.sum(weights, axis=(1, 2, 3)) > 0, count, 0)
    valid = (jnp.arange(MAX_PER_KIND) < count[:, None]).reshape(-1)
    kind = jnp.repeat(jnp.asarray([int(k) for k in CALCIFICATIONS], jnp.int32), MAX_PER_KIND)
    points = jnp.concatenate(
        [
            draw_voxels(k, w, grid, MAX_PER_KIND)
            for k, w in zip(jax.random.split(keys[1], len(CALCIFICATIONS)), weights, strict=True)
        ]
    )
    large = (kind == MimicKind.CALCIFICATION_PINEAL) | (kind == MimicKind.CALCIFICATION_CHOROID)
    radius = log_normal(keys[2], kind.shape, 2.2, 0.35, 1.0, 5.0) / 2 * jnp.where(large, 1.3, 1.0)
    return Bodies(
        points,
        ellipsoids(keys[3], radius, 0.2),
        -jax.random.uniform(keys[4], kind.shape, minval=1.0, maxval=3.0),
        jnp.full(kind.shape, CALCIFICATION_R2_STAR),
        kind,
        region_codes(anatomy, pose, lattice, points),
        valid,
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
    centre = draw_voxels(keys[0], solid.astype(jnp.float32), grid, 1)
    there = (jax.random.uniform(keys[1], (1,)) < tier.cavernoma) & jnp.any(solid)
    low, high = _CAVERNOMA_DIAMETERS_MM
    radius = jax.random.uniform(keys[2], (1,), minval=low, maxval=high) / 2
    code = region_codes(anatomy, pose, lattice, centre)
    whole = Bodies(
        centre, radius[:, None] * jnp.ones(3), jnp.array([0.8]), jnp.array([60.0]),
        jnp.array([int(MimicKind.CAVERNOMA)], jnp.int32), code, there,
    )  # fmt: skip
    way = jax.random.normal(keys[3], (CAVERNS, 3))
    way = way / jnp.linalg.norm(way, axis=1, keepdims=True)
    out = jax.random.uniform(keys[4], (CAVERNS, 1)) ** (1 / 3)
    share = jax.random.uniform(keys[5], (CAVERNS,), minval=0.25, maxval=0.45)
    spaces = Bodies(
        centre + way * out * (1.0 - share[:, None]) * radius,
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
