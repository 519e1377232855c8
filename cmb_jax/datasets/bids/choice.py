"""Chooses the images of a scan and says why: the best kind first, ties broken by stated rules."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from cmb_jax.datasets.bids import layout
from cmb_jax.datasets.bids.layout import CONTRASTS, BidsFile, BidsName, Scan
from cmb_jax.datasets.bids.sidecar import ImageFacts, read_facts
from cmb_jax.datasets.images import Grid, read_grid
from cmb_jax.errors import UserError
from cmb_jax.io.outside import reading

Part = Literal["swi", "mag", "phase"]

_CONTRAST_OF = {contrast.casefold(): contrast for contrast in CONTRASTS} | {layout.OLD_PHASE: "GRE"}
# Entities of images as acquired; all others (rec, proc, desc, ce, space, mt, ...) name variants of them.
_PLAIN = ("sub", "ses", "run", "chunk", "acq", "part", "echo")
_PHASES = ("phase", "pha", "ph")
_SAME_GRID_VOXELS = 0.01  # practically the same header: the detector does not resample one onto the other
_SAME_TE_MS = 0.05


class ChoiceKind(enum.Enum):
    """What a result is made from, the best first. The values are shown to users."""

    SWI_AND_PHASE = "SWI with phase"
    MAGNITUDE_AND_PHASE = "magnitude and phase, from which SWI is made"
    SWI_ALONE = "SWI without phase"
    MAGNITUDE_ALONE = "T2*-weighted magnitude without phase"


_RANK = {kind: rank for rank, kind in enumerate(ChoiceKind)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image whose header can be read."""

    file: BidsFile
    contrast: str  # one of CONTRASTS, GRE for the old suffix phase
    part: Part
    grid: Grid
    facts: ImageFacts

    @property
    def echo(self) -> str:
        """Its number without leading zeros, "" if the name has none."""
        return layout.plain_index(self.file.name.get("echo") or "")

    def same_grid(self, other: Candidate) -> bool:
        """Whether both lie voxel on voxel."""
        ours, theirs = self.grid.to_ras(), other.grid.to_ras()
        return ours.shape == theirs.shape and ours.apart_voxels(theirs) <= _SAME_GRID_VOXELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotTaken:
    """An image that was not taken, and why."""

    file: BidsFile
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Series:
    """The images of one acquisition: names that differ only in part and echo."""

    contrast: str
    entities: tuple[tuple[str, str], ...]  # without part and echo
    swi: Candidate | None
    magnitudes: Mapping[str, Candidate]  # by echo, "" without one
    phases: Mapping[str, Candidate]

    @property
    def pairs(self) -> tuple[tuple[Candidate, Candidate], ...]:
        """Magnitude and phase of the echoes that have both on the grid of the first such magnitude."""
        both = [(self.magnitudes[echo], self.phases[echo]) for echo in self.magnitudes if echo in self.phases]
        return tuple(pair for pair in both if all(image.same_grid(both[0][0]) for image in pair))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images that make a result together."""

    kind: ChoiceKind
    swi: Candidate | None = None
    magnitudes: tuple[Candidate, ...] = ()  # echoes in the order of their times, all on one grid
    phases: tuple[Candidate, ...] = ()  # the same echoes, or the one of the SWI
    notes: tuple[str, ...] = ()  # what is wrong with them, and what was done about it

    @property
    def images(self) -> tuple[Candidate, ...]:
        """All of them."""
        return (*(() if self.swi is None else (self.swi,)), *self.magnitudes, *self.phases)

    @property
    def reference(self) -> Candidate:
        """The image whose grid and name the result has."""
        return self.images[0]

    @property
    def te_ms(self) -> tuple[float, ...]:
        """Echo times in ms of the pairs of magnitude and phase, () if one of them is not known."""
        if self.kind is not ChoiceKind.MAGNITUDE_AND_PHASE:
            return ()
        times = _times(self.magnitudes, self.phases)
        return tuple(te for te in times if te is not None) if None not in times else ()

    @property
    def order(self) -> tuple[int, int, int, int, int, float, str]:
        """Sorts the best first; `_advantage` says what each number means."""
        name = self.reference.file.name
        return (
            _RANK[self.kind],
            -len(self.magnitudes) if self.kind is ChoiceKind.MAGNITUDE_AND_PHASE else 0,
            self._differing_entities,
            sum(key not in _PLAIN for key, _ in name.entities),
            CONTRASTS.index(self.reference.contrast),
            round(self.reference.grid.voxel_mm3, 4),
            self.reference.file.relative,
        )

    @property
    def _differing_entities(self) -> int:
        """Entities in which a SWI and its phase differ: a phase of another acquisition may not fit."""
        if self.swi is None or not self.phases:
            return 0
        swi, phase = self.swi.file.name, self.phases[0].file.name
        return len(set(swi.key_without("part")) ^ set(phase.key_without("part", "echo")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(ImageSet):
    """The images taken from a scan, and why."""

    scan: Scan
    why: str
    left: tuple[NotTaken, ...]


def choose(scan: Scan, root: Path) -> Choice:
    """Choose the images of a scan.

    SWI with phase goes before magnitude and phase (from which SWI is made), these before SWI alone, and that
    before a T2*-weighted magnitude alone. Among equals, more echoes go before fewer, a SWI with a phase of
    its own name before others, images without rec-, ce- and other variants before those with, MEGRE before
    GRE before T2starw, finer voxels before coarser, and then the first by name. Projections and maps are
    never taken.

    Args:
        scan: of the layout.
        root: of the data set.

    Raises:
        UserError: nothing can be taken; says why.
    """
    # All sets of images that could make a result are listed and sorted; `order` holds the rules, so that the
    # reason why one goes before another can be read off the first number in which they differ.
    candidates, left = _read_candidates(scan, root)
    sets = sorted(_sets(_series_of(candidates)), key=lambda images: images.order)
    if not sets:
        raise UserError(_nothing(candidates, left))
    best, *others = sets
    why = best.kind.value
    rival = next((other for other in others if other.kind is best.kind), None)
    if rival is not None:
        why += f"; before {rival.reference.file.relative}: {_advantage(best, rival)}"
    notes = [note for image in best.images for note in image.facts.notes]
    if scan.chunk is not None:
        notes.append(f"chunk {scan.chunk}: it shows only a part of the brain, and counts are of that part")
    if not best.phases:
        notes += _phases_elsewhere(scan, root, best.reference)
    return Choice(
        kind=best.kind,
        swi=best.swi,
        magnitudes=best.magnitudes,
        phases=best.phases,
        notes=(*dict.fromkeys(notes), *best.notes),
        scan=scan,
        why=why,
        left=(*left, *_left(candidates, best, others)),
    )


def _read_candidates(scan: Scan, root: Path) -> tuple[list[Candidate], list[NotTaken]]:
    """Images that could be taken, by headers and sidecars, and those that could not; in order of names."""
    taken: dict[tuple[object, ...], Candidate] = {}
    left = [NotTaken(file=file, why="not among the images asked for") for file in scan.excluded]
    for file in scan.files:
        contrast = _CONTRAST_OF.get(file.name.suffix.casefold(), "")
        try:
            why_not = layout.why_not_read(file.name)
            if file.misplaced:
                why_not = "its name has another participant or session than its folder; rename it or move it"
            if why_not is not None:
                raise UserError(why_not)
            part = part_of(file.name)
            grid = _grid(file.path)
            key = (contrast, part, file.name.key_without("part"))
            if key in taken:
                raise UserError(f"stands for the same image as {taken[key].file.relative}")
        except UserError as error:
            why = str(error).removeprefix(f"{file.path}: ").replace(str(file.path), file.path.name)
            left.append(NotTaken(file=file, why=why))
            continue
        facts = read_facts(file.path, file.name, root)
        taken[key] = Candidate(file=file, contrast=contrast, part=part, grid=grid, facts=facts)
    return list(taken.values()), left


def part_of(name: BidsName) -> Part:
    """What an image is by its name.

    Raises:
        UserError: a part that is not read.
    """
    stated = (name.get("part") or "").casefold()
    # without part-, converters put what it is elsewhere
    labels = [stated] if stated else [(name.get(key) or "").casefold() for key in ("acq", "rec")]
    if name.suffix.casefold() == layout.OLD_PHASE or any(label in _PHASES for label in labels):
        return "phase"
    if stated in ("mag", "magnitude"):
        return "mag"
    if stated:
        raise UserError(f"part-{stated} is not read; make magnitude and phase of it (part-mag, part-phase)")
    return "swi" if name.suffix.casefold() == "swi" else "mag"


def _grid(path: Path) -> Grid:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to a file that is not here; fetch it (such as datalad get)")
    # DataLad and Git LFS leave links or small text files in place of images that were not fetched
    with reading(path), open(path, "rb") as stream:
        if stream.read(32).startswith((b"/annex/objects/", b"version https://git-lfs")):
            raise UserError(f"{path}: points to a file that is not here; fetch it (such as datalad get)")
    return read_grid(path)


def _series_of(candidates: Iterable[Candidate]) -> list[_Series]:
    """The acquisitions among the candidates, echoes in the order of their numbers."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Candidate]] = {}
    for image in sorted(candidates, key=lambda image: layout.natural(image.echo)):
        key = (image.contrast, image.file.name.key_without("part", "echo"))
        groups.setdefault(key, []).append(image)
    return [
        _Series(
            contrast=contrast,
            entities=entities,
            swi=next((image for image in reversed(images) if image.part == "swi"), None),
            magnitudes=_by_echo(images, "mag"),
            phases=_by_echo(images, "phase"),
        )
        for (contrast, entities), images in groups.items()
    ]


def _by_echo(images: Iterable[Candidate], part: Part) -> dict[str, Candidate]:
    return {image.echo: image for image in images if image.part == part}


def _sets(series: list[_Series]) -> Iterator[ImageSet]:
    """Every set of images that could make a result."""
    for each in series:
        if each.swi is not None:
            phase, magnitude = _companions(each.swi, each, series)
            yield ImageSet(
                kind=ChoiceKind.SWI_AND_PHASE if phase else ChoiceKind.SWI_ALONE,
                swi=each.swi,
                magnitudes=(magnitude,) if magnitude else (),
                phases=(phase,) if phase else (),
            )
        # the magnitude and phase beside a SWI can also make a result by themselves
        if each.pairs:
            yield _magnitude_and_phase(each)
        elif each.magnitudes:
            # the longest echo shows susceptibility best
            last = max(each.magnitudes.values(), key=_echo_order)
            yield ImageSet(kind=ChoiceKind.MAGNITUDE_ALONE, magnitudes=(last,))


def _echo_order(image: Candidate) -> tuple[float, tuple[int, str]]:
    return image.facts.echo_time_ms or 0.0, layout.natural(image.echo)


def _companions(
    swi: Candidate, home: _Series, series: list[_Series]
) -> tuple[Candidate | None, Candidate | None]:
    """Single-echo phase and magnitude on the grid of a SWI: of its own series first, then by their names."""
    # A SWI and its phase often differ in more of their names than the part, so the grid decides which images
    # fit, and names only which is taken. A series of several echoes does not go with it:
    # a SWI is made of all echoes.
    nearest = sorted(
        series,
        key=lambda other: (
            other is not home,
            -len(set(other.entities) & set(home.entities)),
            CONTRASTS.index(other.contrast),
            other.entities,
        ),
    )

    def first(echoes_of_series: Iterable[Mapping[str, Candidate]]) -> Candidate | None:
        single = (next(iter(echoes.values())) for echoes in echoes_of_series if len(echoes) == 1)
        return next((image for image in single if image.same_grid(swi)), None)

    return first(other.phases for other in nearest), first(other.magnitudes for other in nearest)


def _magnitude_and_phase(series: _Series) -> ImageSet:
    """All echoes in the order of their times, or the last one alone where the times do not order them."""
    pairs = series.pairs
    times = _times(*zip(*pairs, strict=True))
    known = sorted(te for te in times if te is not None)
    notes: tuple[str, ...] = ()
    if len(pairs) > 1 and None in times:
        notes = (f"the echo times of {len(pairs)} echoes are not all known, so the last echo is used alone",)
    elif any(later - earlier < _SAME_TE_MS for earlier, later in itertools.pairwise(known)):
        notes = (f"of {len(pairs)} echoes some have the same echo time, so the last echo is used alone",)
    if notes:
        pairs = pairs[-1:]
    else:
        pairs = tuple(pairs[n] for n in sorted(range(len(pairs)), key=lambda n: times[n] or 0.0))
    magnitudes, phases = zip(*pairs, strict=True)
    return ImageSet(kind=ChoiceKind.MAGNITUDE_AND_PHASE, magnitudes=magnitudes, phases=phases, notes=notes)


def _times(magnitudes: tuple[Candidate, ...], phases: tuple[Candidate, ...]) -> tuple[float | None, ...]:
    """Echo times in ms, from the sidecar of the magnitude or else of its phase."""
    return tuple(
        magnitude.facts.echo_time_ms or phase.facts.echo_time_ms
        for magnitude, phase in zip(magnitudes, phases, strict=True)
    )


def _advantage(best: ImageSet, other: ImageSet) -> str:
    """Why a set goes before another of its kind: the first part of `order` in which they differ."""
    texts = (
        "",  # they are of one kind
        f"{len(best.magnitudes)} echoes against {len(other.magnitudes)}",
        "its name is more like that of the phase",
        "its name has fewer entities of variants (rec-, proc-, desc-, ce-, ...)",
        f"{best.reference.contrast} goes before {other.reference.contrast}",
        "finer voxels",
        "the first by name of equals",
    )
    return next(
        text for text, ours, theirs in zip(texts, best.order, other.order, strict=True) if ours != theirs
    )


def _left(candidates: list[Candidate], best: ImageSet, others: list[ImageSet]) -> Iterator[NotTaken]:
    """Why each readable image was not taken."""
    for image in candidates:
        if any(image is taken for taken in best.images):
            continue
        home = next((other for other in others if any(image is member for member in other.images)), None)
        if home is None and image.part == "phase":
            why = "on its grid there is no SWI, and no magnitude of an echo that is used"
        elif home is None:
            why = "its echo is not used: it has no phase on the same grid, or echo times are not known"
        elif home.kind is best.kind:
            why = f"{best.reference.file.relative} goes before it: {_advantage(best, home)}"
        else:
            why = f"{best.kind.value} goes before {home.kind.value}"
        yield NotTaken(file=image.file, why=why)


def _phases_elsewhere(scan: Scan, root: Path, reference: Candidate) -> Iterator[str]:
    """Notes on phases that fit an image without one, but belong to another scan by name."""
    others = dataclasses.replace(scan, files=scan.elsewhere, excluded=())
    for image in _read_candidates(others, root)[0]:
        if image.part == "phase" and image.same_grid(reference):
            yield (
                f"{image.file.relative} lies on the same grid, but belongs to another scan by its name; it "
                "was not used"
            )


def _nothing(candidates: list[Candidate], left: list[NotTaken]) -> str:
    """Why nothing can be used, with the reason of every image."""
    reasons = [f"{image.file.relative}: {image.why}" for image in left]
    reasons += [
        f"{image.file.relative}: a phase, but there is neither SWI nor magnitude that can be used"
        for image in candidates
    ]
    return f"no image can be used: {'; '.join(reasons)}"
