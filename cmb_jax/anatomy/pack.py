"""The anatomy pack: everything the phantom needs to know of one brain, on one grid.

Below it what packs are made with: displacements between two brains on a coarse lattice, soft shapes, tissue
painted over tissue, 8-bit fractions.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import Region, Side, encode

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""x, y and z of voxels in mm, each (X, Y, Z) or broadcasting to it."""
Point = tuple[float, float, float]


class Channel(enum.IntEnum):
    """Channels of `AnatomyPack.fractions`: each a fraction of the voxel, except the two priors and T1."""

    GRAY_MATTER = 0  # cortex and all other gray matter, deep nuclei included
    WHITE_MATTER = 1
    CSF = 2  # ventricles and sulci
    SOFT_TISSUE = 3  # scalp, muscle, skull and all else of the head that is neither brain nor air
    AIR = 4  # outside the head, sinuses, ear canals
    CAUDATE = 5
    PUTAMEN = 6
    PALLIDUM = 7
    THALAMUS = 8
    RED_NUCLEUS = 9
    SUBSTANTIA_NIGRA = 10  # with the subthalamic nucleus
    DENTATE = 11
    VESSEL_PRIOR = 12  # arteries and venous sinuses: probability
    LESION_PRIOR = 13  # white-matter hyperintensity: probability
    T1 = 14  # T1-weighted intensity, 0..1 of the brain's 99.5th percentile: texture


NUM_CHANNELS = len(Channel)
NUM_TISSUES = 5  # channels 0..4 share each voxel out among them


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnatomyPack:
    """One brain on an isotropic grid, axes to Right, Anterior, Superior, in or near the frame of MNI space.

    `to_mni` and `from_mni` lead from points of the pack (RAS mm) to points of MNI152NLin2009cAsym (RAS mm)
    and back; None where the two frames are the same (mni2009c) or nothing is to be told apart (synthetic).
    """

    fractions: np.ndarray  # (X, Y, Z, NUM_CHANNELS) uint8, 255 = 1.0; 0..4 sum to 255 up to rounding
    code: np.ndarray  # (X, Y, Z) uint8 region code, see anatomy.regions
    affine: np.ndarray  # (4, 4) float64, voxel index (x, y, z) -> RAS mm
    name: str  # e.g. "mni2009c"
    to_mni: Lattice | None = None
    from_mni: Lattice | None = None


_STORED_STEP_MM = 0.005  # resolution of the stored displacement
_INVERSION_STEPS = 60
_TOLERANCE_MM = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lattice:
    """A map of points: p (RAS mm of one frame) -> p + displacement(p) (RAS mm of the other frame).

    The displacement is trilinear between the points of the lattice; beyond the lattice that of its face.
    """

    displacement: np.ndarray  # (X, Y, Z, 3) float32, mm to Right, Anterior, Superior
    spacing_mm: float  # isotropic
    origin_mm: tuple[float, float, float]  # RAS mm of lattice point (0, 0, 0)

    def map_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the one frame, RAS mm -> (..., 3) of the other, float64."""
        points = np.asarray(points_mm, np.float64)
        index = ((points - self.origin_mm) / self.spacing_mm).reshape(-1, 3).T
        moved = [
            ndimage.map_coordinates(self.displacement[..., axis], index, order=1, mode="nearest")
            for axis in range(3)
        ]
        return points + np.stack(moved, axis=-1).reshape(points.shape)

    def map_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> Axes:
        """Where the voxels of a grid with a diagonal affine go: x, y, z in RAS mm, each (X, Y, Z) float32."""
        # both affines are diagonal, so that voxels of the grid are found on the lattice by scale and offset
        # alone
        scale = np.diag(affine)[:3] / self.spacing_mm
        offset = (affine[:3, 3] - self.origin_mm) / self.spacing_mm
        coordinates = []
        for axis in range(3):
            moved = ndimage.affine_transform(
                self.displacement[..., axis], scale, offset, shape, order=1, mode="nearest"
            )
            own = affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis], dtype=np.float32)
            coordinates.append(moved + own.reshape([-1 if a == axis else 1 for a in range(3)]))
        return coordinates[0], coordinates[1], coordinates[2]

    def jacobian_determinants(self) -> np.ndarray:
        """Determinant of the map's derivative at all eight corners of each cell, (8, X-1, Y-1, Z-1).

        They reveal any folding of a trilinear map, except inside very skewed cells.
        """
        steps = [
            np.diff(self.displacement.astype(np.float64), axis=axis) / self.spacing_mm for axis in range(3)
        ]
        lengths = [length - 1 for length in self.displacement.shape[:3]]
        # within a cell the derivative along an axis is the difference along that edge of it which passes the
        # corner
        result = []
        for corner in itertools.product((0, 1), repeat=3):
            columns = []
            for axis, step in enumerate(steps):
                start = [0 if a == axis else corner[a] for a in range(3)]
                cell = tuple(slice(s, s + n) for s, n in zip(start, lengths, strict=True))
                columns.append(step[cell])
            result.append(np.linalg.det(np.stack(columns, axis=-1) + np.eye(3)))
        return np.stack(result)

    def inverted(
        self, shape: tuple[int, ...], spacing_mm: float, origin_mm: tuple[float, float, float]
    ) -> Lattice:
        """The map back, on a lattice of the other frame; exact at its points.

        Raises:
            ValueError: the map folds, or is too steep for the iteration.
        """
        if self.jacobian_determinants().min() <= 0.0:
            raise ValueError("the map folds: it cannot be inverted")
        # start from the points themselves: displacements are small compared with a brain
        points = np.indices(shape).reshape(3, -1).T * spacing_mm + np.asarray(origin_mm)
        back = points.copy()
        for _ in range(_INVERSION_STEPS):  # Newton's method, on all points at once
            error = self.map_points(back) - points
            distance = np.linalg.norm(error, axis=-1)
            if distance.max() < _TOLERANCE_MM:
                break
            todo = distance >= _TOLERANCE_MM
            step = np.linalg.solve(self._derivative(back[todo]), error[todo, :, None])[..., 0]
            longest = np.maximum(np.linalg.norm(step, axis=-1, keepdims=True) / self.spacing_mm, 1.0)
            back[todo] -= step / longest  # a step leads no further than the next cell
        else:
            raise ValueError(f"the map cannot be inverted: {distance.max():.3f} mm are left")
        return Lattice(
            displacement=(back - points).reshape(*shape, 3).astype(np.float32),
            spacing_mm=spacing_mm,
            origin_mm=origin_mm,
        )

    def _derivative(self, points_mm: np.ndarray) -> np.ndarray:
        """Derivative of the map at points (N, 3), by differences: (N, 3, 3), [n, i, j] = d out_i / d in_j."""
        half = 1e-3
        columns = [
            (self.map_points(points_mm + half * unit) - self.map_points(points_mm - half * unit)) / (2 * half)
            for unit in np.eye(3)
        ]
        return np.stack(columns, axis=-1)


def lattice_image(lattice: Lattice) -> nib.Nifti1Image:
    """The lattice as NIfTI: (X, Y, Z, 1, 3) int16 of 0.005 mm, intent `displacement vector`, RAS."""
    affine = np.diag([lattice.spacing_mm] * 3 + [1.0])
    affine[:3, 3] = lattice.origin_mm
    steps = np.rint(lattice.displacement[..., None, :] / _STORED_STEP_MM)
    image = nib.Nifti1Image(steps.astype(np.int16), affine)
    image.header.set_slope_inter(_STORED_STEP_MM, 0.0)
    image.header.set_intent("displacement vector")
    return image


def read_lattice(image: nib.Nifti1Image) -> Lattice:
    """The lattice that `lattice_image` stored."""
    x, y, z = (float(value) for value in image.affine[:3, 3])
    return Lattice(
        displacement=np.asarray(image.dataobj, np.float32)[:, :, :, 0],
        spacing_mm=float(image.affine[0, 0]),
        origin_mm=(x, y, z),
    )


def voxel_axes(shape: tuple[int, int, int], affine: np.ndarray) -> Axes:
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

    def distance(self, axes: Axes) -> np.ndarray:
        """Signed distance to the surface in mm, negative inside: exact to first order near the surface."""
        unit = [(axis - c) / r for axis, c, r in zip(axes, self.center, self.radii, strict=True)]
        # (rho - 1) over the gradient of rho, which is slope / rho
        rho = np.sqrt(unit[0] ** 2 + unit[1] ** 2 + unit[2] ** 2)
        slope = np.sqrt(sum((u / r) ** 2 for u, r in zip(unit, self.radii, strict=True)))
        return rho * (rho - 1.0) / np.maximum(slope, 1e-6)

    def inside(self, axes: Axes, blur_mm: float) -> np.ndarray:
        """Fraction of each voxel that lies inside."""
        return soften(self.distance(axes), blur_mm)


def soften(distance_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Signed distance to fraction: 1 inside, 0 outside, linear over `width_mm` about the surface."""
    return np.clip(0.5 - distance_mm / width_mm, 0.0, 1.0).astype(np.float32)


def tube(axes: Axes, start: Point, end: Point, radius_mm: float) -> np.ndarray:
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
