"""A subject's head on the device: the anatomy pack, its pose in the image, maps on which lesions are placed.

Frames: *pack* is the RAS mm of the pack, *image* the mm along the image's axes; MNI coordinates are those of
MNI152NLin2009cAsym. A pose maps image points to pack points: q = center + L p + t + u(p), with u the
displacement of a stationary velocity field (Arsigny et al. 2006), hence a diffeomorphism.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack, Channel, Lattice
from cmb_jax.anatomy.regions import Region, region_of
from cmb_jax.phantom.geometry import (
    Grid,
    grid_points,
    interpolate_lattice,
    linear_at,
    rotation_matrix,
    smooth_noise,
    widen_lattice,
)

STANDARD_SHAPE = (193, 229, 193)  # packs of 1 mm are cut or padded to this: one compiled program for all
COARSE_MM = 6.0  # lattice of the smooth quantities
_AIR_REACH_MM = 3.5  # sigma
_CSF_REACH_MM = 1.2  # sigma
_VENTRICLE_REACH_MM = 5.0  # sigma


class Extra(enum.IntEnum):
    """Bytes of a packed voxel behind the pack's channels."""

    CODE = NUM_CHANNELS  # region code
    CSF_NEAR = NUM_CHANNELS + 1  # share of CSF in the neighborhood: where the cortex can shrink
    AIR_NEAR = NUM_CHANNELS + 2  # share of air in the neighborhood
    PIAL = NUM_CHANNELS + 3  # the cortex' surface, where siderosis settles
    VENOUS = NUM_CHANNELS + 4  # a vessel of the prior here is a sinus, not an artery


WORDS = (NUM_CHANNELS + len(Extra)) // 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedAnatomy:
    """One head. Coarse lattices have a point every COARSE_MM; the MNI head lies within the pack's lattice."""

    words: jax.Array  # (X, Y, Z, WORDS) uint32: the channels, then `Extra`, a byte each
    to_index: jax.Array  # (3, 4): pack mm -> voxel index
    center_mm: jax.Array  # (3,) middle of the brain's bounding box
    coarse_origin_mm: jax.Array  # (3,) of all coarse lattices, in the frame of each
    ventricle: jax.Array  # (x, y, z, 1) on the coarse lattice: lateral ventricles, smoothed, at most 1
    to_mni: jax.Array  # (x, y, z, 3) on the coarse lattice: MNI - pack mm
    from_mni: jax.Array  # (x, y, z, 3) on a coarse lattice in MNI mm: pack - MNI mm


def pack_anatomy(pack: AnatomyPack) -> PackedAnatomy:
    """Bring a pack to the device, with what follows from it for every subject."""
    pack = _fit(pack)
    brain = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    middle = (brain.min(axis=0) + brain.max(axis=0)) / 2
    origin, points = _coarse(pack)
    to_mni = _displacement(pack.to_mni, points)
    data = np.concatenate([pack.fractions, _extra_bytes(pack)], axis=-1)

    def single(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    return PackedAnatomy(
        words=jnp.asarray(np.ascontiguousarray(data).view("<u4").reshape(*pack.code.shape, WORDS)),
        to_index=single(np.linalg.inv(pack.affine)[:3]),
        center_mm=single(pack.affine[:3, :3] @ middle + pack.affine[:3, 3]),
        coarse_origin_mm=single(origin),
        ventricle=single(_lateral_ventricles(pack, points, points[..., 0] + to_mni[..., 0])[..., None]),
        to_mni=single(to_mni),
        from_mni=single(_displacement(pack.from_mni, points)),
    )


def _spacing_mm(pack: AnatomyPack) -> float:
    return float(np.linalg.norm(pack.affine[:3, 0]))  # isotropic


def _extra_bytes(pack: AnatomyPack) -> np.ndarray:
    """(X, Y, Z, number of `Extra`) uint8."""
    extra = np.zeros((*pack.code.shape, len(Extra)), np.uint8)

    def put(which: Extra, values: np.ndarray) -> None:
        extra[..., which - NUM_CHANNELS] = np.rint(255 * np.clip(values, 0.0, 1.0))

    spacing = _spacing_mm(pack)
    csf, gray = (pack.fractions[..., c].astype(np.float32) / 255 for c in (Channel.CSF, Channel.GRAY_MATTER))
    air = (pack.fractions[..., Channel.AIR] > 127).astype(np.float32)
    near = ndimage.gaussian_filter(csf, _CSF_REACH_MM / spacing)
    sulcal = region_of(pack.code) != Region.VENTRICLE
    extra[..., Extra.CODE - NUM_CHANNELS] = pack.code
    put(Extra.CSF_NEAR, near * sulcal)
    put(Extra.AIR_NEAR, ndimage.gaussian_filter(air, _AIR_REACH_MM / spacing))
    put(Extra.PIAL, 4.0 * near * gray * sulcal)
    put(Extra.VENOUS, 1.0 / (1.0 + np.exp((_mni_y(pack) + 25.0) / 4.0)))
    return extra


def _lateral_ventricles(pack: AnatomyPack, points_mm: np.ndarray, mni_x: np.ndarray) -> np.ndarray:
    """Smoothed ventricles at pack points (x, y, z, 3), less the third and fourth about the midline."""
    ventricle = (region_of(pack.code) == Region.VENTRICLE).astype(np.float32)
    smooth = ndimage.gaussian_filter(ventricle, _VENTRICLE_REACH_MM / _spacing_mm(pack))
    to_index = np.linalg.inv(pack.affine)[:3]
    index = points_mm @ to_index[:, :3].T + to_index[:, 3]
    values = ndimage.map_coordinates(smooth, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    return values * np.clip((np.abs(mni_x) - 2.0) / 4.0, 0.0, 1.0)


def _mni_y(pack: AnatomyPack) -> np.ndarray:
    """MNI y in mm of every voxel, (X, Y, Z)."""
    if pack.to_mni is not None:
        return pack.to_mni.map_grid(pack.code.shape, pack.affine)[1]
    y = pack.affine[1, 3] + pack.affine[1, 1] * np.arange(pack.code.shape[1], dtype=np.float32)
    return np.broadcast_to(y[None, :, None], pack.code.shape)


def _coarse(pack: AnatomyPack) -> tuple[np.ndarray, np.ndarray]:
    """Origin (3,) and points (x, y, z, 3) in pack mm of the coarse lattice over a pack's grid."""
    last = np.array(pack.code.shape) - 1
    origin = pack.affine[:3, 3] + np.minimum(pack.affine[:3, :3] @ last, 0)
    axes = [
        o + COARSE_MM * np.arange(int(np.ceil(n * _spacing_mm(pack) / COARSE_MM)) + 1)
        for o, n in zip(origin, last, strict=True)
    ]
    return origin, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _displacement(lattice: Lattice | None, points_mm: np.ndarray) -> np.ndarray:
    """Of points (..., 3) by a pack's lattice; zero where there is none: the pack is in MNI space."""
    return np.zeros_like(points_mm) if lattice is None else lattice.map_points(points_mm) - points_mm


def _fit(pack: AnatomyPack) -> AnatomyPack:
    """Cut or pad a pack of 1 mm to STANDARD_SHAPE about its brain; others stay as they are."""
    if pack.code.shape == STANDARD_SHAPE or not np.allclose(np.abs(np.diag(pack.affine)[:3]), 1.0):
        return pack
    brain = np.argwhere(region_of(pack.code) != Region.OUTSIDE)
    wanted = np.rint((brain.min(axis=0) + brain.max(axis=0) - np.array(STANDARD_SHAPE)) / 2).astype(int)
    index = [
        np.clip(np.arange(start, start + n), 0, size - 1)
        for start, n, size in zip(wanted, STANDARD_SHAPE, pack.code.shape, strict=True)
    ]
    affine = pack.affine.copy()
    affine[:3, 3] += pack.affine[:3, :3] @ wanted
    window = np.ix_(*index)
    return dataclasses.replace(pack, fractions=pack.fractions[window], code=pack.code[window], affine=affine)


def unpack(words: jax.Array) -> jax.Array:
    """(..., WORDS) uint32 -> (..., 4 * WORDS) the bytes, as uint32."""
    shifts = jnp.arange(4, dtype=jnp.uint32) * 8
    return ((words[..., None] >> shifts) & 0xFF).reshape(*words.shape[:-1], 4 * WORDS)


def voxel_index(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """Fractional voxel indices (P, 3) of pack points (P, 3)."""
    return points_mm @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]


def _flat(anatomy: PackedAnatomy, index: jax.Array) -> jax.Array:
    _, ny, nz = anatomy.words.shape[:3]
    return (index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]


def sample_pack(anatomy: PackedAnatomy, points_mm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bytes over 255 (P, 4 * WORDS), linear, and region codes (P,) uint8, nearest, at pack points (P, 3).

    Outside the pack the nearest edge voxel counts.
    """
    # All channels of a voxel lie in five words: a corner of a cell is one gather, whatever it is wanted for.
    last = jnp.asarray(anatomy.words.shape[:3]) - 1
    index = jnp.clip(voxel_index(anatomy, points_mm), 0.0, last.astype(jnp.float32))
    low = jnp.minimum(jnp.floor(index).astype(jnp.int32), last - 1)
    fraction = index - low
    rows = anatomy.words.reshape(-1, WORDS)
    total = jnp.zeros((points_mm.shape[0], 4 * WORDS), jnp.float32)
    for corner in np.ndindex(2, 2, 2):
        picked = jnp.asarray(corner, jnp.int32)
        weight = jnp.prod(jnp.where(picked == 1, fraction, 1 - fraction), axis=1)
        total = total + weight[:, None] * unpack(rows[_flat(anatomy, low + picked)]).astype(jnp.float32)
    nearest = rows[_flat(anatomy, low + (fraction > 0.5).astype(jnp.int32))]
    return total / 255.0, unpack(nearest)[:, Extra.CODE].astype(jnp.uint8)


def codes_at(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """(P,) uint8 region code of the voxel nearest to each pack point (P, 3)."""
    last = jnp.asarray(anatomy.words.shape[:3]) - 1
    index = jnp.clip(jnp.round(voxel_index(anatomy, points_mm)).astype(jnp.int32), 0, last)
    rows = anatomy.words.reshape(-1, WORDS)
    return unpack(rows[_flat(anatomy, index)])[:, Extra.CODE].astype(jnp.uint8)


def mni_of(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """MNI coordinates (P, 3) of pack points (P, 3)."""
    return points_mm + linear_at(anatomy.to_mni, (points_mm - anatomy.coarse_origin_mm) / COARSE_MM)


def of_mni(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """Pack points (P, 3) of MNI coordinates (P, 3)."""
    return points_mm + linear_at(anatomy.from_mni, (points_mm - anatomy.coarse_origin_mm) / COARSE_MM)


SQUARINGS = 6
_WARP_CORRELATION_MM = 20.0  # sigma of the random velocity
_MAX_DILATION_MM = 3.5  # how far a ventricle's wall is pushed outwards at the most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pose:
    """Image point p -> pack point offset + linear p + u(p)."""

    linear: jax.Array  # (3, 3)
    offset: jax.Array  # (3,) mm, pack frame
    displacement: jax.Array  # (*lattice.shape, 3) mm: u on the lattice
    lattice: Grid = dataclasses.field(metadata={"static": True})


def integrate_velocity(velocity: jax.Array, lattice: Grid) -> jax.Array:
    """Displacement of the flow at time 1 of a stationary velocity (*lattice.shape, 3) in mm."""
    # Scaling and squaring: the flow of 1 / 2^n of the time is nearly the velocity; doubled n times by
    # following the displacement from where it leads, it stays a diffeomorphism, which adding up velocities
    # would not.
    axes = [jnp.arange(n, dtype=jnp.float32) for n in lattice.shape]
    index = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    spacing = jnp.asarray(lattice.spacing_mm)

    def square(_: int, u: jax.Array) -> jax.Array:
        return u + linear_at(u, index + u.reshape(-1, 3) / spacing).reshape(u.shape)

    return jax.lax.fori_loop(0, SQUARINGS, square, velocity / 2**SQUARINGS)


def _towards_ventricles(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """(P, 3) pack points -> vectors up the gradient of the smoothed lateral ventricles, at most about 1 long.

    Image points beside a ventricle that are moved along it land inside: the ventricle looks wider.
    """
    ahead, behind = (
        jnp.stack(
            [
                linear_at(anatomy.ventricle, (points_mm + step - anatomy.coarse_origin_mm) / COARSE_MM)[:, 0]
                for step in COARSE_MM * sign * jnp.eye(3)
            ],
            axis=1,
        )
        for sign in (1.0, -1.0)
    )
    steep = (ahead - behind) / 2
    return steep / 0.2


def random_pose(key: jax.Array, anatomy: PackedAnatomy, atrophy: jax.Array, lattice: Grid) -> Pose:
    """Rotation of a few degrees, scale +-7 % per axis, shift of a few mm, smooth warp, wider ventricles.

    Before the shift the middle of the brain lies in the middle of the image. `atrophy` () 0..1.
    """
    k_rotation, k_scale, k_shift, k_warp, k_size, k_dilation = jax.random.split(key, 6)
    rotation = rotation_matrix(jax.random.normal(k_rotation, (3,)) * jnp.deg2rad(3.0))
    linear = rotation * (1 / jax.random.uniform(k_scale, (3,), minval=0.93, maxval=1.07))
    shift_mm = jnp.clip(jax.random.normal(k_shift, (3,)), -2, 2) * jnp.array([2.0, 3.0, 2.0])
    offset = anatomy.center_mm + shift_mm

    size = jax.random.uniform(k_size, (), minval=1.0, maxval=2.2)
    sigma = _WARP_CORRELATION_MM / lattice.spacing_mm[0]
    velocity = size * smooth_noise(k_warp, (*lattice.shape, 3), sigma=sigma)
    points = grid_points(lattice).reshape(-1, 3) @ linear.T + offset
    push = _MAX_DILATION_MM * atrophy * jax.random.uniform(k_dilation, (), minval=0.3)
    velocity = velocity + push * _towards_ventricles(anatomy, points).reshape(velocity.shape)
    return Pose(linear, offset, integrate_velocity(velocity, lattice), lattice)


def to_pack(pose: Pose, points_mm: jax.Array) -> jax.Array:
    """Image points (P, 3) -> pack points (P, 3)."""
    moved = interpolate_lattice(pose.displacement, pose.lattice, points_mm)
    return points_mm @ pose.linear.T + pose.offset + moved


def from_pack(pose: Pose, points_mm: jax.Array) -> jax.Array:
    """Pack points (P, 3) -> image points (P, 3), by fixed-point iteration."""
    inverse = jnp.linalg.inv(pose.linear)

    def step(_: int, p: jax.Array) -> jax.Array:
        moved = interpolate_lattice(pose.displacement, pose.lattice, p)
        return (points_mm - pose.offset - moved) @ inverse.T

    return jax.lax.fori_loop(0, 16, step, (points_mm - pose.offset) @ inverse.T)


def for_each_plane(pose: Pose, grid: Grid, function: Callable[[jax.Array], Any]) -> Any:
    """function(pack points (Y * Z, 3)) of every x plane of a grid, stacked to (X, Y * Z, ...)."""
    displacement, wx = widen_lattice(pose.displacement, pose.lattice, grid)
    x_mm, y_mm, z_mm = (jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3))
    y, z = (a.reshape(-1) for a in jnp.meshgrid(y_mm, z_mm, indexing="ij"))
    plane = y[:, None] * pose.linear[:, 1] + z[:, None] * pose.linear[:, 2] + pose.offset

    def one(part: tuple[jax.Array, jax.Array]) -> Any:
        x, weights = part
        moved = jnp.tensordot(weights, displacement, axes=1).reshape(-1, 3)
        return function(x * pose.linear[:, 0] + plane + moved)

    return jax.lax.map(one, (x_mm, wx))


NUCLEI = (
    Channel.CAUDATE,
    Channel.PUTAMEN,
    Channel.PALLIDUM,
    Channel.THALAMUS,
    Channel.RED_NUCLEUS,
    Channel.SUBSTANTIA_NIGRA,
    Channel.DENTATE,
)


def shrink_cortex(channels: jax.Array, atrophy: jax.Array) -> jax.Array:
    """Fractions (P, 5) of gray, white, CSF, soft, air, with cortex beside CSF turned into CSF.

    channels (P, bytes over 255). At full atrophy a cortex loses up to about a millimeter: sulci widen.
    """
    base = channels[:, : Channel.AIR + 1]
    base = base / jnp.maximum(jnp.sum(base, axis=1, keepdims=True), 1e-3)
    deep = jnp.sum(channels[:, jnp.array(NUCLEI)], axis=1)
    near = channels[:, Extra.CSF_NEAR]
    lost = base[:, Channel.GRAY_MATTER] * jnp.clip(1.6 * atrophy * near * (1.0 - deep), 0.0, 0.9)
    return base.at[:, Channel.GRAY_MATTER].add(-lost).at[:, Channel.CSF].add(lost)


PLANNING_SPACING_MM = 2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadMaps:
    """A posed head, sampled on the coarse grid on which lesions and vessels are placed."""

    anatomy: PackedAnatomy
    pose: Pose
    atrophy: jax.Array  # () 0..1
    grid: Grid = dataclasses.field(metadata={"static": True})

    channels: jax.Array  # (X, Y, Z, bytes of a packed voxel) in 0..1, the cortex shrunk by atrophy
    region: jax.Array  # (X, Y, Z) int32 Region
    mni_mm: jax.Array  # (X, Y, Z, 3) where each voxel lies in MNI space


def sample_head(
    anatomy: PackedAnatomy, points_mm: jax.Array, atrophy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Channels (P, C), the cortex shrunk, and region codes (P,) at pack points (P, 3)."""
    channels, code = sample_pack(anatomy, points_mm)
    return channels.at[:, : Channel.AIR + 1].set(shrink_cortex(channels, atrophy)), code


def head_maps(anatomy: PackedAnatomy, pose: Pose, atrophy: jax.Array, grid: Grid) -> HeadMaps:
    """Sample the posed pack on the planning grid."""

    def plane(points: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        channels, code = sample_head(anatomy, points, atrophy)
        return channels, (code % 16).astype(jnp.int32), mni_of(anatomy, points)

    channels, region, mni = for_each_plane(pose, grid, plane)
    return HeadMaps(
        anatomy, pose, atrophy, grid,
        channels.reshape(*grid.shape, -1), region.reshape(grid.shape), mni.reshape(*grid.shape, 3),
    )  # fmt: skip


def blur(volume: jax.Array, sigma_voxels: float) -> jax.Array:
    """Gaussian smoothing of (X, Y, Z), with zeros beyond the edges."""
    for axis in range(3):
        d = jnp.arange(volume.shape[axis])
        kernel = jnp.exp(-0.5 * ((d[:, None] - d) / sigma_voxels) ** 2) / (sigma_voxels * np.sqrt(2 * np.pi))
        volume = jnp.moveaxis(jnp.tensordot(kernel, volume, axes=(1, axis)), 0, axis)
    return volume


def draw_voxels(key: jax.Array, weight: jax.Array, grid: Grid, count: int) -> jax.Array:
    """`count` points (count, 3) in mm, drawn with probability `weight` (X, Y, Z), uniform within a voxel."""
    k_voxel, k_place = jax.random.split(key)
    # First a plane, then a voxel of it: one running sum over a million voxels would drift in single
    # precision.
    planes = jnp.cumsum(jnp.sum(weight, axis=(1, 2)))
    draw = jax.random.uniform(k_voxel, (2, count))
    x = jnp.searchsorted(planes, draw[0] * planes[-1], side="right")
    x = jnp.clip(x, 0, weight.shape[0] - 1)
    within = jnp.cumsum(weight.reshape(weight.shape[0], -1), axis=1)
    rest = jax.vmap(lambda row, u: jnp.searchsorted(row, u * row[-1], side="right"))(within[x], draw[1])
    rest = jnp.clip(rest, 0, within.shape[1] - 1)
    index = jnp.stack([x, rest // weight.shape[2], rest % weight.shape[2]], axis=1)
    index = index + jax.random.uniform(k_place, (count, 3), minval=-0.5, maxval=0.5)
    return jnp.asarray(grid.origin_mm) + index * jnp.asarray(grid.spacing_mm)


def interpolate(volume: jax.Array, grid: Grid, points_mm: jax.Array) -> jax.Array:
    """Linear interpolation of (X, Y, Z, C) at points (P, 3) -> (P, C); edge values beyond the grid."""
    return linear_at(volume, (points_mm - jnp.asarray(grid.origin_mm)) / jnp.asarray(grid.spacing_mm))


def gradient(volume: jax.Array) -> jax.Array:
    """Central differences (X, Y, Z) -> (X, Y, Z, 3), a voxel."""
    return jnp.stack(jnp.gradient(volume), axis=-1)


def in_regions(region: jax.Array, *regions: Region) -> jax.Array:
    """Boolean mask of the voxels that bear one of the labels."""
    return jnp.isin(region, jnp.asarray([int(r) for r in regions]))


def tissue_mask(channels: jax.Array) -> jax.Array:
    """Where gray and white matter fill at least four fifths: channels (..., C) -> bool (...)."""
    solid = channels[..., Channel.GRAY_MATTER] + channels[..., Channel.WHITE_MATTER]
    return solid >= 0.8
