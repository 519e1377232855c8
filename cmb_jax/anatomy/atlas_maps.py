"""What templates and atlases say of each voxel of the MNI152NLin2009cAsym head, and of another one's."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.pack import Channel
from cmb_jax.anatomy.shapes import voxel_axes
from cmb_jax.anatomy.tissues import intracranial_mask

SHAPE = (193, 229, 193)
AFFINE = np.array([[1.0, 0, 0, -96], [0, 1, 0, -132], [0, 0, 1, -78], [0, 0, 0, 1]])  # 1 mm, whole head

# Labels of the Hypothalamus atlas (Neudorfer et al. 2020), left and right.
HYPOTHALAMUS_NUCLEI = {
    Channel.RED_NUCLEUS: (17, 18),
    Channel.SUBSTANTIA_NIGRA: (13, 14, 15, 16),  # with the subthalamic nucleus
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Images that the maps are made from, all in MNI152NLin2009cAsym space; grids differ."""

    head_t1: nib.Nifti1Image  # whole head, 1 mm
    brain_t1: nib.Nifti1Image  # skull-stripped, 0.5 mm
    tissues: nib.Nifti1Image  # grey, white, CSF, 1.5 mm; CSF is 1 outside the brain
    vessels: nib.Nifti1Image  # probability of a vessel
    lesions: nib.Nifti1Image  # probability of white-matter hyperintensity
    mori: nib.Nifti1Image  # labels
    subcortex: nib.Nifti1Image  # labels of the Melbourne atlas
    hypothalamus: nib.Nifti1Image  # labels, 0.5 mm


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtlasMaps:
    """Masks, priors and labels on the pack's grid (SHAPE, AFFINE)."""

    cranium: np.ndarray  # (X, Y, Z) float32 fraction inside the skull
    tissues: np.ndarray  # (3, X, Y, Z) float32 probability of grey matter, white matter, CSF
    vessels: np.ndarray  # (X, Y, Z) float32 probability
    lesions: np.ndarray  # (X, Y, Z) float32 probability
    red_nucleus: np.ndarray  # (X, Y, Z) float32 fraction
    substantia_nigra: np.ndarray  # (X, Y, Z) float32 fraction
    mori: np.ndarray  # (X, Y, Z) uint8 labels
    melbourne: np.ndarray  # (X, Y, Z) uint8 labels

    def carried(self, mni_mm: tuple[np.ndarray, ...]) -> AtlasMaps:
        """The maps of another head, whose voxels lie at MNI coordinates x, y, z, each (X, Y, Z) in mm."""
        index = np.stack([(axis - AFFINE[i, 3]) / AFFINE[i, i] for i, axis in enumerate(mni_mm)])

        def carry(values: np.ndarray) -> np.ndarray:
            if values.ndim == 4:
                return np.stack([carry(part) for part in values])
            order = 0 if values.dtype == np.uint8 else 1
            return ndimage.map_coordinates(values, index, order=order, mode="nearest")

        return AtlasMaps(
            **{field.name: carry(getattr(self, field.name)) for field in dataclasses.fields(self)}
        )


def read_maps(sources: Sources, head_t1: np.ndarray, brain_t1: np.ndarray) -> AtlasMaps:
    """The maps of MNI152NLin2009cAsym; the two T1 (X, Y, Z) are those of `sources` on the pack's grid."""
    fine = np.asarray(sources.hypothalamus.dataobj)
    nuclei = {
        channel: nib.Nifti1Image(np.isin(fine, labels).astype(np.float32), sources.hypothalamus.affine)
        for channel, labels in HYPOTHALAMUS_NUCLEI.items()
    }
    return AtlasMaps(
        cranium=intracranial_mask(brain_t1, head_t1, voxel_axes(SHAPE, AFFINE)),
        tissues=np.stack([resample(sources.tissues, channel=channel, order=3) for channel in range(3)]),
        vessels=np.clip(resample(sources.vessels), 0.0, 1.0),
        lesions=np.clip(resample(sources.lesions), 0.0, 1.0),
        red_nucleus=resample(nuclei[Channel.RED_NUCLEUS]),
        substantia_nigra=resample(nuclei[Channel.SUBSTANTIA_NIGRA]),
        mori=resample_labels(sources.mori),
        melbourne=resample_labels(sources.subcortex),
    )


def resample(image: nib.Nifti1Image, *, channel: int | None = None, order: int = 1) -> np.ndarray:
    """A scalar image on the pack's grid, (X, Y, Z) float32, zero beyond its field of view.

    Axes may be flipped but not rotated. Finer images are averaged over the pack's voxel first.
    """
    data = np.asarray(image.dataobj if channel is None else image.dataobj[..., channel], np.float32)
    matrix = np.linalg.inv(image.affine) @ AFFINE
    scale = np.diag(matrix)[:3]
    if (np.abs(scale) > 1.5).any():
        # The sampling points fall on every second sample: average half of each neighbour in.
        for axis in range(3):
            data = ndimage.convolve1d(data, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return ndimage.affine_transform(data, scale, matrix[:3, 3], SHAPE, order=order)


def resample_labels(image: nib.Nifti1Image) -> np.ndarray:
    """A label image on the pack's grid by nearest neighbour, (X, Y, Z) uint8."""
    matrix = np.linalg.inv(image.affine) @ AFFINE
    labels = np.asarray(image.dataobj).astype(np.uint8)
    return ndimage.affine_transform(labels, np.diag(matrix)[:3], matrix[:3, 3], SHAPE, order=0)
