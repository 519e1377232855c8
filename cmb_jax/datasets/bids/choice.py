"""Which images of a scan are taken, and why: the best kind first, ties broken by rules that are said."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator
from pathlib import Path

from cmb_jax.datasets.bids.candidates import Candidate, NotTaken, Series, read_candidates, series_of
from cmb_jax.datasets.bids.layout import CONTRASTS, Scan
from cmb_jax.errors import UserError

_SAME_TE_MS = 0.05


class ChoiceKind(enum.Enum):
    """What a result is made from, the best first. The values are for people."""

    SWI_AND_PHASE = "SWI with phase"
    MAGNITUDE_AND_PHASE = "magnitude and phase, from which SWI is made"
    SWI_ALONE = "SWI without phase"
    MAGNITUDE_ALONE = "T2*-weighted magnitude without phase"


_RANK = {kind: rank for rank, kind in enumerate(ChoiceKind)}


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
        known = _times(self.magnitudes, self.phases)
        return tuple(te for te in known if te is not None) if None not in known else ()

    @property
    def order(self) -> tuple[int, int, int, int, int, float, str]:
        """Sorts the best first; what each number is stands in `_advantage`."""
        return (
            _RANK[self.kind],
            -len(self.magnitudes) if self.kind is ChoiceKind.MAGNITUDE_AND_PHASE else 0,
            self._strangers,
            sum(key in ("rec", "proc", "desc") for key, _ in self.reference.file.name.entities),
            CONTRASTS.index(self.reference.contrast),
            round(self.reference.grid.voxel_mm3, 4),
            self.reference.file.relative,
        )

    @property
    def _strangers(self) -> int:
        """Entities in which a SWI and its phase differ: a phase of another acquisition may not fit."""
        if self.swi is None or not self.phases:
            return 0
        swi, phase = self.swi.file.name, self.phases[0].file.name
        return len(set(swi.told_by("part")) ^ set(phase.told_by("part", "echo")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(ImageSet):
    """What is taken of a scan."""

    scan: Scan
    why: str
    left: tuple[NotTaken, ...]


def choose(scan: Scan, root: Path) -> Choice:
    """Choose the images of a scan.

    SWI with phase goes before magnitude and phase (from which SWI is made), these before SWI alone, and that
    before a T2*-weighted magnitude alone. Among equals, more echoes go before fewer, a SWI with a phase of
    its own name before others, images without rec- before those with it, MEGRE before GRE before T2starw,
    finer voxels before coarser, and then the first by name. Projections and maps are never taken.

    Args:
        scan: of the layout.
        root: of the data set.

    Raises:
        UserError: nothing can be taken; says why.
    """
    candidates, left = read_candidates(scan, root)
    sets = sorted(_sets(series_of(candidates)), key=lambda images: images.order)
    if not sets:
        raise UserError(_nothing(candidates, left))
    best, *others = sets
    why = best.kind.value
    rival = next((other for other in others if other.kind is best.kind), None)
    if rival is not None:
        why += f"; before {rival.reference.file.relative}: {_advantage(best, rival)}"
    said = dict.fromkeys(note for image in best.images for note in image.facts.notes)
    if scan.chunk is not None:
        said[f"chunk {scan.chunk}: it shows a part of the brain, and counts are of that part"] = None
    if not best.phases:
        said |= dict.fromkeys(_phases_elsewhere(scan, best.reference))
    return Choice(
        kind=best.kind,
        swi=best.swi,
        magnitudes=best.magnitudes,
        phases=best.phases,
        notes=(*said, *best.notes),
        scan=scan,
        why=why,
        left=(*left, *_left(candidates, best, others)),
    )


def _sets(series: tuple[Series, ...]) -> Iterator[ImageSet]:
    for one in series:
        if one.swi is not None:
            phase, magnitude = _companions(one.swi, one, series)
            yield ImageSet(
                kind=ChoiceKind.SWI_AND_PHASE if phase else ChoiceKind.SWI_ALONE,
                swi=one.swi,
                magnitudes=(magnitude,) if magnitude else (),
                phases=(phase,) if phase else (),
            )
        if one.pairs:
            yield _with_phase(one)
        elif one.magnitudes:
            last = max(one.magnitudes.values(), key=lambda image: (image.facts.echo_time_ms or 0, image.echo))
            yield ImageSet(kind=ChoiceKind.MAGNITUDE_ALONE, magnitudes=(last,))


def _companions(
    swi: Candidate, own: Series, series: tuple[Series, ...]
) -> tuple[Candidate | None, Candidate | None]:
    """Single-echo phase and magnitude on the grid of a SWI: of its own series first, then by their names."""
    nearest = sorted(
        series,
        key=lambda other: (
            other is not own,
            -len(set(other.entities) & set(own.entities)),
            CONTRASTS.index(other.contrast),
            other.entities,
        ),
    )

    def first(images: Iterator[dict[str, Candidate]]) -> Candidate | None:
        single = (next(iter(echoes.values())) for echoes in images if len(echoes) == 1)
        return next((image for image in single if image.same_grid(swi)), None)

    return first(other.phases for other in nearest), first(other.magnitudes for other in nearest)


def _with_phase(one: Series) -> ImageSet:
    pairs = one.pairs
    notes: tuple[str, ...] = ()
    times = _times(*zip(*pairs, strict=True))
    if len(pairs) > 1 and None in times:
        text = f"the echo times of {len(pairs)} echoes are not all known, so the last echo is used alone"
        pairs, notes = pairs[-1:], (text,)
    elif len(pairs) > 1 and _some_equal(times):
        text = f"of {len(pairs)} echoes some have the same echo time, so the last echo is used alone"
        pairs, notes = pairs[-1:], (text,)
    elif len(pairs) > 1:
        pairs = tuple(pairs[index] for index in sorted(range(len(pairs)), key=lambda n: times[n] or 0.0))
    magnitudes, phases = zip(*pairs, strict=True)
    return ImageSet(kind=ChoiceKind.MAGNITUDE_AND_PHASE, magnitudes=magnitudes, phases=phases, notes=notes)


def _some_equal(times: tuple[float | None, ...]) -> bool:
    known = sorted(te for te in times if te is not None)
    return any(later - earlier < _SAME_TE_MS for earlier, later in itertools.pairwise(known))


def _times(magnitudes: tuple[Candidate, ...], phases: tuple[Candidate, ...]) -> tuple[float | None, ...]:
    """Echo times in ms, from the magnitude's sidecar or else its phase's."""
    return tuple(
        magnitude.facts.echo_time_ms or phase.facts.echo_time_ms
        for magnitude, phase in zip(magnitudes, phases, strict=True)
    )


def _advantage(best: ImageSet, other: ImageSet) -> str:
    """In what a set goes before another of its kind: the first part of `order` in which they differ."""
    texts = (
        "",  # they are of one kind
        f"{len(best.magnitudes)} echoes against {len(other.magnitudes)}",
        "its name is more like that of the phase",
        "it is not reconstructed or processed anew (rec-, proc-, desc-)",
        f"{best.reference.contrast} goes before {other.reference.contrast}",
        "finer voxels",
        "the first by name of equals",
    )
    return next(
        text for text, ours, theirs in zip(texts, best.order, other.order, strict=True) if ours != theirs
    )


def _left(candidates: tuple[Candidate, ...], best: ImageSet, others: list[ImageSet]) -> Iterator[NotTaken]:
    """Why each readable image was not taken."""
    for image in candidates:
        if any(image is taken for taken in best.images):
            continue
        home = next((other for other in others if any(image is one for one in other.images)), None)
        if home is None and image.part == "phase":
            why = "on its grid there is no SWI, and no magnitude of an echo that is used"
        elif home is None:
            why = "its echo is not used: it has no phase on the same grid, or echo times are not known"
        elif home.kind is best.kind:
            why = f"{best.reference.file.relative} goes before it: {_advantage(best, home)}"
        else:
            why = f"{best.kind.value} goes before {home.kind.value}"
        yield NotTaken(file=image.file, why=why)


def _phases_elsewhere(scan: Scan, reference: Candidate) -> Iterator[str]:
    """What is to be known of phases that fit an image without one, but belong to another scan by name."""
    others = dataclasses.replace(scan, files=scan.elsewhere, excluded=())
    for image in read_candidates(others, scan_root(reference))[0]:
        if image.part == "phase" and image.same_grid(reference):
            yield (
                f"{image.file.relative} lies on the same grid, but belongs to another scan by its name; it "
                "was not used"
            )


def scan_root(image: Candidate) -> Path:
    """The data set that an image lies in."""
    return image.file.path.parents[image.file.relative.count("/")]


def _nothing(candidates: tuple[Candidate, ...], left: tuple[NotTaken, ...]) -> str:
    """Why nothing can be used, with the reason of every image."""
    reasons = [f"{image.file.relative}: {image.why}" for image in left]
    reasons += [
        f"{image.file.relative}: a phase, but there is neither SWI nor magnitude that can be used"
        for image in candidates
    ]
    return f"no image can be used: {'; '.join(reasons)}"
