"""Grids, the pose and shape of a subject's head, and sampling of the anatomy pack.

Two frames: *image* (mm along the array's axes, zero in the middle of the field of view) and *pack* (RAS mm of
the anatomy pack). A subject's pose maps image to pack points: q = centre + L p + t + u(p), with u the
displacement of a stationary velocity field (Arsigny et al. 2006), hence a diffeomorphism.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack
from cmb_jax.anatomy.regions import Region
from cmb_jax.phantom.field import smooth_size

CODE_CHANNEL = NUM_CHANNELS  # the region code travels as the sixteenth byte of every pack voxel
SQUARINGS = 6
LATTICE_SPACING_MM = 9.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A regular grid in the image frame; hashable, so that it can be a static argument."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]  # centre of voxel (0, 0, 0)

    def axis_mm(self, axis: int) -> np.ndarray:
        """Voxel centres along one axis."""
        return self.origin_mm[axis] + self.spacing_mm[axis] * np.arange(self.shape[axis])

    @classmethod
    def over(cls, extent_mm: tuple[float, float, float], matrix: tuple[int, int, int]) -> Grid:
        """A grid of `matrix` voxels over a field of view.

        Voxel 0 lies on the same point whatever the matrix, as cropping k-space needs it.
        """
        x, y, z = (float(e / n) for e, n in zip(extent_mm, matrix, strict=True))
        ox, oy, oz = (-float(e) / 2 for e in extent_mm)
        return cls(matrix, (x, y, z), (ox, oy, oz))


def simulation_grid(extent_mm: tuple[float, float, float], spacing_mm: float) -> Grid:
    """The fast-to-transform grid over a field of view whose voxels are at most `spacing_mm` wide."""
    x, y, z = (smooth_size(e / spacing_mm) for e in extent_mm)
    return Grid.over(extent_mm, (x, y, z))


def lattice_for(extent_mm: tuple[float, float, float]) -> Grid:
    """The coarse lattice that carries the displacement: the field of view and a cell around it."""
    cells = [int(np.ceil(e / LATTICE_SPACING_MM)) + 2 for e in extent_mm]
    x, y, z = (c + 1 for c in cells)
    ox, oy, oz = (-c * LATTICE_SPACING_MM / 2 for c in cells)
    return Grid((x, y, z), (LATTICE_SPACING_MM,) * 3, (ox, oy, oz))


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class PackedAnatomy:
    """An anatomy pack on the device, 16 bytes a voxel in four words: one gather fetches all channels."""

    words: jax.Array  # (X * Y * Z, 4) uint32
    shape: jax.Array  # (3,) int32
    to_index: jax.Array  # (3, 4): pack RAS mm -> voxel index
    centre_mm: jax.Array  # (3,) middle of the brain's bounding box


def pack_anatomy(pack: AnatomyPack) -> PackedAnatomy:
    """Channels and region code of a pack as words."""
    shape = pack.code.shape
    data = np.concatenate([pack.fractions, pack.code[..., None]], axis=-1)
    words = np.ascontiguousarray(data).view("<u4").reshape(-1, 4)
    brain = (pack.code % 16 != Region.OUTSIDE).nonzero()
    middle = np.array([(axis.min() + axis.max()) / 2 for axis in brain])
    centre = pack.affine[:3, :3] @ middle + pack.affine[:3, 3]
    return PackedAnatomy(
        jnp.asarray(words),
        jnp.asarray(shape, jnp.int32),
        jnp.asarray(np.linalg.inv(pack.affine)[:3], jnp.float32),
        jnp.asarray(centre, jnp.float32),
    )


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class Pose:
    """Image point p -> pack point centre + linear p + shift + u(p)."""

    linear: jax.Array  # (3, 3)
    offset: jax.Array  # (3,) centre + shift
    displacement: jax.Array  # (*lattice.shape, 3) mm


def cubic_weights(coordinates: jax.Array, count: int) -> jax.Array:
    """(P, count) Catmull-Rom weights of lattice points at fractional indices (P,), clamped at the ends."""
    d = jnp.abs(jnp.clip(coordinates, 0, count - 1)[:, None] - jnp.arange(count))
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _axis_weights(lattice: Grid, coordinates_mm: jax.Array | np.ndarray, axis: int) -> jax.Array:
    index = (jnp.asarray(coordinates_mm) - lattice.origin_mm[axis]) / lattice.spacing_mm[axis]
    return cubic_weights(index, lattice.shape[axis])


def interpolate_lattice(values: jax.Array, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """Lattice values (*lattice.shape, C) at image points (P, 3) -> (P, C)."""
    wx, wy, wz = (_axis_weights(lattice, points_mm[:, a], a) for a in range(3))
    return jnp.einsum("pi,pj,pk,ijkc->pc", wx, wy, wz, values, optimize="optimal")


def widen_lattice(values: jax.Array, lattice: Grid, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Separable interpolation to a grid, the x axis left for the caller.

    Returns ((*lattice x, Y, Z, C), (X, lattice x)): multiply a slab of the second with the first.
    """
    wx, wy, wz = (_axis_weights(lattice, grid.axis_mm(a).astype(np.float32), a) for a in range(3))
    return jnp.einsum("yj,zk,ijkc->iyzc", wy, wz, values, optimize="optimal"), wx


def smooth_noise(key: jax.Array, shape: tuple[int, ...], sigma: float) -> jax.Array:
    """Gaussian noise (X, Y, Z, C) smoothed over the first three axes; unit variance."""
    noise = jax.random.normal(key, shape)
    for axis in range(3):
        d = jnp.arange(shape[axis])
        kernel = jnp.exp(-0.5 * ((d[:, None] - d) / sigma) ** 2)
        kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, axis=1, keepdims=True))
        noise = jnp.moveaxis(jnp.tensordot(kernel, noise, axes=(1, axis)), 0, axis)
    return noise


def integrate_velocity(velocity: jax.Array, lattice: Grid) -> jax.Array:
    """Displacement of the flow at time 1 of a stationary velocity (*lattice.shape, 3) in mm."""
    axes = [jnp.arange(n, dtype=jnp.float32) for n in lattice.shape]
    index = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))
    spacing = jnp.asarray(lattice.spacing_mm)

    def square(_: int, u: jax.Array) -> jax.Array:
        where = index + jnp.moveaxis(u / spacing, -1, 0)
        moved = [
            jax.scipy.ndimage.map_coordinates(u[..., c], list(where), order=1, mode="nearest")
            for c in range(3)
        ]
        return u + jnp.stack(moved, axis=-1)

    return jax.lax.fori_loop(0, SQUARINGS, square, velocity / 2**SQUARINGS)


def rotation_matrix(vector: jax.Array) -> jax.Array:
    """(3, 3) rotation about `vector` (3,) by its length in radians (Rodrigues)."""
    angle = jnp.maximum(jnp.linalg.norm(vector), 1e-9)
    x, y, z = vector / angle
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.eye(3) + jnp.sin(angle) * skew + (1 - jnp.cos(angle)) * (skew @ skew)


@functools.partial(jax.jit, static_argnames=("lattice",))
def random_pose(key: jax.Array, lattice: Grid, centre_mm: jax.Array) -> Pose:
    """Rotation of a few degrees, scale +-7 % an axis, shift of a few mm, smooth warp of 3-6 mm."""
    k_rotation, k_scale, k_shift, k_warp, k_size = jax.random.split(key, 5)
    rotation = rotation_matrix(jax.random.normal(k_rotation, (3,)) * jnp.deg2rad(3.0))
    scale = jax.random.uniform(k_scale, (3,), minval=0.93, maxval=1.07)
    shift = jnp.clip(jax.random.normal(k_shift, (3,)), -2, 2) * jnp.array([2.0, 3.0, 2.0])
    size = jax.random.uniform(k_size, (), minval=1.0, maxval=2.2)
    velocity = size * smooth_noise(k_warp, (*lattice.shape, 3), sigma=2.2)
    return Pose(rotation * (1 / scale), centre_mm + shift, integrate_velocity(velocity, lattice))


def to_pack(pose: Pose, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """Image points (P, 3) -> pack points (P, 3)."""
    moved = interpolate_lattice(pose.displacement, lattice, points_mm)
    return points_mm @ pose.linear.T + pose.offset + moved


def from_pack(pose: Pose, lattice: Grid, points_mm: jax.Array) -> jax.Array:
    """Pack points (P, 3) -> image points (P, 3), by fixed-point iteration."""
    inverse = jnp.linalg.inv(pose.linear)

    def step(_: int, p: jax.Array) -> jax.Array:
        moved = interpolate_lattice(pose.displacement, lattice, p)
        return (points_mm - pose.offset - moved) @ inverse.T

    return jax.lax.fori_loop(0, 12, step, (points_mm - pose.offset) @ inverse.T)


def _bytes(words: jax.Array) -> jax.Array:
    """(P, 4) uint32 -> (P, 16) the bytes, as uint32."""
    shifts = jnp.arange(4, dtype=jnp.uint32) * 8
    return ((words[:, :, None] >> shifts) & 0xFF).reshape(words.shape[0], 16)


def sample_pack(anatomy: PackedAnatomy, points_mm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Channels (P, NUM_CHANNELS) in 0..1, linear, and region codes (P,) uint8, nearest, at pack points.

    Outside the pack the nearest edge voxel counts.
    """
    index = points_mm @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]
    index = jnp.clip(index, 0.0, (anatomy.shape - 1).astype(jnp.float32))
    low = jnp.minimum(jnp.floor(index).astype(jnp.int32), anatomy.shape - 2)
    fraction = index - low
    stride = jnp.stack([anatomy.shape[1] * anatomy.shape[2], anatomy.shape[2], jnp.int32(1)])
    base = low @ stride
    total = jnp.zeros((points_mm.shape[0], 16), jnp.float32)
    for corner in np.ndindex(2, 2, 2):
        picked = jnp.asarray(corner, jnp.int32)
        weight = jnp.prod(jnp.where(picked == 1, fraction, 1 - fraction), axis=1)
        values = _bytes(anatomy.words[base + picked @ stride])
        total = total + weight[:, None] * values.astype(jnp.float32)
    nearest = base + (fraction > 0.5).astype(jnp.int32) @ stride
    code = (anatomy.words[nearest, CODE_CHANNEL // 4] >> (8 * (CODE_CHANNEL % 4))) & 0xFF
    return total[:, :NUM_CHANNELS] / 255.0, code.astype(jnp.uint8)


def nearest_pack(anatomy: PackedAnatomy, points_mm: jax.Array) -> jax.Array:
    """(P, 16) bytes of the nearest pack voxel: the channels, then the region code."""
    index = points_mm @ anatomy.to_index[:, :3].T + anatomy.to_index[:, 3]
    index = jnp.clip(jnp.round(index).astype(jnp.int32), 0, anatomy.shape - 1)
    flat = (index[:, 0] * anatomy.shape[1] + index[:, 1]) * anatomy.shape[2] + index[:, 2]
    return _bytes(anatomy.words[flat])
