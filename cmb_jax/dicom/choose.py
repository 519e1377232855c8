"""Which stacks of a folder make one scan: intensity, phase and magnitude on one grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cmb_jax.dicom.roles import Recognition, Role, recognize
from cmb_jax.dicom.stacks import SAME_ECHO_MS, Stack, same_grid
from cmb_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stack with its role."""

    stack: Stack
    recognition: Recognition

    @property
    def role(self) -> Role:
        """What the stack can be used for."""
        return self.recognition.role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The stacks of one scan. Tuples hold one stack an echo, in the order of echo times."""

    swi: Stack | None  # None: it is made from magnitude (or real and imaginary) and phase
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
    return tuple(Candidate(stack=stack, recognition=recognize(stack)) for stack in stacks)


def described(candidate: Candidate, name: str) -> str:
    """One line about a candidate; `name` is the series' name as it may be shown."""
    stack = candidate.stack
    columns, rows, slices = stack.shape
    echo = "" if stack.first.echo_ms is None else f", TE {stack.first.echo_ms:g} ms"
    fault = f"; NOT USABLE: {stack.fault}" if stack.fault else ""
    return (
        f"{stack.key}: {candidate.role.value}, {columns} x {rows} x {slices}{echo}, {name or 'no name'} "
        f"({candidate.recognition.reason}){fault}"
    )


def choose(found: Sequence[Candidate], wanted: Sequence[str] = ()) -> Choice:
    """The stacks of the one scan in `found`, or of the series that the user wants.

    A susceptibility-weighted stack comes first; without one it is made from magnitude and phase; a magnitude
    alone is taken as it is. Phase and magnitude that are not named are looked for among the other series.

    Args:
        found: all stacks of a folder.
        wanted: series numbers, keys of stacks (5.2) or series UIDs; empty: any.

    Raises:
        UserError: nothing fits, or several stacks do: the message lists them.
    """
    if wanted:
        found = _with_partners(_wanted(found, wanted), found)
    usable = [candidate for candidate in found if not candidate.stack.fault]
    swi = [candidate for candidate in usable if candidate.role is Role.SWI]
    if len(swi) > 1:
        raise UserError(_ambiguous("susceptibility-weighted series", swi))
    if swi:
        return _around(swi[0].stack, usable)
    broken = [candidate for candidate in found if candidate.stack.fault and candidate.role is Role.SWI]
    if broken:
        raise UserError(f"series {broken[0].stack.key}: {broken[0].stack.fault}; export the series again")
    as_asked = [candidate for candidate in usable if candidate.role is Role.OTHER] if wanted else []
    if len(as_asked) == 1:
        choice = _around(as_asked[0].stack, usable)
        note = f"series {as_asked[0].stack.key} is taken as asked ({as_asked[0].recognition.reason})"
        return dataclasses.replace(choice, notes=(note, *choice.notes))
    made = _from_complex(usable)
    if made is not None:
        return made
    magnitudes = [candidate for candidate in usable if candidate.role is Role.MAGNITUDE]
    if len(magnitudes) > 1:
        raise UserError(_ambiguous("gradient-echo series", magnitudes))
    if not magnitudes:
        raise UserError(_nothing(found))
    note = f"series {magnitudes[0].stack.key} is taken as a T2*-weighted image, without phase"
    return Choice(swi=magnitudes[0].stack, notes=(note,))


def _wanted(found: Sequence[Candidate], wanted: Sequence[str]) -> list[Candidate]:
    chosen = []
    for name in wanted:
        members = [
            candidate
            for candidate in found
            if name
            in (candidate.stack.key, candidate.stack.key.split(".")[0], candidate.stack.instance.series_uid)
        ]
        if not members:
            keys = ", ".join(candidate.stack.key for candidate in found)
            raise UserError(f"--series {name}: there is no such series; there are {keys}")
        chosen += [member for member in members if member not in chosen]
    return chosen


def _with_partners(chosen: list[Candidate], found: Sequence[Candidate]) -> list[Candidate]:
    """The chosen candidates, and those of the roles that go with them and were not chosen."""
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


def _around(swi: Stack, usable: Sequence[Candidate]) -> Choice:
    """The SWI with the phase and the magnitude that lie on its grid."""
    notes: list[str] = []
    phases = _partners(swi, usable, Role.PHASE)
    if len(phases) > 1:
        raise UserError(_ambiguous(f"phase series on the grid of series {swi.key}", phases))
    if not phases:
        others = [c.stack.key for c in usable if c.role is Role.PHASE]
        if others:
            notes.append(
                f"phase in series {', '.join(others)} is not used: it has not the slices of series {swi.key}"
            )
    notes += _strangers(swi, phases)
    magnitudes = _partners(swi, usable, Role.MAGNITUDE)
    if len(magnitudes) > 1:
        keys = ", ".join(candidate.stack.key for candidate in magnitudes)
        notes.append(f"several magnitudes fit (series {keys}); none is used for the brain regions")
    return Choice(
        swi=swi,
        phase=tuple(candidate.stack for candidate in phases),
        magnitude=tuple(candidate.stack for candidate in magnitudes) if len(magnitudes) == 1 else (),
        notes=tuple(notes),
    )


def _same_study(a: Stack, b: Stack) -> bool:
    """Whether the UIDs say that two stacks belong to one study and one position of the patient."""
    return (a.instance.study_uid, a.instance.frame_of_reference) == (
        b.instance.study_uid,
        b.instance.frame_of_reference,
    )


def _strangers(stack: Stack, partners: Sequence[Candidate]) -> list[str]:
    """What is to be known where voxels fit and UIDs do not, as after anonymisation."""
    return [
        f"series {partner.stack.key} lies voxel on voxel with series {stack.key} and is used with it, though "
        "their study or frame of reference UIDs differ (anonymised?)"
        for partner in partners
        if not _same_study(partner.stack, stack)
    ]


def _partners(stack: Stack, usable: Sequence[Candidate], role: Role) -> list[Candidate]:
    """Candidates of a role on the stack's grid; of its own study and of its own echo, if any are."""
    on_grid = [c for c in usable if c.role is role and same_grid(c.stack, stack)]
    on_grid = [c for c in on_grid if _same_study(c.stack, stack)] or on_grid
    same_echo = [c for c in on_grid if _same_echo(c.stack, stack)]
    return same_echo or on_grid


def _same_echo(a: Stack, b: Stack) -> bool:
    first, second = a.first.echo_ms, b.first.echo_ms
    return first is not None and second is not None and abs(first - second) <= SAME_ECHO_MS


def _from_complex(usable: Sequence[Candidate]) -> Choice | None:
    """Magnitude with phase, or real with imaginary, echo by echo; None if there is no such pair."""
    for whole, part in ((Role.MAGNITUDE, Role.PHASE), (Role.REAL, Role.IMAGINARY)):
        pairs: list[tuple[Candidate, Candidate]] = []
        for candidate in usable:
            if candidate.role is not whole:
                continue
            matches = [c for c in _partners(candidate.stack, usable, part) if _fits(candidate.stack, c.stack)]
            if len(matches) > 1:
                raise UserError(_ambiguous(f"{part.value} series for series {candidate.stack.key}", matches))
            pairs += [(candidate, match) for match in matches]
        if not pairs:
            continue
        if part is Role.PHASE and _is_difference(pairs, usable):
            continue
        if len({candidate.stack.instance.series_uid for candidate, _ in pairs}) > 1 or _repeated_echo(pairs):
            raise UserError(_ambiguous(f"{whole.value} series", [candidate for candidate, _ in pairs]))
        pairs.sort(key=lambda pair: pair[0].stack.first.echo_ms or 0.0)
        first, second = tuple(a.stack for a, _ in pairs), tuple(b.stack for _, b in pairs)
        keys = ", ".join(dict.fromkeys(stack.key.split(".")[0] for stack in (*first, *second)))
        note = f"no susceptibility-weighted series: it was made from {whole.value} and {part.value} ({keys})"
        notes = (note, *(text for a, b in pairs for text in _strangers(a.stack, [b])))
        if not all(same_grid(first[0], stack) for stack in first[1:]):
            raise UserError(f"series {keys}: its echoes lie on different grids; choose one with --series")
        if whole is Role.MAGNITUDE:
            return Choice(swi=None, magnitude=first, phase=second, notes=notes)
        return Choice(swi=None, real=first, imaginary=second, notes=notes)
    return None


def _is_difference(pairs: Sequence[tuple[Candidate, Candidate]], usable: Sequence[Candidate]) -> bool:
    """Whether the one phase of a magnitude with several echoes is their difference, as of field maps."""
    if len(pairs) > 1:
        return False
    own = pairs[0][0].stack.instance.series_uid
    stacks = [c.stack for c in usable if c.role is Role.MAGNITUDE and c.stack.instance.series_uid == own]
    return len({round(stack.first.echo_ms, 1) for stack in stacks if stack.first.echo_ms}) > 1


def _fits(a: Stack, b: Stack) -> bool:
    """Whether the echo times do not contradict each other."""
    return _same_echo(a, b) or a.first.echo_ms is None or b.first.echo_ms is None


def _repeated_echo(pairs: Sequence[tuple[Candidate, Candidate]]) -> bool:
    echoes = [candidate.stack.first.echo_ms for candidate, _ in pairs]
    return len(set(echoes)) < len(echoes)


def _ambiguous(what: str, found: Sequence[Candidate]) -> str:
    repeated = len({candidate.stack.key for candidate in found}) < len(found)
    listed = "; ".join(
        f"{candidate.stack.instance.series_uid if repeated else candidate.stack.key} "
        f"({candidate.stack.shape[2]} slices, {candidate.recognition.reason})"
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
