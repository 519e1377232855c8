"""Small building blocks of both packs: soft shapes, painting tissue over tissue, 8-bit fractions."""

from __future__ import annotations

import dataclasses

import numpy as np

from cmb_jax.anatomy.pack import NUM_CHANNELS, Channel
from cmb_jax.anatomy.regions import Region, Side, encode

Point = tuple[float, float, float]
NUM_TISSUES = 5  # channels 0..4 share each voxel out among them


def voxel_axes(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RAS coordinates in mm of a grid whose affine is diagonal, as (X,1,1), (1,Y,1) and (1,1,Z) float32."""
    x, y, z = (
        (affine[axis, 3] + affine[axis, axis] * np.arange(length)).astype(np.float32)
        for axis, length in enumerate(shape)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
    """Axis-aligned ellipsoid; all in mm."""

    center: Point
    radii: Point

    def mirrored(self) -> Ellipsoid:
        """The same shape on the other side of the mid-sagittal plane."""
        x, y, z = self.center
        return Ellipsoid((-x, y, z), self.radii)

    def distance(self, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Signed distance to the surface in mm, negative inside: exact to first order near the surface."""
        unit = [(axis - c) / r for axis, c, r in zip(axes, self.center, self.radii, strict=True)]
        rho = np.sqrt(unit[0] ** 2 + unit[1] ** 2 + unit[2] ** 2)
        slope = np.sqrt(sum((u / r) ** 2 for u, r in zip(unit, self.radii, strict=True)))
        return rho * (rho - 1.0) / np.maximum(slope, 1e-6)

    def inside(self, axes: tuple[np.ndarray, np.ndarray, np.ndarray], blur_mm: float) -> np.ndarray:
        """Fraction of each voxel that lies inside."""
        return soften(self.distance(axes), blur_mm)


def soften(distance_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Signed distance to fraction: 1 inside, 0 outside, linear over `width_mm` about the surface."""
    return np.clip(0.5 - distance_mm / width_mm, 0.0, 1.0).astype(np.float32)


def tube(
    axes: tuple[np.ndarray, np.ndarray, np.ndarray], start: Point, end: Point, radius_mm: float
) -> np.ndarray:
    """Gaussian profile, 1 on the segment from `start` to `end`, exp(-1/2) at `radius_mm` from it."""
    direction = np.subtract(end, start)
    offsets = [axis - s for axis, s in zip(axes, start, strict=True)]
    along = sum(o * d for o, d in zip(offsets, direction, strict=True)) / float(direction @ direction)
    along = np.clip(along, 0.0, 1.0)
    squared = sum((o - along * d) ** 2 for o, d in zip(offsets, direction, strict=True))
    return np.exp(-0.5 * squared / radius_mm**2).astype(np.float32)


def paint(tissues: np.ndarray, channel: Channel, amount: np.ndarray) -> None:
    """Lay `amount` (X, Y, Z) of one tissue over `tissues` (5, X, Y, Z), in place; the sum stays the same."""
    tissues *= 1.0 - amount
    tissues[channel] += amount


def quantize(channels: np.ndarray) -> np.ndarray:
    """(NUM_CHANNELS, X, Y, Z) floats in 0..1 -> (X, Y, Z, NUM_CHANNELS) uint8, the tissues summing to 255.

    The rounding's remainder goes to the largest of the five tissues.
    """
    result = np.empty((*channels.shape[1:], NUM_CHANNELS), np.uint8)
    for start in range(channels.shape[1]):  # slab by slab, so that no second float copy is held
        slab = np.rint(255.0 * np.clip(channels[:, start], 0.0, 1.0)).astype(np.int16)
        tissues = slab[:NUM_TISSUES]
        rest = 255 - tissues.sum(axis=0, keepdims=True)
        largest = tissues.argmax(axis=0)[None]
        np.put_along_axis(
            tissues, largest, np.take_along_axis(tissues, largest, 0) + rest.astype(np.int16), 0
        )
        result[start] = np.moveaxis(slab, 0, -1)
    return result


def encode_sides(region: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
    """Region code with the side by the sign of x; OUTSIDE has no side."""
    side = np.where(x_mm < 0, Side.LEFT, Side.RIGHT)
    return encode(region, np.where(region == Region.OUTSIDE, Side.NONE, side))
