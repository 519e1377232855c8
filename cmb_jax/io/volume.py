"""The volume type that everything outside the network works on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeGrid:
    """How a volume lay in its file, so that results can be written back voxel for voxel."""

    shape: tuple[int, int, int]  # of the file's array, singleton fourth axis dropped
    affine: np.ndarray  # (4, 4) float64, native voxel index (i, j, k) -> RAS mm
    orientation: np.ndarray  # (3, 2) nibabel orientation transform, native -> RAS
    step: tuple[int, int, int] = (1, 1, 1)  # voxels of the file along (i, j, k) that one voxel stands for

    @property
    def reduced_shape(self) -> tuple[int, int, int]:
        """Shape of the volume's array on the file's axes: the last voxel of an axis may stand for fewer."""
        i, j, k = (-(-size // step) for size, step in zip(self.shape, self.step, strict=True))
        return (i, j, k)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Volume:
    """One scalar image whose axes run to the Right, Anterior and Superior (closest canonical).

    An oblique affine stays oblique: axes are permuted and flipped, never resampled.
    """

    data: np.ndarray  # (X, Y, Z) float32, finite
    affine: np.ndarray  # (4, 4) float64, voxel index (x, y, z) -> RAS mm
    native: NativeGrid
    source: Path | None = None  # file it was read from
    sha256: str | None = None  # of that file
    warnings: tuple[str, ...] = ()  # one line each, for outputs too: no file names

    def __repr__(self) -> str:
        shape, spacing = " x ".join(map(str, self.shape)), " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        return f"<Volume: {shape} voxels of {spacing} mm, R A S, from {self.source or 'memory'}>"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along (x, y, z) in mm."""
        sx, sy, sz = voxel_sizes(self.affine)
        return (float(sx), float(sy), float(sz))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (X, Y, Z)."""
        x, y, z = self.data.shape
        return (x, y, z)

    def cut(self, bounds: np.ndarray) -> Volume:
        """The box `bounds` (3, 2), half-open, of this volume, in its place in space."""
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3, :3] @ bounds[:, 0] + self.affine[:3, 3]
        window = tuple(slice(low, high) for low, high in bounds)
        return dataclasses.replace(self, data=self.data[window], affine=affine)

    @classmethod
    def from_array(cls, data: np.ndarray, affine: np.ndarray) -> Volume:
        """A volume that was made here: `data` (X, Y, Z) runs R, A, S and its native grid is its own."""
        identity = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
        x, y, z = data.shape
        return cls(
            data=np.asarray(data, np.float32),
            affine=np.asarray(affine, np.float64),
            native=NativeGrid(shape=(x, y, z), affine=np.asarray(affine, np.float64), orientation=identity),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanImages:
    """The images of one scan on one grid."""

    swi: Volume  # susceptibility-weighted, or another image on which microbleeds are dark
    phase: Volume | None = None  # as stored
    magnitude: Volume | None = None


def content_bounds(data: np.ndarray) -> np.ndarray:
    """Smallest box of an image (X, Y, Z) beyond which all is zero: (3, 2) half-open; of zeros, all of it."""
    nonzero = data != 0
    bounds = np.array([[0, size] for size in data.shape])
    if not nonzero.any():
        return bounds
    for axis in range(3):
        filled = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        bounds[axis] = filled[0], filled[-1] + 1
    return bounds
