"""The images of a case: their grids, from headers alone, and the volumes that the detector searches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation

from cmb_jax.datasets.cases import Case
from cmb_jax.errors import UserError
from cmb_jax.io.header import open_header, world_affine
from cmb_jax.io.nifti import read_volume
from cmb_jax.io.volume import ScanImages

DARK_ROLES = ("swi", "t2s", "magnitude")
"""Images on which a microbleed is dark."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Shape of a 3D image and its position in the world."""

    shape: tuple[int, int, int]  # (I, J, K) of the file's array
    affine: np.ndarray  # (4, 4) float64, (i, j, k) from 0 -> RAS mm
    warnings: tuple[str, ...] = ()

    @property
    def orientation(self) -> str:
        """Directions of the file's axes, such as RAS or LPS."""
        return "".join(str(code) for code in aff2axcodes(self.affine))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_ras(self) -> Grid:
        """The same grid with its axes reordered to Right, Anterior, Superior, as `read_volume` does."""
        orientation = io_orientation(self.affine)
        x, y, z = (self.shape[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3))
        affine = self.affine @ inv_ornt_aff(orientation, self.shape)
        return Grid(shape=(x, y, z), affine=affine, warnings=self.warnings)

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices (n, 3) from 0, integers at voxel centers, to RAS mm (n, 3)."""
        return np.asarray(apply_affine(self.affine, index))

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """RAS mm (n, 3) to fractional voxel indices (n, 3) from 0."""
        return np.linalg.solve(self.affine[:3, :3], (points_mm - self.affine[:3, 3]).T).T

    def inside(self, index: np.ndarray) -> np.ndarray:
        """Which voxel indices (n, 3) lie in the volume, (n,) bool; a voxel extends half a step each way."""
        return np.all((index >= -0.5) & (index <= np.array(self.shape) - 0.5), axis=-1)

    def apart_voxels(self, other: Grid) -> float:
        """Largest distance between corners of two grids of one shape, in smallest voxel edges of this one."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        apart = np.linalg.norm(self.to_mm(corners) - other.to_mm(corners), axis=1).max()
        return float(apart / voxel_sizes(self.affine).min())


def read_grid(path: Path) -> Grid:
    """Shape and affine of a 3D NIfTI image. Voxels are not read: checking thousands of scans takes minutes.

    Raises:
        UserError: missing or unreadable file, not a NIfTI image, not 3D, or a singular affine.
    """
    file = open_header(path)
    affine, warnings = world_affine(file)
    shape = file.image.shape
    if len(shape) < 3 or np.prod(shape[3:]) != 1 or min(shape) < 1:
        raise UserError(
            f"{path}: is not a 3D image but {' x '.join(map(str, shape))} voxels; give one volume"
        )
    i, j, k = shape[:3]
    return Grid(shape=(i, j, k), affine=affine, warnings=tuple(warnings))


def turn_to_ras(array: np.ndarray, grid: Grid) -> np.ndarray:
    """An array (I, J, K) of a file with its axes reordered to Right, Anterior, Superior."""
    return np.ascontiguousarray(apply_orientation(array, io_orientation(grid.affine)))


def read_scan(case: Case, root: Path) -> ScanImages:
    """The image that lesions are marked on, with phase and magnitude if there are any.

    Raises:
        UserError: no image on which a microbleed is dark, or an image that cannot be read.
    """
    if case.reference not in DARK_ROLES:
        raise UserError(f"{case.case_id}: has no SWI, T2*-weighted or magnitude image to look at")
    volumes = {
        role: read_volume(Path(root) / case.images[role])
        for role in {case.reference, "phase", "magnitude"}
        if role in case.images
    }
    swi = volumes.pop(case.reference)
    return ScanImages(swi=swi, phase=volumes.get("phase"), magnitude=volumes.get("magnitude"))
