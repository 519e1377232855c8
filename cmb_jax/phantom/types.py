"""What goes into a simulated subject and what comes out of it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cmb_jax.anatomy.regions import Region, Side, Zone
from cmb_jax.io.volume import Volume

CMB_KIND = 0  # `LesionTable.kind` of a microbleed; every other kind is a `MimicKind`


class MimicKind(enum.IntEnum):
    """What a voxel that is no microbleed may be mistaken for. Where two meet, the higher code is kept."""

    NONE = 0
    AIR_TISSUE_BORDER = 1
    IRON_NUCLEUS = 2
    SINUS = 3  # dural sinuses and arteries of the vessel prior
    MEDULLARY_VEIN = 4
    PIAL_VEIN = 5
    DEEP_VEIN = 6
    CALCIFICATION_PALLIDUM = 7
    CALCIFICATION_CHOROID = 8
    CALCIFICATION_PINEAL = 9
    CALCIFICATION_PIAL = 10
    CALCIFICATION_PARENCHYMAL = 11


FOCAL_MIMICS: tuple[MimicKind, ...] = tuple(kind for kind in MimicKind if kind.name.startswith("CALC"))


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
    """Microbleeds first (ids 1..n are their instance labels), then focal mimics. One entry a lesion."""

    id: np.ndarray  # (N,) int32
    kind: np.ndarray  # (N,) int32: CMB_KIND or a MimicKind
    centre_mm: np.ndarray  # (N, 3) float64, RAS
    diameter_mm: np.ndarray  # (N,) float64, true (haemosiderin, calcium)
    apparent_diameter_mm: np.ndarray  # (N,) float64, with blooming
    chi_ppm: np.ndarray  # (N,) float64, against its surroundings
    region: np.ndarray  # (N,) int32, Region
    side: np.ndarray  # (N,) int32, Side
    zone: np.ndarray  # (N,) int32, Zone
    cnr: np.ndarray  # (N,) float64, see `phantom.visibility`

    def __len__(self) -> int:
        """Number of lesions, mimics included."""
        return len(self.id)

    @property
    def is_cmb(self) -> np.ndarray:
        """(N,) bool: microbleed or mimic."""
        return self.kind == CMB_KIND

    def rows(self) -> Iterator[LesionRow]:
        """The table by line, codes as lower-case names."""
        for i in range(len(self)):
            kind = int(self.kind[i])
            x, y, z = (float(v) for v in self.centre_mm[i])
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
    """How one subject is simulated."""

    protocol: str = "iso05"
    """Name in `cmb_jax.phantom.PROTOCOLS`."""
    mean_cmbs: float | None = None
    """Mean number of microbleeds; None: as in patients, a quarter with none and a heavy tail up to 60."""
    simulation_spacing_mm: float = 0.75
    """Largest voxel edge of the grid on which the field is computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomSubject:
    """One simulated scan with its truth. All arrays (X, Y, Z) share the acquired grid."""

    swi: Volume  # susceptibility-weighted magnitude, arbitrary units
    phase: Volume  # high-passed phase in radians, sign as the protocol stores it
    magnitude: Volume
    cmb_labels: np.ndarray  # uint16 instance ids: apparent (bloomed) extent of each microbleed
    mimic_labels: np.ndarray  # uint8 MimicKind
    region_code: np.ndarray  # uint8, 16 * side + region
    lesions: LesionTable
    protocol: str
    seed: int
    te_ms: float
    b0_t: float
    snr: float  # mean brain signal over the noise of one channel
    phase_sign: int  # +1: paramagnetic tissue has positive phase
