"""A head made of formulas: every tissue, nucleus, region and side of a real pack, and no files needed."""

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.pack import (
    NUM_CHANNELS,
    NUM_TISSUES,
    AnatomyPack,
    Axes,
    Channel,
    Ellipsoid,
    encode_sides,
    paint,
    quantize,
    soften,
    tube,
    voxel_axes,
)
from cmb_jax.anatomy.regions import Region

_FIELD_MM = (192.0, 224.0, 192.0)  # the head below fills this field of view
_CENTER_MM = (0.0, -18.0, 18.0)  # of the field of view, in MNI-like coordinates

# All in mm, laid out as in MNI space; paired structures are given on the right.
_HEAD = Ellipsoid((0, -16, 14), (80, 102, 88))
_CRANIUM = Ellipsoid((0, -18, 18), (70, 90, 64))
_FOSSA = Ellipsoid((0, -48, -34), (48, 40, 27))
_CEREBRUM = Ellipsoid((0, -18, 18), (67, 87, 61))
_CORE = Ellipsoid((0, -8, 8), (20, 42, 24))  # where the hemispheres are joined
_CEREBELLUM = Ellipsoid((19, -62, -36), (25, 22, 19))
_BRAINSTEM = (Ellipsoid((0, -28, -30), (11, 13, 28)), Ellipsoid((0, -20, -12), (16, 12, 10)))
_LATERAL_VENTRICLE = (Ellipsoid((8, -5, 15), (4.5, 32, 6)), Ellipsoid((22, -42, 8), (5, 16, 6)))
_MIDLINE_VENTRICLES = (Ellipsoid((0, -10, 2), (2.5, 14, 9)), Ellipsoid((0, -46, -32), (5, 4, 9)))
_SYLVIAN = Ellipsoid((43, 0, 2), (4, 18, 9))
_CALLOSUM = Ellipsoid((0, -6, 26), (14, 36, 4.5))
_NUCLEI = {
    Channel.CAUDATE: Ellipsoid((14.5, 12, 10), (4, 10, 8)),
    Channel.PUTAMEN: Ellipsoid((26, 3, 1), (4.5, 13, 9)),
    Channel.PALLIDUM: Ellipsoid((18.5, -3, -1), (3, 7, 6)),
    Channel.THALAMUS: Ellipsoid((11, -19, 6), (7, 11, 7.5)),
    Channel.RED_NUCLEUS: Ellipsoid((5, -20, -10), (3, 3.5, 4)),
    Channel.SUBSTANTIA_NIGRA: Ellipsoid((10, -17, -14), (3, 5, 3)),
    Channel.DENTATE: Ellipsoid((15, -57, -34), (6, 4, 5)),
}
_SINUSES = (
    Ellipsoid((0, 77, -2), (12, 5, 7)),  # frontal
    Ellipsoid((0, 54, -30), (9, 15, 10)),  # ethmoid
    Ellipsoid((0, 30, -47), (10, 12, 8)),  # sphenoid
    Ellipsoid((28, 44, -50), (12, 14, 11)),  # maxillary
    Ellipsoid((-28, 44, -50), (12, 14, 11)),
    Ellipsoid((56, -30, -42), (16, 6, 6)),  # ear canal and mastoid cells
    Ellipsoid((-56, -30, -42), (16, 6, 6)),
)
_ARTERIES = (
    ((0.0, -16.0, -46.0), (0.0, -10.0, -18.0)),  # basilar
    ((2.0, 2.0, -16.0), (38.0, 0.0, -6.0)),  # middle cerebral
    ((-2.0, 2.0, -16.0), (-38.0, 0.0, -6.0)),
    ((0.0, -52.0, 2.0), (0.0, -88.0, -4.0)),  # straight sinus
)
_T1 = {Channel.GRAY_MATTER: 0.68, Channel.WHITE_MATTER: 0.95, Channel.CSF: 0.22, Channel.SOFT_TISSUE: 0.5}


def synthetic_pack(shape: tuple[int, int, int] = (96, 112, 96), spacing_mm: float = 2.0) -> AnatomyPack:
    """A small analytic head with all channels, all regions and both sides.

    The head is scaled to fill a grid of `shape` (X, Y, Z) isotropic voxels of `spacing_mm`; with the
    default field of view of 192 x 224 x 192 mm (or any larger, at 1:1 proportion) it has human size and
    MNI-like coordinates. Deterministic.
    """
    scale = min(length * spacing_mm / field for length, field in zip(shape, _FIELD_MM, strict=True))
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [c * scale - (n - 1) / 2 * spacing_mm for c, n in zip(_CENTER_MM, shape, strict=True)]
    x, y, z = (axis / np.float32(scale) for axis in voxel_axes(shape, affine))
    axes, blur = (x, y, z), spacing_mm / scale

    channels = np.zeros((NUM_CHANNELS, *shape), np.float32)
    tissues = channels[:NUM_TISSUES]
    ventricles = _pair_or_midline(axes, blur, *_LATERAL_VENTRICLE)
    lateral_distance = ndimage.distance_transform_edt(ventricles < 0.5) * blur
    ventricles = np.maximum(ventricles, _union(axes, blur, _MIDLINE_VENTRICLES))
    _paint_head(tissues, axes, blur, ventricles)
    for channel, shape_mm in _NUCLEI.items():
        channels[channel] = _pair_or_midline(axes, blur, shape_mm) * (1.0 - ventricles)
        paint(tissues, Channel.GRAY_MATTER, channels[channel])
    channels[Channel.VESSEL_PRIOR] = _vessels(axes)
    channels[Channel.LESION_PRIOR] = tissues[Channel.WHITE_MATTER] * np.exp(-((lateral_distance / 7.0) ** 2))
    channels[Channel.T1] = _texture(tissues)

    region = _regions(channels, axes, blur, ventricles, lateral_distance)
    return AnatomyPack(
        fractions=quantize(channels), code=encode_sides(region, x), affine=affine, name="synthetic"
    )


def _union(axes: Axes, blur: float, shapes: tuple[Ellipsoid, ...]) -> np.ndarray:
    """Fraction of each voxel inside any of the shapes."""
    return soften(np.minimum.reduce([shape.distance(axes) for shape in shapes]), blur)


def _pair_or_midline(axes: Axes, blur: float, *shapes: Ellipsoid) -> np.ndarray:
    """The shapes of the right side and their mirror images."""
    return _union((np.abs(axes[0]), axes[1], axes[2]), blur, shapes)


def _folding(axes: Axes) -> np.ndarray:
    """Depth in mm, 0..12, by which the cortex is folded inwards: a lattice of sulci on the ellipsoid."""
    x, y, z = (axis - c for axis, c in zip(axes, _CEREBRUM.center, strict=True))
    azimuth = np.arctan2(y, x)
    elevation = np.arctan2(z, np.hypot(x, y))
    wave = np.cos(13 * azimuth + 3 * np.sin(5 * elevation)) * np.cos(8 * elevation + 2 * np.sin(3 * azimuth))
    return 12.0 * np.clip((np.abs(wave) - 0.45) / 0.5, 0.0, 1.0)


def _paint_head(tissues: np.ndarray, axes: Axes, blur: float, ventricles: np.ndarray) -> None:
    """Fill the five tissues from the outside inwards; each shape covers those before it."""
    mirrored: Axes = (np.abs(axes[0]), axes[1], axes[2])
    tissues[Channel.AIR] = 1.0
    paint(tissues, Channel.SOFT_TISSUE, _HEAD.inside(axes, blur))
    paint(tissues, Channel.AIR, _union(axes, blur, _SINUSES))
    paint(tissues, Channel.CSF, _union(axes, blur, (_CRANIUM, _FOSSA)) * _HEAD.inside(axes, blur))

    cut = np.minimum(1.2 - mirrored[0], _CORE.distance(axes))  # > 0 in the fissure between the hemispheres
    sylvian = _SYLVIAN.distance(mirrored)
    surface = _CEREBRUM.distance(axes)
    folds = _folding(axes)
    cortex = np.maximum.reduce([surface + folds, cut, -sylvian])
    white = np.maximum.reduce([surface + 4.5 + folds, np.minimum(5.5 - mirrored[0], _CORE.distance(axes))])
    white = np.maximum(white, 4.0 - sylvian)
    paint(tissues, Channel.GRAY_MATTER, soften(cortex, blur))
    paint(tissues, Channel.WHITE_MATTER, soften(white, blur))
    cerebellum = _CEREBELLUM.distance(mirrored)
    paint(tissues, Channel.GRAY_MATTER, soften(cerebellum, blur))
    paint(tissues, Channel.WHITE_MATTER, soften(cerebellum + 8.0, blur))
    paint(tissues, Channel.WHITE_MATTER, _union(axes, blur, _BRAINSTEM))
    paint(tissues, Channel.CSF, ventricles)


def _vessels(axes: Axes) -> np.ndarray:
    """Arteries of the base, straight sinus, and the superior sagittal sinus along the vault."""
    prior = np.maximum.reduce([tube(axes, start, end, 1.5) for start, end in _ARTERIES])
    vault = np.hypot(np.abs(axes[0]), _CRANIUM.distance(axes)) / 2.5
    sagittal = np.exp(-0.5 * vault**2) * ((axes[2] > 0) & (axes[1] < 60))
    return np.maximum(prior, sagittal)


def _texture(tissues: np.ndarray) -> np.ndarray:
    """T1-like intensity with smooth fixed noise of a few per cent."""
    noise = np.random.default_rng(0).normal(size=tissues.shape[1:]).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, 1.5)
    intensity = sum(value * tissues[channel] for channel, value in _T1.items())
    return np.clip(intensity * (1.0 + 0.03 * noise / noise.std()), 0.0, 1.0)


def _regions(
    channels: np.ndarray, axes: Axes, blur: float, ventricles: np.ndarray, lateral_distance: np.ndarray
) -> np.ndarray:
    """Region label of each voxel, (X, Y, Z) uint8."""
    x, y, z = np.abs(axes[0]), axes[1], axes[2]
    tissues = channels[:NUM_TISSUES]
    dominant = tissues.argmax(axis=0)
    white = dominant == Channel.WHITE_MATTER
    brain = white | (dominant == Channel.GRAY_MATTER)

    lobe = np.full(dominant.shape, Region.PARIETAL, np.uint8)
    lobe[np.broadcast_to(y > -5 - 0.45 * (z - 10), lobe.shape)] = Region.FRONTAL
    lobe[np.broadcast_to((z < -2 - 0.25 * y) & (x > 16) & (y < 18), lobe.shape)] = Region.TEMPORAL
    lobe[np.broadcast_to(y < -68, lobe.shape)] = Region.OCCIPITAL
    near_sylvian = (_SYLVIAN.distance((x, y, z)) < 5.0) & (x < 44)
    lobe[near_sylvian & ~white] = Region.INSULA
    lobe[white & (lateral_distance < 10.0)] = Region.DEEP_WHITE_MATTER
    lobe[white & (x >= 29) & (x < 36) & (np.abs(y) < 18) & (np.abs(z - 2) < 12)] = Region.EXTERNAL_CAPSULE
    lobe[white & (x >= 12) & (x < 24) & (np.abs(y - 1) < 20) & (np.abs(z - 5) < 12)] = Region.INTERNAL_CAPSULE
    lobe[_CALLOSUM.inside(axes, blur) >= 0.5] = Region.CORPUS_CALLOSUM
    for channel in (Channel.CAUDATE, Channel.PUTAMEN, Channel.PALLIDUM):
        lobe[channels[channel] >= 0.5] = Region.BASAL_GANGLIA
    lobe[channels[Channel.THALAMUS] >= 0.5] = Region.THALAMUS
    lobe[_CEREBELLUM.inside((x, y, z), blur) >= 0.5] = Region.CEREBELLUM
    lobe[_union(axes, blur, _BRAINSTEM) >= 0.5] = Region.BRAINSTEM

    region = np.where(brain, lobe, Region.OUTSIDE).astype(np.uint8)
    region[dominant == Channel.CSF] = Region.SULCAL_CSF
    region[(dominant == Channel.CSF) & (ventricles >= 0.5)] = Region.VENTRICLE
    return region
