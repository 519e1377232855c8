"""Builds anatomy packs: from the MNI152NLin2009cAsym templates, or from one person's scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.atlas_maps import AFFINE, SHAPE, AtlasMaps, Sources, read_maps, resample
from cmb_jax.anatomy.mars import MELBOURNE_LEFT_OFFSET, MELBOURNE_NUCLEI, assign_regions
from cmb_jax.anatomy.pack import NUM_CHANNELS, AnatomyPack, Channel
from cmb_jax.anatomy.shapes import NUM_TISSUES, Ellipsoid, encode_sides, paint, quantise, soften, voxel_axes
from cmb_jax.anatomy.subject import Placement, even_out, place_scan, smooth_cranium
from cmb_jax.anatomy.tissues import BRAIN_THRESHOLD, head_air, sharpen_tissues
from cmb_jax.progress import Bar

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
Step = Callable[[str], None]

# The dentate nucleus, right side (mm): a shell that is open to the front and the midline.
_DENTATE_OUTER = Ellipsoid((15.5, -57.5, -34.0), (6.5, 8.5, 6.0))
_DENTATE_HILUM = Ellipsoid((12.0, -54.0, -34.0), (6.0, 7.5, 4.0))
_NUCLEUS_BLUR_MM = 0.6  # sigma: partial volume at the edges of labels


def build_pack(sources: Sources, *, name: str, progress: bool = True) -> AnatomyPack:
    """The pack of the MNI152NLin2009cAsym head on its 1 mm grid; takes about a minute of one core."""
    with _steps(progress) as step:
        step("T1")
        head_t1 = resample(sources.head_t1)
        brain_t1 = resample(sources.brain_t1)
        step("atlases")
        maps = read_maps(sources, head_t1, brain_t1)
        step("tissues")
        brain = sharpen_tissues(maps.tissues, brain_t1, brain_t1 > BRAIN_THRESHOLD)
        # The skull-stripped T1 has more contrast; its rim, where it fades out, comes from the whole head's.
        core = ndimage.binary_erosion(maps.cranium > 0.5, iterations=3)
        t1 = np.where(core, brain_t1, head_t1)
        fractions, code = _assemble(maps, brain, head_t1, t1, voxel_axes(SHAPE, AFFINE), step)
        return AnatomyPack(fractions=fractions, code=code, affine=AFFINE, name=name)


def build_subject_pack(
    sources: Sources, scan: nib.Nifti1Image, placement: Placement, *, name: str, progress: bool = True
) -> AnatomyPack:
    """The pack of one person's T1-weighted scan of the whole head; takes about two minutes of one core.

    Tissues and air come from the scan; priors, labels and places are carried over from MNI152NLin2009cAsym.
    """
    with _steps(progress) as step:
        step("atlases")
        template = read_maps(sources, resample(sources.head_t1), resample(sources.brain_t1))
        mni_mm = placement.to_mni.map_grid(SHAPE, AFFINE)
        maps = template.carried(mni_mm)
        maps = dataclasses.replace(maps, cranium=smooth_cranium(maps.cranium))
        step("T1")
        t1 = even_out(place_scan(scan, placement.pack_to_scan), maps.tissues, maps.cranium)
        step("tissues")
        brain = sharpen_tissues(maps.tissues, t1, maps.cranium > 0.5)
        fractions, code = _assemble(maps, brain, t1, t1, mni_mm, step)
        lattice = placement.to_mni
        return AnatomyPack(
            fractions=fractions,
            code=code,
            affine=AFFINE,
            name=name,
            to_mni=lattice,
            from_mni=lattice.inverted(lattice.displacement.shape[:3], lattice.spacing_mm, lattice.origin_mm),
        )


def _assemble(
    maps: AtlasMaps, brain: np.ndarray, head_t1: np.ndarray, t1: np.ndarray, mni_mm: Axes, step: Step
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions and region code of a pack.

    Args:
        maps: of this head.
        brain: (3, X, Y, Z) grey, white and CSF fractions, summing to 1.
        head_t1: (X, Y, Z) T1 of the whole head, about 1 in white matter.
        t1: (X, Y, Z) T1 that becomes the pack's texture.
        mni_mm: MNI coordinates of the voxels, that broadcast to (X, Y, Z).
        step: told what is done next.
    """
    step("air")
    air = head_air(head_t1, maps.cranium, mni_mm)
    channels = np.zeros((NUM_CHANNELS, *SHAPE), np.float32)
    tissues = channels[:NUM_TISSUES]
    tissues[: Channel.CSF + 1] = brain * maps.cranium
    tissues[Channel.AIR] = air * (1.0 - maps.cranium)
    tissues[Channel.SOFT_TISSUE] = (1.0 - air) * (1.0 - maps.cranium)
    step("nuclei")
    _paint_nuclei(channels, maps, mni_mm)
    step("priors")
    inside = tissues[: Channel.WHITE_MATTER + 1].sum(axis=0)
    channels[Channel.VESSEL_PRIOR] = maps.vessels
    channels[Channel.LESION_PRIOR] = maps.lesions * inside
    channels[Channel.T1] = t1 / np.percentile(t1[inside > 0.5], 99.5)
    step("regions")
    region = assign_regions(maps.mori, maps.melbourne, tissues, mni_mm, spacing_mm=AFFINE[0, 0])
    step("packing")
    return quantise(channels), encode_sides(region, mni_mm[0])


def _paint_nuclei(channels: np.ndarray, maps: AtlasMaps, mni_mm: Axes) -> None:
    """Fill the nucleus channels and turn their share of each voxel into grey matter, in place."""
    tissues = channels[:NUM_TISSUES]
    shares: dict[Channel, np.ndarray] = {}
    for channel, labels in MELBOURNE_NUCLEI.items():
        mask = np.isin(maps.melbourne, labels + tuple(label + MELBOURNE_LEFT_OFFSET for label in labels))
        shares[channel] = ndimage.gaussian_filter(mask.astype(np.float32), _NUCLEUS_BLUR_MM)
    shares[Channel.RED_NUCLEUS] = maps.red_nucleus.copy()
    shares[Channel.SUBSTANTIA_NIGRA] = maps.substantia_nigra.copy()
    right: Axes = (np.abs(mni_mm[0]), mni_mm[1], mni_mm[2])
    shell = np.maximum(_DENTATE_OUTER.distance(right), -_DENTATE_HILUM.distance(right))
    shares[Channel.DENTATE] = soften(shell, 1.0)
    for channel, share in shares.items():
        # A nucleus does not reach into a ventricle or out of the brain, whatever the label's edge says.
        share *= tissues[Channel.GREY_MATTER] + tissues[Channel.WHITE_MATTER]
        channels[channel] = share
        paint(tissues, Channel.GREY_MATTER, share)


@contextmanager
def _steps(progress: bool) -> Iterator[Step]:
    """A progress bar with one tick a named step."""
    with Bar("building the anatomy", 8, shown=progress) as bar:
        started = False

        def step(what: str) -> None:
            nonlocal started
            bar.update(int(started), what=f"building the anatomy: {what}")
            started = True

        yield step
        bar.update(1)
