"""Smooth displacement of points between two brains, kept on a coarse lattice."""

from __future__ import annotations

import dataclasses
import itertools

import nibabel as nib
import numpy as np
from scipy import ndimage

Points = tuple[np.ndarray, np.ndarray, np.ndarray]

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

    def map_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> Points:
        """Where the voxels of a grid with a diagonal affine go: x, y, z in RAS mm, each (X, Y, Z) float32."""
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

        They tell the whole of a trilinear map's folding but for the inside of very skewed cells.
        """
        steps = [
            np.diff(self.displacement.astype(np.float64), axis=axis) / self.spacing_mm for axis in range(3)
        ]
        lengths = [length - 1 for length in self.displacement.shape[:3]]
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
