"""The anatomy pack: everything the phantom needs to know of one brain, on one grid."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from cmb_jax.anatomy.lattice import Lattice


class Channel(enum.IntEnum):
    """Channels of `AnatomyPack.fractions`: each a fraction of the voxel, except the two priors and T1."""

    GRAY_MATTER = 0  # cortex and all other gray matter, deep nuclei included
    WHITE_MATTER = 1
    CSF = 2  # ventricles and sulci
    SOFT_TISSUE = 3  # scalp, muscle, skull and all else of the head that is neither brain nor air
    AIR = 4  # outside the head, sinuses, ear canals
    CAUDATE = 5
    PUTAMEN = 6
    PALLIDUM = 7
    THALAMUS = 8
    RED_NUCLEUS = 9
    SUBSTANTIA_NIGRA = 10  # with the subthalamic nucleus
    DENTATE = 11
    VESSEL_PRIOR = 12  # arteries and venous sinuses: probability
    LESION_PRIOR = 13  # white-matter hyperintensity: probability
    T1 = 14  # T1-weighted intensity, 0..1 of the brain's 99.5th percentile: texture


NUM_CHANNELS = len(Channel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnatomyPack:
    """One brain on an isotropic grid, axes to Right, Anterior, Superior, in or near the frame of MNI space.

    `to_mni` and `from_mni` lead from points of the pack (RAS mm) to points of MNI152NLin2009cAsym (RAS mm)
    and back; None where the two frames are the same (mni2009c) or nothing is to be told apart (synthetic).
    """

    fractions: np.ndarray  # (X, Y, Z, NUM_CHANNELS) uint8, 255 = 1.0; 0..4 sum to 255 up to rounding
    code: np.ndarray  # (X, Y, Z) uint8 region code, see anatomy.regions
    affine: np.ndarray  # (4, 4) float64, voxel index (x, y, z) -> RAS mm
    name: str  # e.g. "mni2009c"
    to_mni: Lattice | None = None
    from_mni: Lattice | None = None
