"""Builds anatomy packs: from the MNI152NLin2009cAsym templates, or from one person's T1-weighted scan.

In the order of the work: tissue fractions from T1 intensity and priors, on the pack's 1 mm grid; what
templates and atlases say of each voxel; placing a person's scan on that grid and evening out its brightness;
the pack.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.mars import MELBOURNE_LEFT_OFFSET, MELBOURNE_NUCLEI, assign_regions
from cmb_jax.anatomy.pack import (
    NUM_CHANNELS,
    NUM_TISSUES,
    AnatomyPack,
    Axes,
    Channel,
    Ellipsoid,
    Lattice,
    encode_sides,
    paint,
    quantize,
    read_lattice,
    soften,
    voxel_axes,
)
from cmb_jax.progress import Bar

BRAIN_THRESHOLD = 0.05  # of the skull-stripped T1: everything that its mask kept
_CSF_LIMIT = 0.60  # T1 of the rim about the brain: brighter is not CSF
_LOCAL_MM = 8.0  # sigma of the neighborhood in which a tissue has one intensity
_MISFIT = 0.03  # T1 units: intensity noise within a tissue, not to be explained by fractions
_SHARPNESS = 1.6  # exponent: takes back some of the blur that averaging 152 people left

# T1 of the whole head: below DARK is air, above BRIGHT is not; linear between.
_DARK, _BRIGHT = 0.11, 0.20
_HEAD_THRESHOLD = 0.25  # T1 at the skin, half of what the scalp has
# Where dark means air and not bone, with the share of the dark space that is air; right side, in mm.
_AIR_SPACES = (
    (1.0, Ellipsoid((0, 72, -12), (34, 16, 24))),  # frontal sinus
    (1.0, Ellipsoid((0, 45, -38), (26, 42, 26))),  # ethmoid cells and nasal cavity
    (1.0, Ellipsoid((0, 10, -42), (24, 24, 16))),  # sphenoid sinus
    (1.0, Ellipsoid((30, 38, -64), (24, 30, 24))),  # maxillary sinus
    (1.0, Ellipsoid((0, 15, -74), (24, 40, 24))),  # pharynx
    (0.5, Ellipsoid((52, -35, -42), (30, 26, 22))),  # ear canal and mastoid: cells between walls of bone
)


def intracranial_mask(brain_t1: np.ndarray, head_t1: np.ndarray, axes: Axes) -> np.ndarray:
    """Fraction of each voxel inside the skull, (X, Y, Z) float32.

    The skull-stripped template's own mask, holes filled, and one voxel more where the head's T1 is as dark as
    CSF: the mask hugs the gyri and leaves out the outer subarachnoid space. Below the cribriform plate it is
    cut, since the template kept a piece of the nose there.
    """
    x, y, z = axes
    nose = (np.abs(x) < 16.0) & (y > 15.0) & (z < -27.0)
    mask = ndimage.binary_fill_holes((brain_t1 > BRAIN_THRESHOLD) & ~nose)
    mask = ndimage.binary_opening(mask)
    rim = ndimage.binary_dilation(mask) & (head_t1 < _CSF_LIMIT) & ~nose
    return np.clip(ndimage.gaussian_filter((mask | rim).astype(np.float32), 0.5), 0.0, 1.0)


def sharpen_tissues(priors: np.ndarray, t1: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Gray, white and CSF fractions that explain the T1 intensity with the least change of the prior.

    In each voxel f minimizes sum_c (f_c - p_c)^2 / p_c subject to sum f = 1 and sum_c f_c m_c = t1, with m_c
    the tissue's mean intensity in the neighborhood: tissues absent from the prior stay absent, and a voxel
    with a mixture takes the mixture that its intensity shows. A power > 1 then sharpens.

    Args:
        priors: (3, X, Y, Z) probabilities of gray, white, CSF.
        t1: (X, Y, Z) intensity, about 1 in white matter.
        inside: (X, Y, Z) bool, where the intensity counts; elsewhere the prior alone decides.

    Returns:
        (3, X, Y, Z) float32, summing to 1.
    """
    # By Lagrange multipliers f_c = p_c (1 + g (m_c - E)), with E the prior's expected T1 and g such that the
    # mean fits; the misfit in the denominator keeps noise from being explained where all means are alike.
    prior = np.clip(priors, 0.0, 1.0) + 1e-3
    prior /= prior.sum(axis=0)
    means = np.stack([_local_mean(t1, (p > 0.8) & inside) for p in prior])
    expected = (prior * means).sum(axis=0)
    spread = (prior * (means - expected) ** 2).sum(axis=0)
    gain = np.where(inside, (t1 - expected) / (spread + _MISFIT**2), 0.0)
    fractions = np.maximum(prior * (1.0 + gain * (means - expected)), 1e-6)
    fractions = (fractions / fractions.sum(axis=0)) ** _SHARPNESS
    return (fractions / fractions.sum(axis=0)).astype(np.float32)


def _local_mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of `values` over `where`; their global mean far from any of them."""
    # normalized convolution; far from any voxel of `where` a small trust in the global mean takes over
    weight = ndimage.gaussian_filter(where.astype(np.float32), _LOCAL_MM, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(where, values, 0.0).astype(np.float32), _LOCAL_MM, truncate=3.0)
    trust = 1e-3
    return (total + trust * values[where].mean()) / (weight + trust)


def head_air(head_t1: np.ndarray, cranium: np.ndarray, axes: Axes) -> np.ndarray:
    """Fraction of air in each voxel that is not intracranial, (X, Y, Z) float32.

    Outside the head all is air. Inside, bone and air are both dark on T1: a dark voxel counts as air only in
    the spaces where the skull is hollow (paranasal sinuses, nose, pharynx, ear and mastoid); the vault's
    dark bone counts as soft tissue.
    """
    solid = ndimage.binary_closing(np.pad((head_t1 > _HEAD_THRESHOLD) | (cranium > 0.5), 6), iterations=5)
    solid = solid[6:-6, 6:-6, 6:-6]
    for index in range(solid.shape[2]):  # axial slices: the neck leaves the volume open at the bottom
        solid[:, :, index] = ndimage.binary_fill_holes(solid[:, :, index])
    pieces, _ = ndimage.label(solid)
    solid = pieces == np.bincount(pieces[pieces > 0]).argmax()
    outside = ndimage.gaussian_filter((~solid).astype(np.float32), 0.7)

    right: Axes = (np.abs(axes[0]), axes[1], axes[2])
    hollow = np.maximum.reduce([share * space.inside(right, 3.0) for share, space in _AIR_SPACES])
    dark = np.clip((_BRIGHT - head_t1) / (_BRIGHT - _DARK), 0.0, 1.0)
    return np.maximum(outside, dark * hollow)


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
    tissues: nib.Nifti1Image  # gray, white, CSF, 1.5 mm; CSF is 1 outside the brain
    vessels: nib.Nifti1Image  # probability of a vessel
    lesions: nib.Nifti1Image  # probability of white-matter hyperintensity
    mori: nib.Nifti1Image  # labels
    subcortex: nib.Nifti1Image  # labels of the Melbourne atlas
    hypothalamus: nib.Nifti1Image  # labels, 0.5 mm


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtlasMaps:
    """Masks, priors and labels on the pack's grid (SHAPE, AFFINE)."""

    cranium: np.ndarray  # (X, Y, Z) float32 fraction inside the skull
    tissues: np.ndarray  # (3, X, Y, Z) float32 probability of gray matter, white matter, CSF
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
        # The sampling points fall on every second sample: average half of each neighbor in.
        for axis in range(3):
            data = ndimage.convolve1d(data, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return ndimage.affine_transform(data, scale, matrix[:3, 3], SHAPE, order=order)


def resample_labels(image: nib.Nifti1Image) -> np.ndarray:
    """A label image on the pack's grid by nearest neighbor, (X, Y, Z) uint8."""
    matrix = np.linalg.inv(image.affine) @ AFFINE
    labels = np.asarray(image.dataobj).astype(np.uint8)
    return ndimage.affine_transform(labels, np.diag(matrix)[:3], matrix[:3, 3], SHAPE, order=0)


_WHITE_MATTER_T1 = 0.97  # what the ICBM template has
_SURE = 0.9  # prior above which a voxel counts as one tissue
_FIELD_MM = 25.0  # sigma of the receive field's smoothness: coarser than any structure of the brain
_FIELD_STEP = 4  # voxels: the field is found on every fourth
_FIELD_ROUNDS = 4
_OUTLIER = 0.3  # log intensity: a voxel further from its tissue's is something else


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a scan lies in its pack, and the pack in MNI152NLin2009cAsym."""

    pack_to_scan: np.ndarray  # (4, 4) rigid: pack RAS mm -> RAS mm of the scan's file
    to_mni: Lattice  # pack RAS mm -> MNI RAS mm


def read_placement(name: str) -> Placement:
    """The placement of a pack's scan that tools/register_anatomy.py found and the package ships."""
    folder = resources.files("cmb_jax.anatomy").joinpath("warps")
    record = json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    image = nib.Nifti1Image.from_bytes(gzip.decompress(folder.joinpath(f"{name}.nii.gz").read_bytes()))
    return Placement(pack_to_scan=np.array(record["pack_to_scan"]), to_mni=read_lattice(image))


def place_scan(scan: nib.Nifti1Image, pack_to_scan: np.ndarray) -> np.ndarray:
    """The scan on the pack's grid, (X, Y, Z) float32; beyond its field of view the value at its face.

    Cubic splines, unless the grids are a whole number of voxels apart.
    """
    matrix = np.linalg.inv(scan.affine) @ pack_to_scan @ AFFINE
    whole = np.allclose(matrix, np.rint(matrix), atol=1e-6)
    data = np.asarray(scan.dataobj, np.float32)
    placed = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], SHAPE, order=0 if whole else 3, mode="nearest"
    )
    return np.maximum(placed, 0.0)  # splines overshoot


def smooth_cranium(carried: np.ndarray) -> np.ndarray:
    """The template's intracranial fraction (X, Y, Z) after carrying, without the pits of its rim."""
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(carried > 0.5, iterations=2))
    return np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 0.5), 0.0, 1.0)


def even_out(t1: np.ndarray, tissues: np.ndarray, cranium: np.ndarray) -> np.ndarray:
    """The scan without the receive coil's shading, white matter at 0.97; (X, Y, Z) float32.

    The shading is the smooth field by which voxels that are surely gray or surely white matter differ from
    the median of their tissue, as in the intensity correction of unified segmentation (Ashburner and Friston,
    NeuroImage 2005;26:839-851).

    Args:
        t1: (X, Y, Z) intensity.
        tissues: (3, X, Y, Z) prior of gray matter, white matter, CSF.
        cranium: (X, Y, Z) fraction inside the skull.
    """
    # in the logarithm shading is added, not multiplied, and dark and bright places count alike
    coarse = (slice(None, None, _FIELD_STEP),) * 3
    log_t1 = np.log(np.maximum(t1[coarse], 1e-3 * t1.max()))
    sure = [(tissues[(tissue, *coarse)] > _SURE) & (cranium[coarse] > _SURE) for tissue in (0, 1)]
    field = np.zeros_like(log_t1)
    sigma = _FIELD_MM / _FIELD_STEP
    for _ in range(_FIELD_ROUNDS):  # each finds what the smoothing of those before left over
        weight, total = np.zeros_like(log_t1), np.zeros_like(log_t1)
        for mask in sure:
            rest = log_t1 - field
            rest -= np.median(rest[mask])
            kept = mask & (np.abs(rest) < _OUTLIER)
            weight += kept
            total += np.where(kept, rest, 0.0)
        field += ndimage.gaussian_filter(total, sigma) / (ndimage.gaussian_filter(weight, sigma) + 1e-6)
    wide = ndimage.affine_transform(
        field, np.full(3, 1.0 / _FIELD_STEP), output_shape=t1.shape, order=1, mode="nearest"
    )
    even = t1 * np.exp(-wide)
    white = (tissues[1] > _SURE) & (cranium > _SURE)
    return (even * (_WHITE_MATTER_T1 / np.median(even[white]))).astype(np.float32)


Step = Callable[[str], None]

# The dentate nucleus, right side (mm): a shell that is open to the front and the midline.
_DENTATE_OUTER = Ellipsoid((15.5, -57.5, -34.0), (6.5, 8.5, 6.0))
_DENTATE_HILUM = Ellipsoid((12.0, -54.0, -34.0), (6.0, 7.5, 4.0))
_NUCLEUS_BLUR_MM = 0.6  # sigma: partial volume at the edges of labels


def build_pack(sources: Sources, *, name: str) -> AnatomyPack:
    """The pack of the MNI152NLin2009cAsym head on its 1 mm grid; takes about a minute of one core."""
    with _steps() as step:
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
    sources: Sources, scan: nib.Nifti1Image, placement: Placement, *, name: str
) -> AnatomyPack:
    """The pack of one person's T1-weighted scan of the whole head; takes about two minutes of one core.

    Tissues and air come from the scan; priors, labels and places are carried over from MNI152NLin2009cAsym.
    """
    with _steps() as step:
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
        brain: (3, X, Y, Z) gray, white and CSF fractions, summing to 1.
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
    # gray and white matter: there hyperintensities lie, and there T1 is scaled, since fat is brighter
    inside = tissues[: Channel.WHITE_MATTER + 1].sum(axis=0)
    channels[Channel.VESSEL_PRIOR] = maps.vessels
    channels[Channel.LESION_PRIOR] = maps.lesions * inside
    channels[Channel.T1] = t1 / np.percentile(t1[inside > 0.5], 99.5)
    step("regions")
    region = assign_regions(maps.mori, maps.melbourne, tissues, mni_mm, spacing_mm=AFFINE[0, 0])
    step("packing")
    return quantize(channels), encode_sides(region, mni_mm[0])


def _paint_nuclei(channels: np.ndarray, maps: AtlasMaps, mni_mm: Axes) -> None:
    """Fill the nucleus channels and turn their share of each voxel into gray matter, in place."""
    tissues = channels[:NUM_TISSUES]
    shares: dict[Channel, np.ndarray] = {}
    for channel, labels in MELBOURNE_NUCLEI.items():
        mask = np.isin(maps.melbourne, labels + tuple(label + MELBOURNE_LEFT_OFFSET for label in labels))
        shares[channel] = ndimage.gaussian_filter(mask.astype(np.float32), _NUCLEUS_BLUR_MM)
    shares[Channel.RED_NUCLEUS] = maps.red_nucleus.copy()
    shares[Channel.SUBSTANTIA_NIGRA] = maps.substantia_nigra.copy()
    right: Axes = (np.abs(mni_mm[0]), mni_mm[1], mni_mm[2])
    # the greater of two signed distances is that of the intersection: inside the outer body, outside the
    # hilum
    shell = np.maximum(_DENTATE_OUTER.distance(right), -_DENTATE_HILUM.distance(right))
    shares[Channel.DENTATE] = soften(shell, 1.0)
    for channel, share in shares.items():
        # A nucleus does not reach into a ventricle or out of the brain, whatever the label's edge says.
        share *= tissues[Channel.GRAY_MATTER] + tissues[Channel.WHITE_MATTER]
        channels[channel] = share
        paint(tissues, Channel.GRAY_MATTER, share)


@contextmanager
def _steps() -> Iterator[Step]:
    """A progress bar with one tick per named step."""
    with Bar("building the anatomy", 8) as bar:
        started = False

        def step(what: str) -> None:
            nonlocal started
            bar.update(int(started), what=f"building the anatomy: {what}")
            started = True

        yield step
        bar.update(1)
