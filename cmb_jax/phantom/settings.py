"""What is simulated: acquisition protocols, tiers of difficulty, and which settings are possible."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, TypeVar

import jax
import numpy as np

from cmb_jax.errors import UserError
from cmb_jax.phantom.acquisition import ScannerRanges, widen_scanner, widened


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectSettings:
    """How one subject is simulated. None: as the protocol or the tier says."""

    protocol: str = "iso05"
    """Name in `PROTOCOLS`."""
    tier: str = "easy"
    """Name in `TIERS`: how faint the microbleeds, how many the mimics, how good the scan."""
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


MAX_TILT_DEG = 45.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One three-dimensional gradient-echo sequence; ranges are drawn from for each subject."""

    name: str
    about: str
    spacing_mm: tuple[float, float, float]  # (x, y, z) of the acquired and stored grid
    field_of_view_mm: tuple[float, float, float] = (192.0, 240.0, 162.0)  # whole multiples of the spacing
    discarded_slices: int = 1  # at either end of the slab, as scanners do where the excitation falls off
    te_ms: tuple[float, float]
    b0_t: tuple[float, ...]
    snr: tuple[float, float]
    phase: Literal["filtered", "raw", "none"] = "none"  # handed out high-passed, as measured, or not at all
    phase_storage: Literal["radians", "pm4096", "0-4095"] = "radians"
    phase_sign: int = 1  # +1: paramagnetic tissue is stored with positive phase
    tilt_deg: tuple[float, float]  # of the slices about the left-right axis, against the main field
    scanner: ScannerRanges  # contrast, coils, sampling, the vendor's SWI: units are given there

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Acquired voxels (x, y, z), discarded slices included."""
        x, y, z = (round(f / s) for f, s in zip(self.field_of_view_mm, self.spacing_mm, strict=True))
        return (x, y, z)


_WIDE = ScannerRanges(
    tr_ms=(20.0, 1500.0),
    flip_deg=(5.0, 60.0),
    sum_of_squares=0.5,
    in_plane=(0.5, 1.0),
    along_slices=(0.4, 1.0),
)

# Two grids that hold magnitudes of every thickness from 1 to 5 mm: slices are acquired thicker than
# they are stored. Each further grid would be a compiled program of a minute or two.
_WIDE1 = Protocol(
    name="wide1", about="T2*-, T1- or density-weighted magnitude, 0.7 x 0.7 x 1 mm; training only",
    spacing_mm=(0.7, 0.7, 1.0), field_of_view_mm=(196.0, 245.0, 160.0), discarded_slices=3,
    te_ms=(8.0, 42.0), b0_t=(1.5, 3.0, 3.0, 7.0), snr=(8.0, 50.0), tilt_deg=(0.0, 25.0),
    scanner=_WIDE,
)  # fmt: skip

# Spacings are those of the sites named; echo times, field strengths and storage are typical of such scans.
# TR, flip angle and, without phase, echo time are drawn widely around what is typical.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="iso05", about="SWI at 3 T, 0.5 x 0.5 x 2 mm (Kim et al. 2023, high resolution)",
            spacing_mm=(0.5, 0.5, 2.0), discarded_slices=2,
            te_ms=(20.0, 20.0), b0_t=(3.0,), snr=(15.0, 40.0), tilt_deg=(0.0, 0.0),
            phase="filtered",
            scanner=ScannerRanges(tr_ms=(25.0, 40.0)),
        ),
        Protocol(
            name="iso08",
            about="SWI at 1.5 or 3 T, 0.8 x 0.8 x 2 mm, oblique (Kim et al. 2023, low resolution)",
            spacing_mm=(0.8, 0.8, 2.0), discarded_slices=2,
            te_ms=(25.0, 40.0), b0_t=(1.5, 3.0), snr=(15.0, 40.0), tilt_deg=(0.0, 20.0),
            phase="filtered", phase_storage="pm4096", phase_sign=-1,
            scanner=ScannerRanges(tr_ms=(35.0, 60.0), in_plane=(0.85, 1.0)),
        ),
        Protocol(
            name="sabre", about="T2*-weighted magnitude at 3 T, 0.45 x 0.45 x 4 mm (VALDO, SABRE cohort)",
            spacing_mm=(0.45, 0.45, 4.0), field_of_view_mm=(194.4, 243.0, 168.0),
            te_ms=(14.0, 30.0), b0_t=(3.0,), snr=(20.0, 50.0), tilt_deg=(0.0, 20.0),
            scanner=ScannerRanges(tr_ms=(35.0, 1500.0), flip_deg=(10.0, 50.0), acceleration=(1.0, 2.0)),
        ),
        Protocol(
            name="rss",
            about="T2*-weighted magnitude at 1.5 T, 0.49 x 0.49 x 0.8 mm (VALDO, Rotterdam Scan Study)",
            spacing_mm=(0.49, 0.49, 0.8), field_of_view_mm=(196.0, 245.0, 160.0), discarded_slices=4,
            te_ms=(20.0, 40.0), b0_t=(1.5,), snr=(10.0, 20.0), tilt_deg=(0.0, 5.0),
            scanner=ScannerRanges(tr_ms=(30.0, 80.0), flip_deg=(8.0, 25.0), in_plane=(0.6, 1.0)),
        ),
        Protocol(
            name="thick3",
            about="T2*-weighted magnitude and raw phase, 1 x 1 x 3 mm (voxels of VALDO's ALFA cohort)",
            spacing_mm=(1.0, 1.0, 3.0),
            te_ms=(20.0, 40.0), b0_t=(1.5, 3.0), snr=(15.0, 40.0), tilt_deg=(0.0, 15.0),
            phase="raw", phase_storage="0-4095",
            scanner=ScannerRanges(tr_ms=(40.0, 1000.0), flip_deg=(10.0, 35.0), in_plane=(0.85, 1.0)),
        ),
        Protocol(
            name="swi7t", about="SWI at 7 T, 0.4 x 0.4 x 1.5 mm",
            spacing_mm=(0.4, 0.4, 1.5), discarded_slices=2,
            te_ms=(10.0, 16.0), b0_t=(7.0,), snr=(15.0, 30.0), tilt_deg=(0.0, 10.0),
            phase="filtered", phase_sign=-1,
            scanner=ScannerRanges(tr_ms=(20.0, 35.0), flip_deg=(8.0, 15.0), unmatched_phase=0.4),
        ),
        _WIDE1,
        dataclasses.replace(
            _WIDE1,
            name="wide3", about="T2*-, T1- or density-weighted magnitude, 0.5 x 0.5 x 3 mm; training only",
            spacing_mm=(0.5, 0.5, 3.0), field_of_view_mm=(192.0, 240.0, 162.0), discarded_slices=1,
            scanner=dataclasses.replace(_WIDE, along_slices=(0.6, 1.0)),
        ),
        Protocol(
            name="gre5",
            about="T2*-weighted magnitude at 1.5 T, 0.9 x 0.9 x 5 mm; in no split: stands for a new site",
            spacing_mm=(0.9, 0.9, 5.0), field_of_view_mm=(192.6, 239.4, 170.0),
            te_ms=(22.0, 28.0), b0_t=(1.5,), snr=(20.0, 40.0), tilt_deg=(0.0, 20.0),
            scanner=ScannerRanges(tr_ms=(500.0, 900.0), flip_deg=(15.0, 25.0)),
        ),
    )
}  # fmt: skip


def check_protocol(protocol: Protocol) -> None:
    """UserError where a protocol cannot be simulated; it says what is allowed."""
    name = f"protocol {protocol.name}"
    check_range(f"{name}: te_ms", protocol.te_ms, 1.0, 100.0, "ms")
    check_range(f"{name}: snr", protocol.snr, 1.0, 1e4)
    check_range(f"{name}: tilt_deg", protocol.tilt_deg, -MAX_TILT_DEG, MAX_TILT_DEG, "degrees")
    check_range(f"{name}: tr_ms", protocol.scanner.tr_ms, 10.0, 5000.0, "ms")
    check_range(f"{name}: flip_deg", protocol.scanner.flip_deg, 1.0, 90.0, "degrees")
    if not protocol.b0_t or not all(0.1 <= b <= 14 for b in protocol.b0_t):
        raise UserError(
            f"{name}: b0_t is {', '.join(f'{each:g}' for each in protocol.b0_t)}; allowed: 0.1 to 14 T"
        )
    if protocol.phase_sign not in (-1, 1):
        raise UserError(f"{name}: phase_sign is {protocol.phase_sign}; allowed: +1 or -1")
    if min(protocol.spacing_mm) < 0.2:
        raise UserError(f"{name}: spacing_mm is {protocol.spacing_mm}; allowed: 0.2 mm and more")
    sizes = np.array(protocol.field_of_view_mm) / np.array(protocol.spacing_mm)
    if not np.allclose(sizes, np.round(sizes), atol=1e-6):
        raise UserError(f"{name}: field_of_view_mm must be whole multiples of spacing_mm")
    if not 0 <= 2 * protocol.discarded_slices < protocol.matrix[2]:
        raise UserError(f"{name}: discarded_slices is {protocol.discarded_slices}; some slices must be left")


def check_range(name: str, limits: tuple[float, float], low: float, high: float, unit: str = "") -> None:
    """UserError unless low <= limits[0] <= limits[1] <= high."""
    if not (all(map(math.isfinite, limits)) and low <= limits[0] <= limits[1] <= high):
        wide = f"{low:g} to {high:g} {unit}".rstrip()
        raise UserError(f"{name} is {limits[0]:g} to {limits[1]:g}; allowed: {wide}, the smaller first")


LARGEST_LESION_MM = 10.0  # a microbleed is 10 mm across at most (Greenberg et al. 2009)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """Numbers, so that one compiled program serves every tier."""

    faint_share: float  # of the microbleeds: drawn small and of low susceptibility, left as faint as they are
    min_apparent_mm: float  # the others are made at least this large to look at
    calcifications: float  # mean number, over that of healthy old age
    cavernoma: float  # probability
    siderosis: float  # probability
    vein_density: float  # share of the vein slots that are used at the most
    vein_radius: float  # factor
    crossing_veins: float  # share used of the slots of straight veins at every angle to the slices
    end_on: float  # share of these that run along the slices' normal
    artery_void: float  # share of arteries whose signal is lost to flow
    snr: float  # factor
    motion_mm: float  # root mean square displacement, at the most
    hyperintensity: float  # load of white-matter lesions, 0..1
    atrophy: float  # at the most, 0..1


TIERS: dict[str, Tier] = {
    "easy": Tier(
        faint_share=0.0, min_apparent_mm=2.0, calcifications=1.0, cavernoma=0.05, siderosis=0.05,
        vein_density=0.7, vein_radius=0.9, crossing_veins=0.5, end_on=0.2, artery_void=0.4,
        snr=1.0, motion_mm=0.15, hyperintensity=0.5, atrophy=0.5,
    ),
    "hard": Tier(
        faint_share=0.4, min_apparent_mm=1.0, calcifications=4.0, cavernoma=0.2, siderosis=0.2,
        vein_density=1.0, vein_radius=1.2, crossing_veins=0.8, end_on=0.3, artery_void=0.8,
        snr=0.8, motion_mm=0.7, hyperintensity=1.0, atrophy=1.0,
    ),
    # Microbleeds among veins of their own caliber that cross the slices, and among little else.
    "end_on": Tier(
        faint_share=1.0, min_apparent_mm=1.0, calcifications=0.0, cavernoma=0.0, siderosis=0.0,
        vein_density=0.0, vein_radius=1.2, crossing_veins=1.0, end_on=1.0, artery_void=0.0,
        snr=1.0, motion_mm=0.0, hyperintensity=0.0, atrophy=0.5,
    ),
}  # fmt: skip


Choice = TypeVar("Choice")


def _named(what: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        raise UserError(f"unknown {what} {name!r}; choose one of: {', '.join(choices)}")
    return choices[name]


def check_settings(settings: SubjectSettings) -> tuple[Protocol, Tier]:
    """Protocol, with the settings' own ranges put in, and tier; UserError where a setting is impossible."""
    protocol = _named("protocol", settings.protocol, PROTOCOLS)
    tier = _named("tier", settings.tier, TIERS)
    variety = settings.variety
    check_range("variety", (variety, variety), 0.0, 0.5)
    protocol = dataclasses.replace(
        protocol,
        te_ms=settings.te_ms or widened(protocol.te_ms, variety),
        snr=settings.snr or widened(protocol.snr, variety),
        scanner=widen_scanner(protocol.scanner, variety),
        b0_t=protocol.b0_t if settings.b0_t is None else (settings.b0_t,),
    )
    check_protocol(protocol)
    if settings.mean_cmbs is not None and not 0 <= settings.mean_cmbs <= 80:
        raise UserError(
            f"mean_cmbs is {settings.mean_cmbs}; allowed: 0 to 80, or none for patient-like counts"
        )
    if not 0.3 <= settings.simulation_spacing_mm <= 4:
        raise UserError(f"simulation_spacing_mm is {settings.simulation_spacing_mm}; allowed: 0.3 to 4")
    if settings.diameters_mm is not None:
        check_range("diameters_mm", settings.diameters_mm, 0.2, LARGEST_LESION_MM, "mm")
    check_range("gap_mm", (settings.gap_mm, settings.gap_mm), -LARGEST_LESION_MM, 20.0, "mm")
    return protocol, tier
