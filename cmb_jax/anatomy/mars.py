"""MARS regions (Gregoire et al. 2009, Neurology 73:1759) for every voxel of the brain, from two atlases.

Labels come from the JHU-MNI "Eve" atlas (Oishi et al. 2009, here called Mori after its file) and, for the
deep nuclei, from the Melbourne subcortex atlas at 7 T (Tian et al. 2020).
"""

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.pack import Axes, Channel, Ellipsoid
from cmb_jax.anatomy.regions import Region

DEEP_WHITE_MATTER_MM = 10.0  # MARS: white matter that touches or lies within about 10 mm of the ventricles
CINGULATE_BORDER_MM = -25.0  # y of the border between its frontal and its parietal part
_LOBE_BLUR_MM = 2.5  # sigma of the vote that smooths the borders between lobes
_LOBES = (Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)


def _ids(*ranges: int | tuple[int, int]) -> tuple[int, ...]:
    """Single labels and inclusive ranges of labels."""
    return tuple(
        label
        for item in ranges
        for label in ((item,) if isinstance(item, int) else range(item[0], item[1] + 1))
    )


MORI_REGIONS: dict[Region, tuple[int, ...]] = {
    Region.BRAINSTEM: _ids((55, 64), 95, 96, (109, 112), (123, 128)),
    Region.CEREBELLUM: _ids(53, 54, 97, 98),
    Region.BASAL_GANGLIA: _ids((115, 118), 121, 122),
    Region.THALAMUS: _ids(119, 120),
    Region.INTERNAL_CAPSULE: _ids((65, 68), 107, 108),
    Region.EXTERNAL_CAPSULE: _ids(91, 92),
    Region.CORPUS_CALLOSUM: _ids((101, 106), 113, 114),
    Region.DEEP_WHITE_MATTER: _ids((69, 90), 93, 94, 99, 100),
    Region.FRONTAL: _ids((5, 12), (39, 42), 45, 46),
    Region.PARIETAL: _ids(1, 2, (13, 16), 43, 44),
    Region.TEMPORAL: _ids((21, 24), (31, 38), (49, 52)),
    Region.OCCIPITAL: _ids((17, 20), (25, 30)),
    Region.INSULA: _ids(47, 48),
}
MORI_CINGULATE = (3, 4)
MORI_MEDIAL_PARIETO_OCCIPITAL = (17, 18)  # one label for cuneus and precuneus
MORI_MIDDLE_PEDUNCLE = (97, 98)

# Labels of the Melbourne atlas on the right; the left ones are 31 higher.
MELBOURNE_LEFT_OFFSET = 31
MELBOURNE_NUCLEI: dict[Channel, tuple[int, ...]] = {
    Channel.CAUDATE: (7, 8, 24, 31),
    Channel.PUTAMEN: (20, 21, 22, 23),
    Channel.PALLIDUM: (27, 28),
    Channel.THALAMUS: _ids(5, 6, (13, 19)),
}
MELBOURNE_REGIONS: dict[Region, tuple[int, ...]] = {
    Region.BASAL_GANGLIA: _ids(7, 8, (20, 24), (27, 31)),  # with the nucleus accumbens
    Region.THALAMUS: MELBOURNE_NUCLEI[Channel.THALAMUS],
    Region.TEMPORAL: _ids((1, 4), (9, 12), 25, 26),  # hippocampus and amygdala
}

# Where the ventricles can be, right half (mm): CSF in here is ventricular, CSF elsewhere is not.
_LATERAL_ENVELOPES = (
    Ellipsoid((8, 22, 10), (14, 20, 15)),  # frontal horn
    Ellipsoid((10, -4, 19), (15, 26, 11)),  # body, anterior part
    Ellipsoid((17, -27, 18), (14, 16, 12)),  # body, posterior part
    Ellipsoid((27, -46, 8), (13, 22, 15)),  # atrium and occipital horn
)
_FISSURE = Ellipsoid((0, 38, 10), (3, 18, 34))  # between the hemispheres, before the genu: not ventricle
_TEMPORAL_HORN_ENVELOPES = (Ellipsoid((33, -22, -12), (9, 24, 11)),)
_THIRD_ENVELOPES = (Ellipsoid((0, -11, 0), (6, 16, 11)), Ellipsoid((0, -31, -8), (2.5, 7, 8)))
_FOURTH_ENVELOPES = (Ellipsoid((0, -41, -32), (13, 9, 16)),)


def label_regions(labels: np.ndarray, groups: dict[Region, tuple[int, ...]]) -> np.ndarray:
    """Region of each atlas label, OUTSIDE where the atlas has none; any shape, uint8."""
    table = np.zeros(256, np.uint8)
    for region, members in groups.items():
        table[list(members)] = region
    return table[labels]


def find_ventricles(csf: np.ndarray, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """CSF voxels of the lateral ventricles less their temporal horns, and of all ventricles; bool (X, Y, Z).

    `csf` (X, Y, Z) bool: CSF dominates. A voxel counts when it lies in an envelope drawn about the ventricle
    and in one of the larger connected pieces there, so that cisterns and sulci at the rim stay out.
    """
    right: Axes = (np.abs(axes[0]), axes[1], axes[2])
    lateral = _pieces(csf & (_FISSURE.distance(axes) > 0), right, _LATERAL_ENVELOPES, least_voxels=100)
    others = _pieces(csf, right, _TEMPORAL_HORN_ENVELOPES, least_voxels=20)
    others |= _pieces(csf, right, _THIRD_ENVELOPES, least_voxels=30)
    others |= _pieces(csf, right, _FOURTH_ENVELOPES, least_voxels=100)
    return lateral, lateral | others


def _pieces(csf: np.ndarray, axes: Axes, shapes: tuple[Ellipsoid, ...], least_voxels: int) -> np.ndarray:
    """CSF inside any of the shapes, in connected pieces of at least that many voxels."""
    envelope = np.minimum.reduce([shape.distance(axes) for shape in shapes]) <= 0.0
    pieces, _ = ndimage.label(csf & envelope)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= least_voxels)[pieces]


def atlas_regions(mori: np.ndarray, melbourne: np.ndarray, axes: Axes) -> np.ndarray:
    """MARS region of each voxel that one of the two atlases names, OUTSIDE elsewhere; (X, Y, Z) uint8."""
    x, y, z = axes
    atlas = label_regions(mori, MORI_REGIONS)
    cingulate = np.isin(mori, MORI_CINGULATE)
    frontal = np.broadcast_to(y > CINGULATE_BORDER_MM, atlas.shape)
    atlas[cingulate] = np.where(frontal, Region.FRONTAL, Region.PARIETAL)[cingulate]
    # The parieto-occipital sulcus: from (y, z) = (-57, 8) mm up and back to (-82, 42) mm.
    before_sulcus = np.broadcast_to(y > -57.0 - (z - 8.0) * 25.0 / 34.0, atlas.shape)
    atlas[np.isin(mori, MORI_MEDIAL_PARIETO_OCCIPITAL) & before_sulcus] = Region.PARIETAL
    # The peduncle's fibers that cross the pons are pons.
    in_pons = np.broadcast_to((np.abs(x) < 16.0) & (y > -38.0), atlas.shape)
    atlas[np.isin(mori, MORI_MIDDLE_PEDUNCLE) & in_pons] = Region.BRAINSTEM
    both_sides = {
        region: labels + tuple(label + MELBOURNE_LEFT_OFFSET for label in labels)
        for region, labels in MELBOURNE_REGIONS.items()
    }
    nuclei = label_regions(melbourne, both_sides)
    return np.where(nuclei > 0, nuclei, atlas)


def assign_regions(
    mori: np.ndarray, melbourne: np.ndarray, tissues: np.ndarray, axes: Axes, *, spacing_mm: float
) -> np.ndarray:
    """MARS region of each voxel, (X, Y, Z) uint8.

    Brain that neither atlas names takes the nearest label; white matter among it takes the nearest lobe, and
    what lies within 10 mm of the lateral ventricles' horns, body and atrium becomes deep white matter.
    The temporal horns do not count: white matter about them is temporal.

    Args:
        mori, melbourne: (X, Y, Z) atlas labels, isotropic voxels.
        tissues: (5, X, Y, Z) fractions.
        axes: MNI coordinates in mm, Right, Anterior, Superior, that broadcast to (X, Y, Z).
        spacing_mm: size of the voxels, isotropic.
    """
    dominant = tissues.argmax(axis=0)
    white = dominant == Channel.WHITE_MATTER
    brain = white | (dominant == Channel.GRAY_MATTER)
    csf = dominant == Channel.CSF
    lateral, ventricles = find_ventricles(csf, axes)

    atlas = atlas_regions(mori, melbourne, axes)
    unnamed = atlas == 0
    region = _nearest(atlas, ~unnamed)
    lobe = _nearest(atlas, _is_lobar(atlas))
    region = np.where(white & unnamed & ~_is_infratentorial(region), lobe, region)
    # Hypothalamus and basal forebrain go with the nearest deep nuclei, not with the midbrain or a lobe.
    x, y, z = axes
    diencephalon = (np.abs(x) < 16.0) & (y > -16.0) & (y < 8.0) & (z > -16.0) & (z < 4.0)
    nucleus = _nearest(atlas, (atlas == Region.BASAL_GANGLIA) | (atlas == Region.THALAMUS))
    region = np.where(unnamed & diencephalon, nucleus, region)
    region = _smooth_lobes(region, brain, _LOBE_BLUR_MM / spacing_mm)
    near = spacing_mm * ndimage.distance_transform_edt(~lateral) <= DEEP_WHITE_MATTER_MM
    region[white & near & _is_lobar(region)] = Region.DEEP_WHITE_MATTER

    region = np.where(brain, region, Region.OUTSIDE).astype(np.uint8)
    region[csf] = Region.SULCAL_CSF
    region[ventricles] = Region.VENTRICLE
    return region


def _is_lobar(region: np.ndarray) -> np.ndarray:
    return (region >= Region.FRONTAL) & (region <= Region.INSULA)


def _is_infratentorial(region: np.ndarray) -> np.ndarray:
    return (region == Region.BRAINSTEM) | (region == Region.CEREBELLUM)


def _smooth_lobes(region: np.ndarray, brain: np.ndarray, sigma: float) -> np.ndarray:
    """Give each voxel of the four lobes to the lobe that most of its neighborhood belongs to."""
    votes = np.stack(
        [ndimage.gaussian_filter(((region == lobe) & brain).astype(np.float32), sigma) for lobe in _LOBES]
    )
    winner = np.array(_LOBES, np.uint8)[votes.argmax(axis=0)]
    return np.where(np.isin(region, _LOBES) & brain, winner, region)


def _nearest(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Every voxel takes the label of the nearest voxel where `known` holds."""
    indices = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return labels[tuple(indices)]
