"""Grids and lattices of the *image* frame: mm along the array's axes, zero in the middle of the field."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

LATTICE_SPACING_MM = 7.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A regular grid in the image frame; hashable, so that it can be a static argument."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]  # center of voxel (0, 0, 0)

    def axis_mm(self, axis: int) -> np.ndarray:
        """Voxel centers along one axis."""
        return self.origin_mm[axis] + self.spacing_mm[axis] * np.arange(self.shape[axis])

    @classmethod
    def over(cls, extent_mm: tuple[float, float, float], matrix: tuple[int, int, int]) -> Grid:
        """A grid of `matrix` voxels over a field of view.

        Voxel 0 lies on the same point whatever the matrix, as cropping k-space needs it.
        """
        x, y, z = (float(e / n) for e, n in zip(extent_mm, matrix, strict=True))
        ox, oy, oz = (-float(e) / 2 for e in extent_mm)
        return cls(matrix, (x, y, z), (ox, oy, oz))


def smooth_size(minimum: float) -> int:
    """The smallest even number not below `minimum` whose prime factors are 2, 3 and 5: fast to transform."""
    n = max(2, math.ceil(minimum - 1e-6))
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def simulation_grid(
    extent_mm: tuple[float, float, float], spacing_mm: float, along_slices: float = 1.0
) -> Grid:
    """The fast-to-transform grid over a field of view whose voxels are at most `spacing_mm` wide.

    `along_slices`: how much longer they may be along the third axis.
    """
    x, y = (smooth_size(e / spacing_mm) for e in extent_mm[:2])
    return Grid.over(extent_mm, (x, y, smooth_size(extent_mm[2] / (spacing_mm * along_slices))))


def lattice_for(extent_mm: tuple[float, float, float]) -> Grid:
    """A coarse lattice for smooth quantities: the field of view and a cell around it."""
    cells = [int(np.ceil(e / LATTICE_SPACING_MM)) + 2 for e in extent_mm]
    x, y, z = (c + 1 for c in cells)
    ox, oy, oz = (-c * LATTICE_SPACING_MM / 2 for c in cells)
    return Grid((x, y, z), (LATTICE_SPACING_MM,) * 3, (ox, oy, oz))


def grid_points(grid: Grid) -> jax.Array:
    """(*shape, 3) voxel centers in mm."""
    axes = [jnp.asarray(grid.axis_mm(a), jnp.float32) for a in range(3)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


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
    """Lattice values (*lattice.shape, C) at image points (P, 3) -> (P, C); cubic."""
    wx, wy, wz = (_axis_weights(lattice, points_mm[:, a], a) for a in range(3))
    return jnp.einsum("pi,pj,pk,ijkc->pc", wx, wy, wz, values, optimize="optimal")


def widen_lattice(values: jax.Array, lattice: Grid, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Separable cubic interpolation to a grid, the x axis left for the caller.

    Returns ((*lattice x, Y, Z, C), (X, lattice x)): multiply a slab of the second with the first.
    """
    wx, wy, wz = (_axis_weights(lattice, grid.axis_mm(a).astype(np.float32), a) for a in range(3))
    return jnp.einsum("yj,zk,ijkc->iyzc", wy, wz, values, optimize="optimal"), wx


def linear_at(values: jax.Array, index: jax.Array) -> jax.Array:
    """Values (X, Y, Z, C) at fractional indices (P, 3) -> (P, C); linear, edge values beyond the array."""
    shape = jnp.asarray(values.shape[:3])
    index = jnp.clip(index, 0.0, shape - 1.0)
    low = jnp.minimum(jnp.floor(index).astype(jnp.int32), shape - 2)
    x, y, z = jnp.split(index - low, 3, axis=1)
    # One flat index per corner fetches all channels of it at once; `low` is clipped, so all are in bounds.
    rows = values.reshape(-1, values.shape[3])
    stride_y, stride_x = values.shape[2], values.shape[1] * values.shape[2]
    base = low[:, 0] * stride_x + low[:, 1] * stride_y + low[:, 2]

    def edge(start: jax.Array) -> jax.Array:
        a = rows.at[start].get(mode="promise_in_bounds")
        return a * (1 - z) + rows.at[start + 1].get(mode="promise_in_bounds") * z

    near = edge(base) * (1 - y) + edge(base + stride_y) * y
    far = edge(base + stride_x) * (1 - y) + edge(base + stride_x + stride_y) * y
    return near * (1 - x) + far * x


def smooth_noise(key: jax.Array, shape: tuple[int, ...], sigma: float) -> jax.Array:
    """Gaussian noise (X, Y, Z, C) smoothed over the first three axes; unit variance."""
    noise = jax.random.normal(key, shape)
    for axis in range(3):
        d = jnp.arange(shape[axis])
        kernel = jnp.exp(-0.5 * ((d[:, None] - d) / sigma) ** 2)
        kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, axis=1, keepdims=True))
        noise = jnp.moveaxis(jnp.tensordot(kernel, noise, axes=(1, axis)), 0, axis)
    return noise


def rotation_matrix(vector: jax.Array) -> jax.Array:
    """(3, 3) rotation about `vector` (3,) by its length in radians (Rodrigues)."""
    angle = jnp.maximum(jnp.linalg.norm(vector), 1e-9)
    x, y, z = vector / angle
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.eye(3) + jnp.sin(angle) * skew + (1 - jnp.cos(angle)) * (skew @ skew)
