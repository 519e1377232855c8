"""Recognizes the kind of image in each stack of a folder, and chooses the stacks of one scan.

The evidence for a kind, strongest first: the attribute Complex Image Component (PS3.3 C.8.13.3.1.1) and GE's
private image type, values of Image Type that vendors use, then words in the names of series, protocol and
sequence.

BIDS data sets have their own chooser (datasets/bids/choice.py), which ranks all images and always takes the
best. Here, two candidates of one kind are an error that lists them, because headers say too little to prefer
one. A SWI without phase is preferred to magnitude with phase, because the scanner itself made it.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from cmb_jax.dicom.stacks import SAME_ECHO_MS, Stack, same_grid
from cmb_jax.errors import UserError

_LEAST_T2STAR_ECHO_MS = 10.0  # gradient echoes with a shorter TE, such as localizers, are not T2*-weighted


class Role(enum.Enum):
    """The use of a stack."""

    SWI = "swi"
    MAGNITUDE = "magnitude"  # of a gradient echo
    PHASE = "phase"
    REAL = "real"
    IMAGINARY = "imaginary"
    PROJECTION = "projection"  # minimum or maximum intensity: not a volume of slices
    OTHER = "other"


def _whole_words(words: str) -> re.Pattern[str]:
    """Any of the words, but not inside a longer one; digits and punctuation may be adjacent."""
    return re.compile(rf"(?<![a-z])(?:{words})(?![a-z])")


_PROJECTION_TYPES = {"MNIP", "MINIP", "MIP", "MIN IP", "MINIMUM", "MAXIMUM", "PROJECTION IMAGE"}
_PROJECTION = _whole_words("mips?|minips?|mnips?|min ip|thick min")
_SWI_TYPES = {"SWI", "SWIP", "SWAN", "M_SWI"}
_SWI = re.compile(r"swi(?!tch|ng|ft|ss)|(?<![a-z])swan|ven ?bold|suscept")
_PHASE = re.compile(r"(?<![a-z])pha(?:se)?(?![a-z])(?! ?contrast)")
_MAGNITUDE = _whole_words(r"mag(?:n|ni|nitude)?")
_MAP = _whole_words(
    r"qsm[a-z]*|i?swim|suscept[a-z]* map|chi|chimap|r2 ?\*|r2s(?:tar)?|t2\*? ?map|t2smap"
    r"|masks?|overlay|seg(?:mentation)?|sub(?:traction)?"
)
# gre_field_mapping (Siemens), B0map, B0rf and 3db0map (GE), FieldMap, fmap, and variants of these
_FIELD_MAP = re.compile(
    r"field ?-?map|(?<![a-z])(?:fmap|(?:3d)?b0 ?-?(?:map|gre|field|rf)?)(?![a-z])|phase ?-?diff"
)
_T2STAR = re.compile(r"t2 ?\*|t2 ?s(?:tar)?(?![a-z])|(?<![a-z])(?:gre|hemo|haemo|medic|megre)(?![a-z])|ffe")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stack with its role, and why."""

    stack: Stack
    role: Role
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The stacks of one scan. Tuples hold one stack per echo, in the order of echo times."""

    swi: Stack | None  # None: to be made from magnitude and phase, or from real and imaginary parts
    magnitude: tuple[Stack, ...] = ()
    phase: tuple[Stack, ...] = ()
    real: tuple[Stack, ...] = ()
    imaginary: tuple[Stack, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know about the choice

    @property
    def reference(self) -> Stack:
        """The stack that results refer to."""
        return self.swi or (self.magnitude or self.real)[0]


def candidates(stacks: Sequence[Stack]) -> tuple[Candidate, ...]:
    """Every stack with its role."""
    found = []
    for stack in stacks:
        role, reason = _role_and_reason(stack)
        found.append(Candidate(stack=stack, role=role, reason=reason))
    return tuple(found)


def _role_and_reason(stack: Stack) -> tuple[Role, str]:
    """The role of a stack, and why; OTHER if nothing indicates susceptibility weighting."""
    # Exclusions come first: names of maps, projections and field maps contain the names of their sources.
    # Then a component stated in the header outranks any word, and a series name that says magnitude outranks
    # the image type SWI.
    instance, frame = stack.instance, stack.first
    types = set(frame.image_type)
    series = _lower(instance.description)
    names = _lower(f"{instance.description} {instance.protocol} {instance.sequence}")
    if instance.modality != "MR":
        return Role.OTHER, f"modality {instance.modality or 'not stated'}, not MR"
    if "LOCALIZER" in types:
        return Role.OTHER, "localizer"
    if types & _PROJECTION_TYPES or _PROJECTION.search(series):
        return Role.PROJECTION, "intensity projection by image type or name"
    if _MAP.search(series):
        return Role.OTHER, "a computed map or a mask, by its name"
    if _FIELD_MAP.search(names):
        return Role.OTHER, "field mapping, by the name of series or protocol"
    susceptibility = bool(types & _SWI_TYPES or _SWI.search(names))
    component = frame.component
    if component in ("REAL", "IMAGINARY"):
        return Role[component], f"{component.lower()} part, stated in the header"
    if component == "PHASE":
        return Role.PHASE, "phase, stated in the header"
    if _PHASE.search(series):
        return Role.PHASE, "phase, by the series' name"
    if _MAGNITUDE.search(series) and (susceptibility or instance.gradient_echo):
        return Role.MAGNITUDE, "magnitude of a gradient echo, by the series' name"
    if types & _SWI_TYPES:
        return Role.SWI, f"image type {', '.join(sorted(types & _SWI_TYPES))}"
    if _SWI.search(series):
        return Role.SWI, "susceptibility-weighted, by the series' name"
    if susceptibility:
        return Role.MAGNITUDE, "magnitude of a susceptibility-weighted sequence"
    if instance.echo_planar:
        return Role.OTHER, "echo-planar, no sign of susceptibility weighting"
    echo_ms = frame.echo_ms
    long_echo = echo_ms is not None and echo_ms >= _LEAST_T2STAR_ECHO_MS
    if instance.gradient_echo and (long_echo or _T2STAR.search(series)):
        return Role.MAGNITUDE, "gradient echo" + ("" if echo_ms is None else f", echo time {echo_ms:g} ms")
    return Role.OTHER, "no sign of susceptibility weighting"


def _lower(text: str) -> str:
    return text.lower().replace("_", " ")


def described(candidate: Candidate, name: str) -> str:
    """One line about a candidate; `name` is the series' name without identifiers of the patient."""
    stack = candidate.stack
    columns, rows, slices = stack.shape
    echo = "" if stack.first.echo_ms is None else f", TE {stack.first.echo_ms:g} ms"
    fault = f"; NOT USABLE: {stack.fault}" if stack.fault else ""
    return (
        f"{stack.key}: {candidate.role.value}, {columns} x {rows} x {slices}{echo}, {name or 'no name'} "
        f"({candidate.reason}){fault}"
    )


def choose(found: Sequence[Candidate], wanted: Sequence[str] = ()) -> Choice:
    """The stacks of the only scan in `found`, or of the series that the user asks for.

    A susceptibility-weighted stack is preferred; without one, SWI is made from magnitude and phase; magnitude
    alone is used as it is. If the user names a SWI, its phase and magnitude are found among the other series.

    Args:
        found: all stacks of a folder.
        wanted: series numbers, keys of stacks (5.2) or series UIDs; empty: any.

    Raises:
        UserError: no stack fits, or several do: the message lists them.
    """
    if wanted:
        found = _with_partners(_wanted(found, wanted), found)
    usable = [candidate for candidate in found if not candidate.stack.fault]
    swi = _with_role(usable, Role.SWI)
    if len(swi) > 1:
        raise UserError(_ambiguous("susceptibility-weighted series", swi))
    if swi:
        return _with_companions(swi[0].stack, usable)
    broken = _with_role(found, Role.SWI)
    if broken:
        raise UserError(f"series {broken[0].stack.key}: {broken[0].stack.fault}; export the series again")
    # the user may name a series whose headers do not show that it is susceptibility-weighted
    as_asked = _with_role(usable, Role.OTHER) if wanted else []
    if len(as_asked) == 1:
        choice = _with_companions(as_asked[0].stack, usable)
        note = f"series {as_asked[0].stack.key} is taken as asked ({as_asked[0].reason})"
        return dataclasses.replace(choice, notes=(note, *choice.notes))
    choice_of_echoes = _from_complex(usable)
    if choice_of_echoes is not None:
        return choice_of_echoes
    magnitudes = _with_role(usable, Role.MAGNITUDE)
    if len(magnitudes) > 1:
        raise UserError(_ambiguous("gradient-echo series", magnitudes))
    if not magnitudes:
        raise UserError(_nothing(found))
    note = f"series {magnitudes[0].stack.key} is taken as a T2*-weighted image, without phase"
    return Choice(swi=magnitudes[0].stack, notes=(note,))


def _with_role(found: Sequence[Candidate], role: Role) -> list[Candidate]:
    return [candidate for candidate in found if candidate.role is role]


def _wanted(found: Sequence[Candidate], wanted: Sequence[str]) -> list[Candidate]:
    chosen: list[Candidate] = []
    for name in wanted:
        members = [candidate for candidate in found if name in _names(candidate.stack)]
        if not members:
            keys = ", ".join(candidate.stack.key for candidate in found)
            raise UserError(f"--series {name}: there is no such series; there are {keys}")
        chosen += [member for member in members if member not in chosen]
    return chosen


def _names(stack: Stack) -> tuple[str, str, str]:
    """The names that a user may give to --series for a stack."""
    return stack.key, stack.key.split(".")[0], stack.instance.series_uid


def _with_partners(chosen: list[Candidate], found: Sequence[Candidate]) -> list[Candidate]:
    """The chosen candidates plus all candidates for the roles that they lack."""
    roles = {candidate.role for candidate in chosen}
    missing: set[Role] = set()
    if roles & {Role.SWI, Role.MAGNITUDE, Role.OTHER} and Role.PHASE not in roles:
        missing.add(Role.PHASE)
    if roles & {Role.SWI, Role.OTHER} and Role.MAGNITUDE not in roles:
        missing.add(Role.MAGNITUDE)
    parts = roles & {Role.REAL, Role.IMAGINARY}
    if len(parts) == 1:
        missing |= {Role.REAL, Role.IMAGINARY} - parts
    return chosen + [candidate for candidate in found if candidate.role in missing]


def _with_companions(swi: Stack, usable: Sequence[Candidate]) -> Choice:
    """The SWI with the phase and the magnitude on its grid."""
    notes: list[str] = []
    phases = _partners(swi, usable, Role.PHASE)
    if len(phases) > 1:
        raise UserError(_ambiguous(f"phase series on the grid of series {swi.key}", phases))
    if not phases and (others := _with_role(usable, Role.PHASE)):
        keys = ", ".join(other.stack.key for other in others)
        notes.append(f"phase in series {keys} is not used: it does not have the slices of series {swi.key}")
    notes += _notes_on_uids(swi, phases)
    magnitudes = _partners(swi, usable, Role.MAGNITUDE)
    if len(magnitudes) > 1:
        keys = ", ".join(candidate.stack.key for candidate in magnitudes)
        notes.append(f"several magnitudes fit (series {keys}); none is used for the brain regions")
        magnitudes = []
    return Choice(
        swi=swi,
        phase=tuple(candidate.stack for candidate in phases),
        magnitude=tuple(candidate.stack for candidate in magnitudes),
        notes=tuple(notes),
    )


def _partners(stack: Stack, usable: Sequence[Candidate], role: Role) -> list[Candidate]:
    """Candidates of a role on the stack's grid, preferably of its study and of its echo."""
    # the detector needs the grid; UIDs only break ties, because anonymization may have changed them
    on_grid = [each for each in _with_role(usable, role) if same_grid(each.stack, stack)]
    on_grid = [each for each in on_grid if _same_study(each.stack, stack)] or on_grid
    return [each for each in on_grid if _same_echo(each.stack, stack)] or on_grid


def _same_study(a: Stack, b: Stack) -> bool:
    """Whether two stacks have the same study and the same position of the patient, by their UIDs."""
    first, second = a.instance, b.instance
    return (first.study_uid, first.frame_of_reference) == (second.study_uid, second.frame_of_reference)


def _same_echo(a: Stack, b: Stack) -> bool:
    first, second = a.first.echo_ms, b.first.echo_ms
    return first is not None and second is not None and abs(first - second) <= SAME_ECHO_MS


def _notes_on_uids(stack: Stack, partners: Sequence[Candidate]) -> list[str]:
    """Notes on partners whose voxels match although their UIDs differ, as after anonymization."""
    return [
        f"series {partner.stack.key} lies voxel on voxel with series {stack.key} and is used with it, though "
        "their study or frame of reference UIDs differ (anonymized?)"
        for partner in partners
        if not _same_study(partner.stack, stack)
    ]


def _from_complex(usable: Sequence[Candidate]) -> Choice | None:
    """Magnitude with phase, or real with imaginary, echo by echo; None if there is no such pair."""
    for whole, part in ((Role.MAGNITUDE, Role.PHASE), (Role.REAL, Role.IMAGINARY)):
        pairs = _echo_pairs(usable, whole, part)
        if not pairs or (part is Role.PHASE and _is_difference(pairs, usable)):
            continue
        series = {candidate.stack.instance.series_uid for candidate, _ in pairs}
        echoes = {candidate.stack.first.echo_ms for candidate, _ in pairs}
        if len(series) > 1 or len(echoes) < len(pairs):
            raise UserError(_ambiguous(f"{whole.value} series", [candidate for candidate, _ in pairs]))
        pairs.sort(key=lambda pair: pair[0].stack.first.echo_ms or 0.0)
        first, second = tuple(a.stack for a, _ in pairs), tuple(b.stack for _, b in pairs)
        keys = ", ".join(dict.fromkeys(stack.key.split(".")[0] for stack in (*first, *second)))
        if not all(same_grid(first[0], stack) for stack in first[1:]):
            raise UserError(f"series {keys}: its echoes lie on different grids; choose one with --series")
        note = f"no susceptibility-weighted series: it was made from {whole.value} and {part.value} ({keys})"
        notes = (note, *(text for a, b in pairs for text in _notes_on_uids(a.stack, [b])))
        if whole is Role.MAGNITUDE:
            return Choice(swi=None, magnitude=first, phase=second, notes=notes)
        return Choice(swi=None, real=first, imaginary=second, notes=notes)
    return None


def _echo_pairs(usable: Sequence[Candidate], whole: Role, part: Role) -> list[tuple[Candidate, Candidate]]:
    """Candidates of one role with their partner of the other, unless their echo times contradict."""
    pairs = []
    for candidate in _with_role(usable, whole):
        stack = candidate.stack
        matches = [
            partner
            for partner in _partners(stack, usable, part)
            if _same_echo(stack, partner.stack) or None in (stack.first.echo_ms, partner.stack.first.echo_ms)
        ]
        if len(matches) > 1:
            raise UserError(_ambiguous(f"{part.value} series for series {stack.key}", matches))
        pairs += [(candidate, match) for match in matches]
    return pairs


def _is_difference(pairs: Sequence[tuple[Candidate, Candidate]], usable: Sequence[Candidate]) -> bool:
    """Whether a single phase beside several magnitude echoes is a phase difference, from field mapping."""
    if len(pairs) > 1:
        return False
    series_uid = pairs[0][0].stack.instance.series_uid
    echoes = {
        round(each.stack.first.echo_ms, 1)
        for each in _with_role(usable, Role.MAGNITUDE)
        if each.stack.instance.series_uid == series_uid and each.stack.first.echo_ms
    }
    return len(echoes) > 1


def _ambiguous(what: str, found: Sequence[Candidate]) -> str:
    repeated = len({candidate.stack.key for candidate in found}) < len(found)
    listed = "; ".join(
        f"{candidate.stack.instance.series_uid if repeated else candidate.stack.key} "
        f"({candidate.stack.shape[2]} slices, {candidate.reason})"
        for candidate in found
    )
    return f"{len(found)} {what}: {listed}; choose with --series, naming the phase too if several fit"


def _nothing(found: Sequence[Candidate]) -> str:
    faults = "; ".join(
        f"series {candidate.stack.key}: {candidate.stack.fault}"
        for candidate in found
        if candidate.stack.fault and candidate.role is not Role.OTHER
    )
    why = f" ({faults})" if faults else ""
    return (
        f"no susceptibility-weighted series was recognized{why}; `cmb-jax dicom` lists what there is, and "
        "--series NUMBER takes a series as it is"
    )
