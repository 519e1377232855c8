"""Which images of a scan are taken, and why: the best kind first, ties broken by rules that are said."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path

from cmb_jax.datasets.bids.candidates import Candidate, NotTaken, Series, read_candidates, series_of
from cmb_jax.datasets.bids.layout import CONTRASTS, NOT_READ, Scan
from cmb_jax.errors import UserError


class ChoiceKind(enum.Enum):
    """What a result is made from, the best first. The values are for people."""

    SWI_AND_PHASE = "SWI with phase"
    MAGNITUDE_AND_PHASE = "magnitude and phase, from which SWI is made"
    SWI_ALONE = "SWI without phase"
    MAGNITUDE_ALONE = "T2*-weighted magnitude without phase"


_RANK = {kind: rank for rank, kind in enumerate(ChoiceKind)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Option:
    """Images that would make a result together."""

    kind: ChoiceKind
    swi: Candidate | None = None
    magnitudes: tuple[Candidate, ...] = ()
    phases: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Candidate, ...]:
        return (*(() if self.swi is None else (self.swi,)), *self.magnitudes, *self.phases)

    @property
    def reference(self) -> Candidate:
        return self.images[0]

    @property
    def echoes(self) -> int:
        return len(self.magnitudes) if self.kind is ChoiceKind.MAGNITUDE_AND_PHASE else 1

    @property
    def strangers(self) -> int:
        """Entities in which the SWI and its phase differ: a phase of another acquisition may not fit."""
        if self.swi is None or not self.phases:
            return 0
        return len(
            set(self.swi.file.name.without("part")) ^ set(self.phases[0].file.name.without("part", "echo"))
        )

    @property
    def contrast(self) -> int:
        return CONTRASTS.index(self.reference.contrast)

    @property
    def voxel_mm3(self) -> float:
        return round(self.reference.grid.voxel_mm3, 4)

    @property
    def key(self) -> tuple[int, int, int, int, float, str]:
        """Sorts the best first."""
        return (
            _RANK[self.kind],
            -self.echoes,
            self.strangers,
            self.contrast,
            self.voxel_mm3,
            self.reference.file.relative,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken of a scan."""

    scan: Scan
    kind: ChoiceKind
    swi: Candidate | None
    magnitudes: tuple[Candidate, ...]  # echoes in the order of their times, all on one grid
    phases: tuple[Candidate, ...]  # the same echoes, or the one of the SWI
    why: str
    left: tuple[NotTaken, ...]
    notes: tuple[str, ...] = ()  # what is wrong with the sidecars of what is taken, and what was done

    @property
    def reference(self) -> Candidate:
        """The image whose grid the result has."""
        return self.swi if self.swi is not None else self.magnitudes[-1]

    @property
    def te_ms(self) -> tuple[float, ...]:
        """Echo times in ms of the pairs of magnitude and phase, () if one of them is not known."""
        if self.kind is not ChoiceKind.MAGNITUDE_AND_PHASE:
            return ()
        known = _times(self.magnitudes, self.phases)
        return tuple(te for te in known if te is not None) if None not in known else ()

    @property
    def images(self) -> tuple[Candidate, ...]:
        """All that is taken."""
        return (*(() if self.swi is None else (self.swi,)), *self.magnitudes, *self.phases)


def choose(scan: Scan, root: Path) -> Choice:
    """Choose the images of a scan.

    SWI with phase goes before magnitude and phase (from which SWI is made), these before SWI alone, and that
    before a T2*-weighted magnitude alone. Among equals, more echoes go before fewer, a SWI with a phase of
    its own name before others, MEGRE before GRE before T2starw, finer voxels before coarser, and then the
    first by name.

    Args:
        scan: of the layout.
        root: of the data set.

    Raises:
        UserError: nothing can be taken; says why.
    """
    candidates, left = read_candidates(scan, root)
    options = sorted(_options(series_of(candidates)), key=lambda option: option.key)
    if not options:
        raise UserError(_nothing(candidates, left))
    best, *others = options
    why = best.kind.value
    rivals = [other for other in others if other.kind is best.kind]
    if rivals:
        why += f"; before {rivals[0].reference.file.relative}: {_advantage(best, rivals[0])}"
    notes = dict.fromkeys(note for image in best.images for note in image.facts.notes)
    return Choice(
        scan=scan,
        kind=best.kind,
        swi=best.swi,
        magnitudes=best.magnitudes,
        phases=best.phases,
        why=why,
        left=(*left, *_left(candidates, best, others)),
        notes=(*notes, *best.notes),
    )


def _options(series: tuple[Series, ...]) -> Iterator[_Option]:
    for one in series:
        if one.swi is not None:
            phase, magnitude = _companions(one, series)
            kind = ChoiceKind.SWI_ALONE if phase is None else ChoiceKind.SWI_AND_PHASE
            yield _Option(
                kind=kind,
                swi=one.swi,
                magnitudes=() if magnitude is None else (magnitude,),
                phases=() if phase is None else (phase,),
            )
        if one.pairs:
            yield _with_phase(one)
        elif one.magnitudes:
            last = max(one.magnitudes.values(), key=_echo_time)
            yield _Option(kind=ChoiceKind.MAGNITUDE_ALONE, magnitudes=(last,))


def _companions(one: Series, series: tuple[Series, ...]) -> tuple[Candidate | None, Candidate | None]:
    """Single-echo phase and magnitude on the grid of a SWI: those with most of its name, then by contrast."""
    swi = one.swi
    assert swi is not None
    nearest = sorted(
        series,
        key=lambda other: (
            other is not one,
            -len(set(other.entities) & set(one.entities)),
            CONTRASTS.index(other.contrast),
            other.entities,
        ),
    )

    def first(images: Iterator[dict[str, Candidate]]) -> Candidate | None:
        single = (next(iter(echoes.values())) for echoes in images if len(echoes) == 1)
        return next((image for image in single if image.same_grid(swi)), None)

    return first(other.phases for other in nearest), first(other.magnitudes for other in nearest)


def _with_phase(one: Series) -> _Option:
    magnitudes, phases = zip(*one.pairs, strict=True)
    times = _times(magnitudes, phases)
    notes: tuple[str, ...] = ()
    if len(magnitudes) > 1 and None in times:
        text = f"the echo times of {len(magnitudes)} echoes are not all known, so the last echo is used alone"
        magnitudes, phases, notes = magnitudes[-1:], phases[-1:], (text,)
    elif len(magnitudes) > 1:
        order = sorted(range(len(times)), key=lambda index: times[index] or 0.0)
        magnitudes = tuple(magnitudes[index] for index in order)
        phases = tuple(phases[index] for index in order)
    return _Option(kind=ChoiceKind.MAGNITUDE_AND_PHASE, magnitudes=magnitudes, phases=phases, notes=notes)


def _times(magnitudes: tuple[Candidate, ...], phases: tuple[Candidate, ...]) -> tuple[float | None, ...]:
    """Echo times in ms, from the magnitude's sidecar or else its phase's."""
    return tuple(
        magnitude.facts.echo_time_ms or phase.facts.echo_time_ms
        for magnitude, phase in zip(magnitudes, phases, strict=True)
    )


def _echo_time(image: Candidate) -> tuple[float, int]:
    """Sorts the longest echo last; without times, the last by number."""
    return (image.facts.echo_time_ms or 0.0, int(image.file.name.get("echo") or 0))


def _advantage(best: _Option, other: _Option) -> str:
    """In what an option goes before another of its kind."""
    if best.echoes != other.echoes:
        return f"{best.echoes} echoes against {other.echoes}"
    if best.strangers != other.strangers:
        return "its name is more like that of the phase"
    if best.contrast != other.contrast:
        return f"{best.reference.contrast} goes before {other.reference.contrast}"
    if best.voxel_mm3 != other.voxel_mm3:
        return "finer voxels"
    return "the first by name of equals"


def _left(candidates: tuple[Candidate, ...], best: _Option, others: list[_Option]) -> Iterator[NotTaken]:
    """Why each readable image was not taken."""
    for image in candidates:
        if image in best.images:
            continue
        home = next((other for other in others if image in other.images), None)
        if home is None:
            why = _homeless(image)
        elif home.kind is best.kind:
            why = f"{best.reference.file.relative} goes before it: {_advantage(best, home)}"
        else:
            why = f"{best.kind.value} goes before {home.kind.value}"
        yield NotTaken(file=image.file, why=why)


def _homeless(image: Candidate) -> str:
    if image.part == "phase":
        return "a phase without a magnitude of its echo, or a SWI, on the same grid"
    return "another echo, or one without a phase on the same grid, than those that are used"


def _nothing(candidates: tuple[Candidate, ...], left: tuple[NotTaken, ...]) -> str:
    if candidates:
        return "has phase, but neither SWI nor magnitude; add one of them"
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    telling = next((image for image in left if image.why not in NOT_READ.values()), left[0])
    return f"no image can be used: {telling.file.relative}: {telling.why}{more}"
