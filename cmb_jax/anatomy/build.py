"""Builds the anatomy pack out of templates and atlases in MNI152NLin2009cAsym space."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from cmb_jax.anatomy.mars import MELBOURNE_LEFT_OFFSET, MELBOURNE_NUCLEI, assign_regions
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack, Channel
from cmb_jax.anatomy.shapes import NUM_TISSUES, Ellipsoid, encode_sides, paint, quantise, soften, voxel_axes
from cmb_jax.anatomy.tissues import head_air, intracranial_mask, sharpen_tissues

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]

SHAPE = (193, 229, 193)
AFFINE = np.array([[1.0, 0, 0, -96], [0, 1, 0, -132], [0, 0, 1, -78], [0, 0, 0, 1]])  # 1 mm, whole head

# Labels of the Hypothalamus atlas (Neudorfer et al. 2020), left and right.
HYPOTHALAMUS_NUCLEI = {
    Channel.RED_NUCLEUS: (17, 18),
    Channel.SUBSTANTIA_NIGRA: (13, 14, 15, 16),  # with the subthalamic nucleus
}
# The dentate nucleus, right side (mm): a shell that is open to the front and the midline.
_DENTATE_OUTER = Ellipsoid((15.5, -57.5, -34.0), (6.5, 8.5, 6.0))
_DENTATE_HILUM = Ellipsoid((12.0, -54.0, -34.0), (6.0, 7.5, 4.0))
_NUCLEUS_BLUR_MM = 0.6  # sigma: partial volume at the edges of labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Images that the pack is built from, all in MNI152NLin2009cAsym space; grids differ."""

    head_t1: nib.Nifti1Image  # whole head, 1 mm
    brain_t1: nib.Nifti1Image  # skull-stripped, 0.5 mm
    tissues: nib.Nifti1Image  # grey, white, CSF, 1.5 mm; CSF is 1 outside the brain
    vessels: nib.Nifti1Image  # probability of a vessel
    lesions: nib.Nifti1Image  # probability of white-matter hyperintensity
    mori: nib.Nifti1Image  # labels
    subcortex: nib.Nifti1Image  # labels of the Melbourne atlas
    hypothalamus: nib.Nifti1Image  # labels, 0.5 mm


def build_pack(sources: Sources, *, name: str, progress: bool = True) -> AnatomyPack:
    """The anatomy pack on the 1 mm grid of the whole head; takes about a minute of one core."""
    axes = voxel_axes(SHAPE, AFFINE)
    with _steps(progress) as step:
        step("T1")
        head_t1 = resample(sources.head_t1)
        brain_t1 = resample(sources.brain_t1)
        step("intracranial space")
        cranium = intracranial_mask(brain_t1, head_t1, axes)
        step("tissues")
        priors = np.stack([resample(sources.tissues, channel=channel, order=3) for channel in range(3)])
        brain = sharpen_tissues(priors, brain_t1)
        step("air")
        air = head_air(head_t1, cranium, axes)
        channels = np.zeros((NUM_CHANNELS, *SHAPE), np.float32)
        tissues = channels[:NUM_TISSUES]
        tissues[: Channel.CSF + 1] = brain * cranium
        tissues[Channel.AIR] = air * (1.0 - cranium)
        tissues[Channel.SOFT_TISSUE] = (1.0 - air) * (1.0 - cranium)
        step("nuclei")
        melbourne = resample_labels(sources.subcortex)
        _paint_nuclei(channels, melbourne, sources.hypothalamus, axes)
        step("priors")
        inside = tissues[: Channel.WHITE_MATTER + 1].sum(axis=0)
        channels[Channel.VESSEL_PRIOR] = np.clip(resample(sources.vessels), 0.0, 1.0)
        channels[Channel.LESION_PRIOR] = np.clip(resample(sources.lesions), 0.0, 1.0) * inside
        # The skull-stripped T1 has more contrast; its rim, where it fades out, comes from the whole head's.
        core = ndimage.binary_erosion(cranium > 0.5, iterations=3)
        t1 = np.where(core, brain_t1, head_t1)
        channels[Channel.T1] = t1 / np.percentile(t1[inside > 0.5], 99.5)
        step("regions")
        region = assign_regions(resample_labels(sources.mori), melbourne, tissues, axes)
        step("packing")
        return AnatomyPack(
            fractions=quantise(channels), code=encode_sides(region, axes[0]), affine=AFFINE, name=name
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


def _paint_nuclei(
    channels: np.ndarray, melbourne: np.ndarray, hypothalamus: nib.Nifti1Image, axes: Axes
) -> None:
    """Fill the nucleus channels and turn their share of each voxel into grey matter, in place."""
    tissues = channels[:NUM_TISSUES]
    shares: dict[Channel, np.ndarray] = {}
    for channel, labels in MELBOURNE_NUCLEI.items():
        mask = np.isin(melbourne, labels + tuple(label + MELBOURNE_LEFT_OFFSET for label in labels))
        shares[channel] = ndimage.gaussian_filter(mask.astype(np.float32), _NUCLEUS_BLUR_MM)
    fine = np.asarray(hypothalamus.dataobj)
    for channel, labels in HYPOTHALAMUS_NUCLEI.items():
        mask_image = nib.Nifti1Image(np.isin(fine, labels).astype(np.float32), hypothalamus.affine)
        shares[channel] = resample(mask_image)
    right: Axes = (np.abs(axes[0]), axes[1], axes[2])
    shell = np.maximum(_DENTATE_OUTER.distance(right), -_DENTATE_HILUM.distance(right))
    shares[Channel.DENTATE] = soften(shell, 1.0)
    for channel, share in shares.items():
        # A nucleus does not reach into a ventricle or out of the brain, whatever the label's edge says.
        share *= tissues[Channel.GREY_MATTER] + tissues[Channel.WHITE_MATTER]
        channels[channel] = share
        paint(tissues, Channel.GREY_MATTER, share)


@contextmanager
def _steps(progress: bool) -> Iterator:
    """A progress bar with one tick a named step."""
    with tqdm(
        total=8, desc="Building anatomy", disable=not progress, bar_format="{l_bar}{bar}| {elapsed}"
    ) as bar:
        started = False

        def step(what: str) -> None:
            nonlocal started
            bar.update(int(started))
            started = True
            bar.set_description(f"Building anatomy: {what}")

        yield step
        bar.update(1)
