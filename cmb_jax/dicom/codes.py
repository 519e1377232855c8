"""Coded terms of the DICOM output.

Codes of public schemes are those that the standard's context groups use (pydicom's dictionary of PS3.16),
except Definite and Possible, which are SNOMED CT's qualifier values. Zones and regions of MARS (Gregoire et
al. 2009, Neurology 73:1759) and counts of microbleeds are in no public scheme; they have codes of our own,
`99CMBJAX`, which the objects declare.
"""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from cmb_jax.anatomy.regions import Region

SCHEME = "99CMBJAX"

ABNORMAL_STRUCTURE: Code = codes.SCT.MorphologicallyAbnormalStructure
HEMORRHAGE: Code = codes.SCT.Hemorrhage  # no context group has a term for a microbleed: labels say it
BRAIN: Code = codes.SCT.Brain
DIAMETER: Code = codes.SCT.Diameter
VOLUME: Code = codes.SCT.Volume
CERTAINTY: Code = codes.DCM.CertaintyOfFinding  # 0 to 100 %, given by a device
MILLIMETER: Code = codes.UCUM.Millimeter
CUBIC_MILLIMETER: Code = codes.UCUM.CubicMillimeter
PERCENT: Code = codes.UCUM.Percent
NO_UNITS: Code = codes.UCUM.NoUnits
MRI: Code = codes.LN.MRIUnspecifiedBodyRegion
ARTIFICIAL_INTELLIGENCE: Code = codes.DCM.ArtificialIntelligence

SIDES: dict[str, Code] = {"left": codes.SCT.Left, "right": codes.SCT.Right}

REGIONS: dict[str, Code] = {
    Region.BRAINSTEM.name.lower(): codes.SCT.BrainStem,
    Region.CEREBELLUM.name.lower(): codes.SCT.Cerebellum,
    # caudate, putamen, pallidum and accumbens, as the region map has them
    Region.BASAL_GANGLIA.name.lower(): codes.SCT.CorpusStriatum,
    Region.THALAMUS.name.lower(): codes.SCT.Thalamus,
    Region.INTERNAL_CAPSULE.name.lower(): codes.SCT.InternalCapsule,
    Region.EXTERNAL_CAPSULE.name.lower(): codes.SCT.ExternalCapsule,
    Region.CORPUS_CALLOSUM.name.lower(): codes.SCT.CorpusCallosum,
    Region.DEEP_WHITE_MATTER.name.lower(): codes.SCT.CerebralWhiteMatter,
    Region.FRONTAL.name.lower(): codes.SCT.FrontalLobe,
    Region.PARIETAL.name.lower(): codes.SCT.ParietalLobe,
    Region.TEMPORAL.name.lower(): codes.SCT.TemporalLobe,
    Region.OCCIPITAL.name.lower(): codes.SCT.OccipitalLobe,
    Region.INSULA.name.lower(): codes.SCT.Insula,
}
"""Finding site for each region of `detections.csv`; other regions are coded as brain."""

CATEGORIES: dict[str, Code] = {
    "definite": Code("255545003", "SCT", "Definite"),
    "possible": Code("371930009", "SCT", "Possible"),
}


def own_code(value: str, meaning: str) -> Code:
    """A code of our own scheme."""
    return Code(value, SCHEME, meaning)


CATEGORY = own_code("CATEGORY", "Microbleed rating (MARS)")
ZONE = own_code("ZONE", "Microbleed zone (MARS)")
REGION = own_code("REGION", "Microbleed region (MARS)")
ZONES: dict[str, Code] = {
    "lobar": own_code("Z-LOBAR", "Lobar"),
    "deep": own_code("Z-DEEP", "Deep"),
    "infratentorial": own_code("Z-INFRA", "Infratentorial"),
    "none": own_code("Z-NONE", "Not determined"),
}
COUNTS: dict[str, Code] = {
    "all": own_code("COUNT", "Number of microbleeds"),
    "lobar": own_code("COUNT-LOBAR", "Number of lobar microbleeds"),
    "deep": own_code("COUNT-DEEP", "Number of deep microbleeds"),
    "infratentorial": own_code("COUNT-INFRA", "Number of infratentorial microbleeds"),
}
MARS_REGIONS: dict[str, Code] = {
    region.name.lower(): own_code(f"R-{region:02d}", region.name.replace("_", " ").capitalize())
    for region in Region
    if region is not Region.OUTSIDE
} | {"none": own_code("R-NONE", "Not determined")}
"""The MARS region, in addition to the finding site: the map's labels are not SNOMED's structures."""


def scheme_identification() -> CodingSchemeIdentificationItem:
    """The declaration of our scheme in an object."""
    return CodingSchemeIdentificationItem(
        designator=SCHEME, name="cmb-jax microbleed terms", responsible_organization="cmb_jax maintainers"
    )
