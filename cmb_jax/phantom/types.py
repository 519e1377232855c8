"""What goes into a simulated subject and what comes out of it."""

import dataclasses
import enum
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cmb_jax.anatomy.regions import Region, Side, Zone
from cmb_jax.io.volume import Volume

CMB_KIND = 0  # `LesionTable.kind` of a microbleed that counts; every other kind is a `MimicKind`


READER_MM = (2.0, 10.0)
"""Smallest and largest diameter, as seen, of what readers call a microbleed (Greenberg et al. 2009)."""


class MimicKind(enum.IntEnum):
    """What could be mistaken for a microbleed.

    Codes are stored in label images: new kinds are added at the end. Where two overlap, the higher code is
    kept, but the two artifacts and the ignored microbleeds give way to all others.
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
    IGNORED_MICROBLEED = 17  # simulated, but readers may miss it: neither truth nor negative


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


def place_names(region: int, side: int, zone: int) -> tuple[str, str, str]:
    """Names in the truth table of a region, a side and a zone."""
    return Region(region).name.lower(), Side(side).name.lower(), Zone(zone).name.lower()


def truth_rows(
    ids: np.ndarray,
    kind: np.ndarray,
    center_mm: np.ndarray,
    diameter_mm: np.ndarray,
    apparent_mm: np.ndarray,
    chi_ppm: np.ndarray,
    cnr: np.ndarray,
    places: Iterable[tuple[str, str, str]],
) -> list[LesionRow]:
    """Lines of the truth table of N lesions; center_mm (N, 3), places of `place_names`."""
    columns = (ids, kind, *center_mm.T, diameter_mm, apparent_mm, chi_ppm, cnr)
    rows = []
    for number, code, x, y, z, diameter, apparent, chi, contrast, (region, side, zone) in zip(
        *(column.tolist() for column in columns), places, strict=True
    ):
        name = "cmb" if code == CMB_KIND else MimicKind(code).name.lower()
        rows.append(LesionRow(number, name, x, y, z, diameter, apparent, chi, region, side, zone, contrast))
    return rows


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
        """(N,) bool: a microbleed that readers may miss, neither truth nor negative."""
        return self.kind == MimicKind.IGNORED_MICROBLEED

    @property
    def is_mimic(self) -> np.ndarray:
        """(N,) bool: a calcification or a cavernoma."""
        return ~(self.is_cmb | self.is_ignored)

    def rows(self) -> list[LesionRow]:
        """The table by line, codes as lower-case names."""
        places = map(place_names, self.region.tolist(), self.side.tolist(), self.zone.tolist())
        sizes = (self.diameter_mm, self.apparent_diameter_mm, self.chi_ppm, self.cnr)
        return truth_rows(self.id, self.kind, self.center_mm, *sizes, places)


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
