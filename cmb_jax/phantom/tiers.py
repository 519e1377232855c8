"""How hard a simulated subject is: faintness of microbleeds, number of mimics, quality of the scan."""

from __future__ import annotations

import dataclasses

import jax

from cmb_jax.errors import UserError
from cmb_jax.phantom.protocols import Protocol, check_protocol, check_range, get_protocol
from cmb_jax.phantom.scanner import widen_scanner, widened
from cmb_jax.phantom.types import SubjectSettings

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
        faint_share=0.0,
        min_apparent_mm=2.0,
        calcifications=1.0,
        cavernoma=0.05,
        siderosis=0.05,
        vein_density=0.7,
        vein_radius=0.9,
        crossing_veins=0.5,
        end_on=0.2,
        artery_void=0.4,
        snr=1.0,
        motion_mm=0.15,
        hyperintensity=0.5,
        atrophy=0.5,
    ),
    "hard": Tier(
        faint_share=0.4,
        min_apparent_mm=1.0,
        calcifications=4.0,
        cavernoma=0.2,
        siderosis=0.2,
        vein_density=1.0,
        vein_radius=1.2,
        crossing_veins=0.8,
        end_on=0.3,
        artery_void=0.8,
        snr=0.8,
        motion_mm=0.7,
        hyperintensity=1.0,
        atrophy=1.0,
    ),
    # Microbleeds among veins of their own caliber that cross the slices, and among little else.
    "end_on": Tier(
        faint_share=1.0,
        min_apparent_mm=1.0,
        calcifications=0.0,
        cavernoma=0.0,
        siderosis=0.0,
        vein_density=0.0,
        vein_radius=1.2,
        crossing_veins=1.0,
        end_on=1.0,
        artery_void=0.0,
        snr=1.0,
        motion_mm=0.0,
        hyperintensity=0.0,
        atrophy=0.5,
    ),
}


def get_tier(name: str) -> Tier:
    """The tier of that name; UserError listing the names when there is none."""
    if name not in TIERS:
        raise UserError(f"unknown tier {name!r}; choose one of: {', '.join(TIERS)}")
    return TIERS[name]


def check_settings(settings: SubjectSettings) -> tuple[Protocol, Tier]:
    """Protocol, with the settings' own ranges put in, and tier; UserError where a setting is impossible."""
    protocol, tier = get_protocol(settings.protocol), get_tier(settings.tier)
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
