"""What goes into a simulated subject and what comes out of it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cmb_jax.anatomy.regions import Region, Side, Zone
from cmb_jax.io.volume import Volume

CMB_KIND = 0  # `LesionTable.kind` of a microbleed that counts; every other kind is a `MimicKind`


READER_MM = (2.0, 10.0)
"""Smallest and largest diameter, as seen, of what readers call a microbleed (Greenberg et al. 2009)."""


class MimicKind(enum.IntEnum):
    """What a voxel that is no counted microbleed may be mistaken for.

    Codes are stored in label images: new kinds are added at the end. Where two meet, the higher code is kept,
    except that the two artifacts and the ignored microbleeds give way to all others.
    """

    NONE = 0
    AIR_TISSUE_BORDER = 1
    IRON_NUCLEUS = 2
    SINUS = 3  # dural sinuses
    MEDULLARY_VEIN = 4
    PIAL_VEIN = 5
    DEEP_VEIN = 6
    CALCIFICATION_PALLIDUM = 7
    CALCIFICATION_CHOROID = 8
    CALCIFICATION_PINEAL = 9
    CALCIFICATION_PIAL = 10
    CALCIFICATION_PARENCHYMAL = 11
    ARTERY = 12  # flow void, or inflow: no susceptibility
    CAVERNOMA = 13
    SUPERFICIAL_SIDEROSIS = 14
    MOTION_GHOST = 15
    GIBBS_RINGING = 16
    IGNORED_MICROBLEED = 17  # simulated, but no reader would see it for sure: neither truth nor negative


CALCIFICATIONS: tuple[MimicKind, ...] = tuple(kind for kind in MimicKind if kind.name.startswith("CALC"))
FOCAL_MIMICS: tuple[MimicKind, ...] = (*CALCIFICATIONS, MimicKind.CAVERNOMA)  # rows of the lesion table


class LesionRow(NamedTuple):
    """One line of the truth table."""

    id: int
    kind: str
    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float
    apparent_diameter_mm: float
    chi_ppm: float
    region: str
    side: str
    zone: str
    cnr: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionTable:
    """Microbleeds that count (ids 1..n are their instance labels), focal mimics, ignored microbleeds.

    One entry for each lesion, in that order.
    """

    id: np.ndarray  # (N,) int32
    kind: np.ndarray  # (N,) int32: CMB_KIND or a MimicKind
    center_mm: np.ndarray  # (N, 3) float64, RAS
    diameter_mm: np.ndarray  # (N,) float64, true (hemosiderin, calcium)
    apparent_diameter_mm: np.ndarray  # (N,) float64, with blooming
    chi_ppm: np.ndarray  # (N,) float64, against its surroundings
    region: np.ndarray  # (N,) int32, Region
    side: np.ndarray  # (N,) int32, Side
    zone: np.ndarray  # (N,) int32, Zone
    cnr: np.ndarray  # (N,) float64, see `phantom.visibility`

    def __len__(self) -> int:
        """Number of lesions, mimics and ignored ones included."""
        return len(self.id)

    @property
    def is_cmb(self) -> np.ndarray:
        """(N,) bool: a microbleed that counts."""
        return self.kind == CMB_KIND

    @property
    def is_ignored(self) -> np.ndarray:
        """(N,) bool: a microbleed that no reader would see for sure, neither truth nor negative."""
        return self.kind == MimicKind.IGNORED_MICROBLEED

    @property
    def is_mimic(self) -> np.ndarray:
        """(N,) bool: a calcification or a cavernoma."""
        return ~(self.is_cmb | self.is_ignored)

    def rows(self) -> Iterator[LesionRow]:
        """The table by line, codes as lower-case names."""
        for i in range(len(self)):
            kind = int(self.kind[i])
            x, y, z = (float(v) for v in self.center_mm[i])
            yield LesionRow(
                id=int(self.id[i]),
                kind="cmb" if kind == CMB_KIND else MimicKind(kind).name.lower(),
                x_mm=x,
                y_mm=y,
                z_mm=z,
                diameter_mm=float(self.diameter_mm[i]),
                apparent_diameter_mm=float(self.apparent_diameter_mm[i]),
                chi_ppm=float(self.chi_ppm[i]),
                region=Region(int(self.region[i])).name.lower(),
                side=Side(int(self.side[i])).name.lower(),
                zone=Zone(int(self.zone[i])).name.lower(),
                cnr=float(self.cnr[i]),
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectSettings:
    """How one subject is simulated. None: as the protocol or the tier says."""

    protocol: str = "iso05"
    """Name in `cmb_jax.phantom.PROTOCOLS`."""
    tier: str = "easy"
    """Name in `cmb_jax.phantom.TIERS`: how faint the microbleeds, how many the mimics, how good the scan."""
    mean_cmbs: float | None = None
    """Mean number of microbleeds; None: as in patients, a quarter with none and a heavy tail up to 60."""
    simulation_spacing_mm: float = 0.6
    """In-plane voxel edge of the grid on which the field is computed; 1.25 times as much along the slices."""
    te_ms: tuple[float, float] | None = None
    """Range of the echo time in ms."""
    b0_t: float | None = None
    """Field strength in T."""
    snr: tuple[float, float] | None = None
    """Range of the mean brain signal over the noise of one channel."""
    variety: float = 0.0
    """How much wider than the protocol's every range of its scanner is, as a share at either end."""
    diameters_mm: tuple[float, float] | None = None
    """Smallest and largest true diameter of a microbleed in mm."""
    gap_mm: float = 1.0
    """Least distance in mm between the apparent borders of two lesions; negative lets them overlap."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomSubject:
    """One simulated scan with its truth. All arrays (X, Y, Z) share the acquired grid."""

    swi: Volume  # susceptibility-weighted magnitude, arbitrary units; plain magnitude without phase
    phase: Volume | None  # radians, sign as the protocol stores it; high-passed unless the protocol is raw
    magnitude: Volume
    cmb_labels: np.ndarray  # uint16 instance ids: apparent (bloomed) extent of each microbleed
    mimic_labels: np.ndarray  # uint8 MimicKind
    region_code: np.ndarray  # uint8, 16 * side + region
    lesions: LesionTable
    protocol: str
    tier: str
    anatomy: str  # name of the pack
    seed: int
    te_ms: float
    b0_t: float
    tr_ms: float
    flip_deg: float
    snr: float  # mean brain signal over the noise of one channel
    motion_mm: float  # root mean square displacement of the head during the scan
    phase_sign: int  # +1: paramagnetic tissue has positive phase
