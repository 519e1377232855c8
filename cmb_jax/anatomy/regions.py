"""Names, codes and zones of the brain regions (MARS: Gregoire et al. 2009, Neurology 73:1759)."""

import dataclasses
import enum

import numpy as np


class Region(enum.IntEnum):
    """Labels of a region map: 13 MARS regions, two kinds of CSF, and outside."""

    OUTSIDE = 0
    BRAINSTEM = 1
    CEREBELLUM = 2
    BASAL_GANGLIA = 3
    THALAMUS = 4
    INTERNAL_CAPSULE = 5
    EXTERNAL_CAPSULE = 6
    CORPUS_CALLOSUM = 7
    DEEP_WHITE_MATTER = 8  # deep and periventricular white matter
    FRONTAL = 9
    PARIETAL = 10
    TEMPORAL = 11
    OCCIPITAL = 12
    INSULA = 13
    VENTRICLE = 14
    SULCAL_CSF = 15


class Side(enum.IntEnum):
    """Hemisphere of the patient."""

    NONE = 0
    LEFT = 1
    RIGHT = 2


class Zone(enum.IntEnum):
    """The three-way roll-up of the MARS regions."""

    NONE = 0
    LOBAR = 1
    DEEP = 2
    INFRATENTORIAL = 3


NUM_REGIONS = len(Region)

# Zone of every region label, indexed by the label.
ZONE_OF_REGION: np.ndarray = np.array(
    [Zone.NONE] + [Zone.INFRATENTORIAL] * 2 + [Zone.DEEP] * 6 + [Zone.LOBAR] * 5 + [Zone.NONE] * 2,
    dtype=np.int32,
)


def encode(region: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Region and side labels in one uint8 map: code = 16 * side + region. Any shape."""
    return (np.asarray(side, np.uint8) * 16 + np.asarray(region, np.uint8)).astype(np.uint8)


def region_of(code):
    """Region label of a code (NumPy or JAX array of any shape)."""
    return code % 16


def side_of(code):
    """Side label of a code (NumPy or JAX array of any shape)."""
    return code // 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionMap:
    """Region codes on a grid of their own."""

    code: np.ndarray  # (X, Y, Z) uint8, 16 * side + region
    affine: np.ndarray  # (4, 4), voxel index (x, y, z) -> RAS mm
    trusted: bool = True  # False: zones must not be reported (partial field of view, implausible volumes)
    messages: tuple[str, ...] = ()  # what is to be said of it, such as why it is not trusted
