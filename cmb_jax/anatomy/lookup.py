"""Where in the brain each candidate lies, whether a microbleed can be there at all, and its MNI place.

The region labels inside the lesion's sphere vote. Nothing leaves the device: fixed lattices of sample points,
nearest-voxel lookup, any number of points in fixed memory.

An affine takes the centers of the regions of a scan, left and right apart, to those of the head mni2009c
(MNI152NLin2009cAsym). No atlas is needed for it, only the table of centers beside this file, which
`tools/mni_accuracy.py --landmarks` writes from the anatomy pack.
"""

import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from cmb_jax.anatomy.regions import (
    NUM_REGIONS,
    ZONE_OF_REGION,
    Region,
    RegionMap,
    Side,
    Zone,
    encode,
    region_of,
    side_of,
)
from cmb_jax.core.detection import RejectReason
from cmb_jax.io.tables import read_rows

MIN_INSIDE_FRACTION = 0.05
"""A candidate stays when at least this share of its sphere is brain tissue. Far below one half: lobar
microbleeds sit at the cortex's edge, and region maps err by about a voxel there. Chosen on validation
subjects (docs/regions.md)."""
REACH_MM = 6.0
"""How far from the center CSF, the zone's border and the walls of a sinus are searched for."""
REACH_STEP_MM = 2.0


def _ball_lattice(radius: int) -> np.ndarray:
    """Integer points (S, 3) of a ball, nearest to the center first."""
    axis = np.arange(-radius, radius + 1)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    squared = np.square(points).sum(axis=1)
    order = np.argsort(squared, kind="stable")
    return points[order][squared[order] <= radius**2]


# Coordinates along three axes, (N,) each; kept apart, because a stacked (3, N) is looked up far slower.
_Columns = tuple[jax.Array, jax.Array, jax.Array]

# 123 sample points in the unit ball: 7 along each axis.
SPHERE_OFFSETS = (_ball_lattice(3) / 3).astype(np.float32)
# Sample points of the search around the center, in mm: 123.
REACH_OFFSETS_MM = (_ball_lattice(round(REACH_MM / REACH_STEP_MM)) * REACH_STEP_MM).astype(np.float32)

_SMALLEST_BATCH = 64
_IS_TISSUE = ZONE_OF_REGION > 0
_IN_ZONE = np.stack([zone == ZONE_OF_REGION for zone in Zone if zone])  # (zones, NUM_REGIONS)
_REASON_OF_REGION = np.zeros(NUM_REGIONS, np.int32)
_REASON_OF_REGION[Region.OUTSIDE] = RejectReason.OUTSIDE_BRAIN
_REASON_OF_REGION[Region.VENTRICLE] = RejectReason.IN_VENTRICLE
_REASON_OF_REGION[Region.SULCAL_CSF] = RejectReason.IN_SULCAL_CSF

# What a code means to the neighbors of a point, as bits.
_CSF, _SKULL, _LOBE_LEFT, _LOBE_RIGHT, _LOBAR, _DEEP, _INFRATENTORIAL, _CEREBELLUM = (
    1 << b for b in range(8)
)
_ANY_ZONE = _LOBAR | _DEEP | _INFRATENTORIAL
_BIT_OF_ZONE = np.array([0, _LOBAR, _DEEP, _INFRATENTORIAL], np.uint8)


def _neighbor_bits(code: int) -> int:
    region, side = code % 16, code // 16
    bits = int(_BIT_OF_ZONE[ZONE_OF_REGION[region]])
    bits |= _CSF if region in (Region.VENTRICLE, Region.SULCAL_CSF) else 0
    bits |= _SKULL if region == Region.OUTSIDE else 0
    bits |= _CEREBELLUM if region == Region.CEREBELLUM else 0
    if bits & _LOBAR:
        bits |= {Side.LEFT: _LOBE_LEFT, Side.RIGHT: _LOBE_RIGHT}.get(Side(side), 0) if side < 3 else 0
    return bits


_NEIGHBOR_OF_CODE = np.array([_neighbor_bits(code) for code in range(256)], np.uint8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Location:
    """The place of each of N points."""

    region: jax.Array  # (N,) int32, anatomy.regions.Region
    side: jax.Array  # (N,) int32, anatomy.regions.Side
    zone: jax.Array  # (N,) int32, anatomy.regions.Zone
    inside_fraction: jax.Array  # (N,) float32: share of the sphere that is brain tissue
    csf_distance_mm: jax.Array  # (N,) float32: center to the nearest CSF; inf beyond REACH_MM
    zone_border_mm: jax.Array  # (N,) float32: center to another zone's nearest tissue; inf beyond REACH_MM
    keep: jax.Array  # (N,) bool
    reason: jax.Array  # (N,) int32, RejectReason


@jax.jit
def anatomical_lookup(
    points_mm: jax.Array, diameters_mm: jax.Array, region_map: jax.Array, inverse_affine: jax.Array
) -> Location:
    """Region, side and zone of lesions, and whether to keep them.

    The sphere of each lesion is sampled at 123 points. The zone is the commonest one among them, the region
    the commonest of that zone, the side the commonest one among that region's samples; where no sample is
    tissue, the commonest of all labels stands instead. OUTSIDE has no side. Ties go to the lower code. A
    lesion is rejected when less than MIN_INSIDE_FRACTION of its samples are tissue; the reason is the
    commonest of the other labels. Samples off the map's grid, and points that are not finite, count as
    OUTSIDE. To allow for an error of the map, add twice that error to the diameters.

    Distances are searched on a lattice of REACH_STEP_MM around the center and are exact to about that. How
    near the next zone is says how sure the zone is: a map that errs by more names another.

    A lesion rejected as outside the brain or in sulcal CSF lies in a sinus when within REACH_MM of it are,
    under the skull (OUTSIDE), lobes of both sides (superior sagittal sinus) or a lobe and the cerebellum
    (transverse sinus), or, at any depth, lobes of both sides and the cerebellum (straight sinus). The rule
    only gives another name: it rejects nothing that would be kept without it.

    Args:
      points_mm: (N, 3) lesion centers (x, y, z), RAS mm.
      diameters_mm: (N,); 0 samples the center alone.
      region_map: (X, Y, Z) uint8 codes of anatomy.regions; voxel centers at integer indices.
      inverse_affine: (4, 4) RAS mm -> voxel index.
    """
    chex.assert_shape(points_mm, (None, 3))
    chex.assert_shape(diameters_mm, (points_mm.shape[0],))
    chex.assert_rank(region_map, 3)
    chex.assert_shape(inverse_affine, (4, 4))
    affine = jnp.asarray(inverse_affine, jnp.float32)
    region_map = jnp.asarray(region_map, jnp.uint8)
    # Axes lead and points are innermost everywhere here: vector units and threads run along the points.
    turned = _rotate(affine, jnp.asarray(points_mm, jnp.float32).T)
    index = (turned[0] + affine[0, 3], turned[1] + affine[1, 3], turned[2] + affine[2, 3])
    radius_mm = 0.5 * jnp.maximum(jnp.asarray(diameters_mm, jnp.float32), 0)

    region_votes, codes = _sphere_votes(region_map, index, radius_mm, _rotate(affine, SPHERE_OFFSETS.T))
    # The zone first: where two regions of one zone meet beside another zone, they do not split its votes.
    tissue_votes = jnp.where(_IS_TISSUE[:, None], region_votes, 0)
    zone_votes = jnp.stack([jnp.sum(jnp.where(of[:, None], region_votes, 0), axis=0) for of in _IN_ZONE])
    zone_of_most = jnp.argmax(zone_votes, axis=0) + 1
    best_votes = jnp.where(ZONE_OF_REGION[:, None] == zone_of_most, tissue_votes, 0)
    other_votes = jnp.where(_IS_TISSUE[:, None], 0, region_votes)
    inside_fraction = jnp.sum(tissue_votes, axis=0, dtype=jnp.float32) / len(SPHERE_OFFSETS)
    other = jnp.argmax(other_votes, axis=0)
    region = jnp.where(inside_fraction > 0, jnp.argmax(best_votes, axis=0), other).astype(jnp.int32)
    zone = jnp.asarray(ZONE_OF_REGION)[region]
    keep = inside_fraction >= MIN_INSIDE_FRACTION
    csf_mm, border_mm, beside_sinus = _look_around(
        region_map, index, zone, _rotate(affine, REACH_OFFSETS_MM.T)
    )
    reason = jnp.asarray(_REASON_OF_REGION)[other]
    finite = jnp.isfinite(index[0]) & jnp.isfinite(index[1]) & jnp.isfinite(index[2])
    in_sinus = beside_sinus & (reason != RejectReason.IN_VENTRICLE) & finite
    reason = jnp.where(in_sinus, RejectReason.IN_SINUS, reason)
    return Location(
        region=region,
        side=_side_of_winner(codes, region),
        zone=zone,
        inside_fraction=inside_fraction,
        csf_distance_mm=csf_mm,
        zone_border_mm=border_mm,
        keep=keep,
        reason=jnp.where(keep, RejectReason.NONE, reason).astype(jnp.int32),
    )


def look_up(points_mm: np.ndarray, diameters_mm: np.ndarray, region_map: RegionMap) -> Location:
    """`anatomical_lookup` from and to NumPy arrays; one compiled program serves many counts.

    Args:
      points_mm: (N, 3) lesion centers, RAS mm.
      diameters_mm: (N,).
      region_map: where they are looked up.
    """
    count = len(points_mm)
    # padded to a power of two: a compiled program for each such size, not for each count
    padding = max(_SMALLEST_BATCH, 1 << (count - 1).bit_length()) - count if count else _SMALLEST_BATCH
    found = anatomical_lookup(
        jnp.asarray(np.pad(np.asarray(points_mm, np.float32).reshape(-1, 3), ((0, padding), (0, 0)))),
        jnp.asarray(np.pad(np.asarray(diameters_mm, np.float32), (0, padding))),
        jnp.asarray(region_map.code),
        jnp.asarray(np.linalg.inv(region_map.affine), jnp.float32),
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], found)


def _rotate(affine: jax.Array, columns: jax.Array | np.ndarray) -> _Columns:
    """The linear part of an affine applied to (3, N) columns.

    Written out, because a matrix unit would round the coordinates to 8 bits.
    """
    x, y, z = columns
    i, j, k = (affine[row, 0] * x + affine[row, 1] * y + affine[row, 2] * z for row in range(3))
    return i, j, k


def _sample(region_map: jax.Array, index: _Columns, beyond: int = 0) -> jax.Array:
    """Values (N,) uint8 of the voxels nearest to voxel positions; `beyond` (OUTSIDE) off the grid."""
    inside = jnp.ones(index[0].shape, bool)
    flat = jnp.zeros(index[0].shape, jnp.int32)
    for position, size in zip(index, region_map.shape, strict=True):
        inside &= (position >= -0.5) & (position < size - 0.5)  # False for NaN
        flat = flat * size + jnp.floor(position + 0.5).astype(jnp.int32)
    code = region_map.reshape(-1).at[jnp.where(inside, flat, 0)].get(mode="promise_in_bounds")
    return jnp.where(inside, code, jnp.uint8(beyond))


def _sphere_votes(
    region_map: jax.Array, index: _Columns, radius_mm: jax.Array, offsets: _Columns
) -> tuple[jax.Array, jax.Array]:
    """Votes (NUM_REGIONS, N) uint8 for each region, and the sampled codes (S, N) uint8.

    `index` are the N centers, `offsets` the S points of the unit ball's lattice, both in voxels.
    """
    # 123 samples: the counts fit in 8 bits, and four of them in a word, which is quicker to add than four.
    words = jnp.arange(NUM_REGIONS // 4, dtype=jnp.uint8)[:, None]

    def step(votes, offset):
        i, j, k = (center + radius_mm * shift for center, shift in zip(index, offset, strict=True))
        code = _sample(region_map, (i, j, k))
        region = region_of(code)
        vote = jnp.left_shift(jnp.uint32(1), (8 * (region % 4)).astype(jnp.uint32))
        return votes + jnp.where(region // 4 == words, vote, jnp.uint32(0)), code

    start = jnp.zeros((NUM_REGIONS // 4, radius_mm.shape[0]), jnp.uint32)
    packed, codes = lax.scan(step, start, offsets)
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)[None, :, None]
    votes = jnp.right_shift(packed[:, None], shifts).astype(jnp.uint8)
    return votes.reshape(NUM_REGIONS, -1), codes


def _side_of_winner(codes: jax.Array, region: jax.Array) -> jax.Array:
    """The commonest side (N,) int32 among the samples (S, N) that voted for `region` (N,)."""
    wanted = jnp.stack([16 * side + region for side in Side]).astype(jnp.uint8)
    # A scan, because a sum over the leading axis would go through memory point by point.
    votes, _ = lax.scan(
        lambda votes, code: (votes + (code == wanted), None), jnp.zeros(wanted.shape, jnp.uint8), codes
    )
    return jnp.where(region == Region.OUTSIDE, Side.NONE, jnp.argmax(votes, axis=0)).astype(jnp.int32)


def _look_around(
    region_map: jax.Array, index: _Columns, zone: jax.Array, offsets: _Columns
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distance to the nearest CSF and to another zone, and whether a sinus would run here, (N,) each.

    `index` are the N centers, `offsets` the lattice, nearest first, both in voxels.
    """
    bits = jnp.asarray(_NEIGHBOR_OF_CODE)[region_map]  # once for the map, not once per sample
    others = _ANY_ZONE & ~jnp.asarray(_BIT_OF_ZONE)[zone]

    def step(carry, sample):
        csf, border, seen = carry
        offset, distance_mm = sample
        i, j, k = (center + shift for center, shift in zip(index, offset, strict=True))
        near = _sample(bits, (i, j, k), _SKULL)
        csf = jnp.minimum(csf, jnp.where(near & _CSF, distance_mm, jnp.inf))
        border = jnp.minimum(border, jnp.where(near & others, distance_mm, jnp.inf))
        return (csf, border, seen | near), None

    far = jnp.full(index[0].shape, jnp.inf, jnp.float32)
    start = (far, far, jnp.zeros(index[0].shape, jnp.uint8))
    distance_mm = np.linalg.norm(REACH_OFFSETS_MM, axis=1)
    (csf, border, seen), _ = lax.scan(step, start, (offsets, distance_mm))
    border = jnp.where(zone == Zone.NONE, jnp.inf, border)

    def has(all_of: int) -> jax.Array:
        return (seen & all_of) == all_of

    both_lobes = _LOBE_LEFT | _LOBE_RIGHT
    lobe = (seen & both_lobes) != 0
    sinus = (has(_SKULL) & (has(both_lobes) | (lobe & has(_CEREBELLUM)))) | has(both_lobes | _CEREBELLUM)
    return csf, border, sinus


SPACE = "MNI152NLin2009cAsym"
FEWEST = 20
"""Landmarks of 28; with fewer a map does not show the whole brain."""
LARGEST_RESIDUAL_MM = 8.0
"""Weighted root mean square; people differ by 2 to 4 mm."""
_VOLUME_RATIO = (0.35, 2.8)  # of a region to that of the template; beyond, it is cut or not what it is called
FILE = Path(__file__).with_name("mni_landmarks.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MniAffine:
    """The way from a scan to MNI space."""

    matrix: np.ndarray  # (4, 4) scan RAS mm -> MNI RAS mm
    landmarks: int
    residual_mm: float  # weighted root mean square over the landmarks

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (..., 3) in RAS mm of the scan -> MNI RAS mm."""
        return points_mm @ self.matrix[:3, :3].T + self.matrix[:3, 3]


Landmarks = dict[int, tuple[np.ndarray, float]]
"""Code of region and side: center (3,) in RAS mm, volume in mm3."""


def landmarks_of(code: np.ndarray, affine: np.ndarray) -> Landmarks:
    """Centers of all regions with a side in a map (X, Y, Z); sulcal CSF is not counted as a region."""
    counts = np.bincount(code.ravel(), minlength=256)
    named = [
        int(each)
        for each in np.flatnonzero(counts)
        if region_of(each) not in (Region.OUTSIDE, Region.SULCAL_CSF) and side_of(each) != Side.NONE
    ]
    centers = ndimage.center_of_mass(np.ones_like(code, np.uint8), code, named)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    return {
        each: (affine[:3, :3] @ np.array(center) + affine[:3, 3], float(counts[each]) * volume)
        for each, center in zip(named, centers, strict=True)
    }


def fit_mni(region_map: RegionMap) -> MniAffine | None:
    """The affine by least squares, each center weighted with the square root of its region's volume.

    None where the map is not trusted, too few regions are whole, or the centers do not fit.
    """
    if not region_map.trusted:
        return None
    there, template = landmarks_of(region_map.code, region_map.affine), template_landmarks()
    low, high = _VOLUME_RATIO
    used = [each for each in template if each in there and low < there[each][1] / template[each][1] < high]
    if len(used) < FEWEST:
        return None
    source = np.array([[*there[each][0], 1.0] for each in used])
    target = np.array([template[each][0] for each in used])
    weight = np.sqrt([template[each][1] for each in used])
    root = np.sqrt(weight)[:, None]
    solved = np.linalg.lstsq(source * root, target * root, rcond=None)[0]
    squares = np.sum((source @ solved - target) ** 2, axis=1)
    residual = float(np.sqrt(np.sum(weight * squares) / np.sum(weight)))
    matrix = np.eye(4)
    matrix[:3] = solved.T
    if residual > LARGEST_RESIDUAL_MM or np.linalg.det(matrix[:3, :3]) <= 0:
        return None
    return MniAffine(matrix=matrix, landmarks=len(used), residual_mm=residual)


@functools.cache
def template_landmarks() -> Landmarks:
    """Those of the head mni2009c."""
    return {
        int(encode(np.asarray(Region[region.upper()]), np.asarray(Side[side.upper()]))): (
            np.array([float(x), float(y), float(z)]),
            float(volume),
        )
        for region, side, x, y, z, volume in read_rows(FILE, ",")[1:]
    }
