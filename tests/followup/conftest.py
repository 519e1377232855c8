"""Two small scans of one head with known motion, and results on them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cmb_jax.core.detection import DetectionRow
from cmb_jax.followup.changes import Surveyed
from cmb_jax.followup.registration import Registration
from cmb_jax.io.volume import Volume

SHAPE = (72, 88, 40)
SPACING_MM = (2.0, 2.0, 3.0)


def rigid(degrees, shift_mm) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def centered_affine(shape=SHAPE, spacing_mm=SPACING_MM) -> np.ndarray:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    return affine


class Head:
    """An ellipsoid with a smooth random pattern inside, a function of the place in the head's own mm."""

    lesion_mm = 2.5  # where its darkness has fallen to 1/e

    def __init__(self, seed: int) -> None:
        grid = np.random.default_rng(seed).normal(size=(60, 60, 60))
        self._pattern = ndimage.gaussian_filter(grid, 1.6)
        self._pattern /= self._pattern.std()

    def scan(self, world: np.ndarray, affine, shape=SHAPE, lesions_mm=(), noise=0.0, seed=0):
        """The head under a rigid motion `world` on a grid: volume and brain mask."""
        index = np.moveaxis(np.indices(shape), 0, -1)
        place = index @ affine[:3, :3].T + affine[:3, 3]
        back = np.linalg.inv(world)
        own = place @ back[:3, :3].T + back[:3, 3]
        brain = ((own / (58.0, 72.0, 50.0)) ** 2).sum(axis=-1) < 1
        pattern = ndimage.map_coordinates(self._pattern, np.moveaxis(own / 3.0 + 29.5, -1, 0), order=1)
        data = np.where(brain, 500.0 + 60.0 * pattern, 20.0)
        for center in lesions_mm:
            away = np.linalg.norm(own - center, axis=-1)
            data *= 1.0 - 0.85 * np.exp(-((away / self.lesion_mm) ** 2))
        data += noise * np.random.default_rng(seed).normal(size=shape)
        return Volume.from_array(data, affine), brain


@pytest.fixture(scope="session")
def head() -> Head:
    return Head(0)


def row_at(id: int, point_mm, **changes) -> DetectionRow:
    x, y, z = (float(v) for v in point_mm)
    row = DetectionRow(
        id=id,
        i=0,
        j=0,
        k=0,
        x_mm=x,
        y_mm=y,
        z_mm=z,
        diameter_mm=4.0,
        volume_mm3=33.5,
        score=0.9,
        category="definite",
        zone="lobar",
        region="frontal",
        side="right",
        status="kept",
        reason="",
    )
    return dataclasses.replace(row, **changes)


def registration(matrix, faults=()) -> Registration:
    return Registration(
        matrix=np.asarray(matrix, np.float64),
        dice=0.95,
        correlation=0.9,
        shared=1.0,
        rotation_deg=0.0,
        shift_mm=0.0,
        mutual_information=1.0,
        faults=faults,
    )


def surveyed(name: str, head: Head, world, lesions_mm=(), affine=None, shape=SHAPE, **facts) -> Surveyed:
    image, brain = head.scan(world, centered_affine() if affine is None else affine, shape, lesions_mm)
    return Surveyed(name=name, image=image, brain=brain, **facts)
