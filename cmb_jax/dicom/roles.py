"""What kind of image a stack is, told from its headers, with the reason.

The evidence, strongest first: the attribute Complex Image Component (PS3.3 C.8.13.3.1.1) and GE's private
image type, values of Image Type that vendors use, then words in the names of series, protocol and sequence.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from cmb_jax.dicom.stacks import Stack

_LEAST_T2STAR_ECHO_MS = 10.0


class Role(enum.Enum):
    """What a stack can be used for."""

    SWI = "swi"
    MAGNITUDE = "magnitude"  # of a gradient echo
    PHASE = "phase"
    REAL = "real"
    IMAGINARY = "imaginary"
    PROJECTION = "projection"  # minimum or maximum intensity: not a volume of slices
    OTHER = "other"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognition:
    """A role, and why."""

    role: Role
    reason: str


def _pattern(words: str) -> re.Pattern[str]:
    """Any of the words, not inside a longer one; digits and signs may follow or precede."""
    return re.compile(rf"(?<![a-z])(?:{words})(?![a-z])")


_PROJECTION_TYPES = {"MNIP", "MINIP", "MIP", "MIN IP", "MINIMUM", "MAXIMUM", "PROJECTION IMAGE"}
_PROJECTION = _pattern("mips?|minips?|mnips?|min ip")
_SWI_TYPES = {"SWI", "SWIP", "SWAN", "M_SWI"}
_SWI = re.compile(r"swi(?!tch|ng|ft)|(?<![a-z])swan|ven ?bold|suscept")
_PHASE = re.compile(r"(?<![a-z])pha(?:se)?(?![a-z])(?! ?contrast)")
_MAGNITUDE = re.compile(r"(?<![a-z])mag(?:n|ni|nitude)?(?![a-z])")
_MAP = _pattern(r"qsm|chi|chimap|r2 ?\*|r2s(?:tar)?|t2\*? ?map|t2smap")
# gre_field_mapping (Siemens), B0map, B0rf and 3db0map (GE), FieldMap, fmap, and what people make of these
_FIELD_MAP = re.compile(
    r"field ?-?map|(?<![a-z])(?:fmap|(?:3d)?b0 ?-?(?:map|gre|field|rf)?)(?![a-z])|phase ?-?diff"
)
_T2STAR = re.compile(r"t2 ?\*|t2 ?s(?:tar)?(?![a-z])|(?<![a-z])(?:gre|hemo|haemo|medic|megre)(?![a-z])|ffe")


def recognize(stack: Stack) -> Recognition:
    """The role of a stack. Never guesses: what shows no sign of susceptibility weighting is OTHER."""
    instance, frame = stack.instance, stack.first
    types = set(frame.image_type)
    series = _lower(instance.description)
    names = _lower(f"{instance.description} {instance.protocol} {instance.sequence}")
    if instance.modality != "MR":
        return _other(f"modality {instance.modality or 'not stated'}, not MR")
    if "LOCALIZER" in types:
        return _other("localizer")
    if types & _PROJECTION_TYPES or _PROJECTION.search(series):
        return Recognition(role=Role.PROJECTION, reason="intensity projection by image type or name")
    if _MAP.search(series):
        return _other("a computed map, by its name")
    if _FIELD_MAP.search(names):
        return _other("field mapping, by the name of series or protocol")
    susceptibility = bool(types & _SWI_TYPES or _SWI.search(names))
    component = frame.component
    if component in ("REAL", "IMAGINARY"):
        return Recognition(role=Role[component], reason=f"{component.lower()} part, stated in the header")
    if component == "PHASE" or _PHASE.search(series):
        told = "stated in the header" if component == "PHASE" else "by the series' name"
        return Recognition(role=Role.PHASE, reason=f"phase, {told}")
    if _MAGNITUDE.search(series) and (susceptibility or instance.gradient_echo):
        return Recognition(role=Role.MAGNITUDE, reason="magnitude of a gradient echo, by the series' name")
    if types & _SWI_TYPES:
        return Recognition(role=Role.SWI, reason=f"image type {', '.join(sorted(types & _SWI_TYPES))}")
    if _SWI.search(series):
        return Recognition(role=Role.SWI, reason="susceptibility-weighted, by the series' name")
    if susceptibility:
        return Recognition(role=Role.MAGNITUDE, reason="magnitude of a susceptibility-weighted sequence")
    return _gradient_echo(stack, series)


def _gradient_echo(stack: Stack, series: str) -> Recognition:
    instance, echo = stack.instance, stack.first.echo_ms
    if instance.echo_planar:
        return _other("echo-planar, no sign of susceptibility weighting")
    long_enough = echo is not None and echo >= _LEAST_T2STAR_ECHO_MS
    if instance.gradient_echo and (long_enough or _T2STAR.search(series)):
        told = "" if echo is None else f", echo time {echo:g} ms"
        return Recognition(role=Role.MAGNITUDE, reason=f"gradient echo{told}")
    return _other("no sign of susceptibility weighting")


def _lower(text: str) -> str:
    return text.lower().replace("_", " ")


def _other(reason: str) -> Recognition:
    return Recognition(role=Role.OTHER, reason=reason)
