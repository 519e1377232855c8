"""The images of a scan that could be taken: what their headers and sidecars say, put together to series."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from cmb_jax.datasets.bids.layout import CONTRASTS, OLD_PHASE, BidsFile, Scan, natural, why_not_read
from cmb_jax.datasets.bids.names import BidsName, plain_index
from cmb_jax.datasets.bids.sidecar import ImageFacts, read_facts
from cmb_jax.datasets.grid import Grid, read_grid
from cmb_jax.errors import UserError
from cmb_jax.io.outside import reading

Part = Literal["swi", "mag", "phase"]

_CONTRAST_OF = {contrast.casefold(): contrast for contrast in CONTRASTS} | {OLD_PHASE: "GRE"}
_SAME_GRID_VOXELS = 0.01  # as good as the same header: the detector resamples none onto the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image whose header can be read."""

    file: BidsFile
    contrast: str  # one of CONTRASTS, GRE for the old suffix phase
    part: Part
    grid: Grid
    facts: ImageFacts

    @property
    def echo(self) -> tuple[int, str]:
        """Sorts echoes by their numbers."""
        return natural(self.file.name.get("echo") or "")

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
class Series:
    """The images of one acquisition: names that differ only in part and echo."""

    contrast: str
    entities: tuple[tuple[str, str], ...]  # without part and echo
    swi: Candidate | None
    magnitudes: dict[str, Candidate]  # by echo, "" without one
    phases: dict[str, Candidate]

    @property
    def pairs(self) -> tuple[tuple[Candidate, Candidate], ...]:
        """Magnitude and phase of the echoes that have both on the grid of the first such magnitude."""
        both = [(self.magnitudes[echo], self.phases[echo]) for echo in self.magnitudes if echo in self.phases]
        return tuple(pair for pair in both if all(image.same_grid(both[0][0]) for image in pair))


def read_candidates(scan: Scan, root: Path) -> tuple[tuple[Candidate, ...], tuple[NotTaken, ...]]:
    """Open the headers and sidecars of a scan's images.

    Args:
        scan: of the layout.
        root: of the data set, as far up as sidecars are looked for.

    Returns:
        What could be taken, and what cannot with the reason, both in the order of their names.
    """
    taken: dict[tuple[object, ...], Candidate] = {}
    left = [NotTaken(file=file, why="not among the images asked for") for file in scan.excluded]
    for file in scan.files:
        why_not = why_not_read(file.name)
        if why_not is not None:
            left.append(NotTaken(file=file, why=why_not))
            continue
        contrast = _CONTRAST_OF[file.name.suffix.casefold()]
        try:
            part = part_of(file.name)
            grid = _grid(file.path)
        except UserError as error:
            why = str(error).removeprefix(f"{file.path}: ").replace(str(file.path), file.path.name)
            left.append(NotTaken(file=file, why=why))
            continue
        key = (contrast, part, file.name.told_by("part"))
        if key in taken:
            left.append(NotTaken(file=file, why=f"stands for the same image as {taken[key].file.relative}"))
            continue
        facts = read_facts(file.path, file.name, root)
        taken[key] = Candidate(file=file, contrast=contrast, part=part, grid=grid, facts=facts)
    return tuple(taken.values()), tuple(left)


def part_of(name: BidsName) -> Part:
    """What an image is by its name.

    Raises:
        UserError: a part that is not read.
    """
    stated = (name.get("part") or "").casefold()
    if name.suffix.casefold() == OLD_PHASE or stated in ("phase", "pha"):
        return "phase"
    if stated in ("mag", "magnitude"):
        return "mag"
    if stated:
        raise UserError(f"part-{stated} is not read; give magnitude and phase")
    return "swi" if name.suffix.casefold() == "swi" else "mag"


def _grid(path: Path) -> Grid:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to a file that is not here; fetch it (such as datalad get)")
    with reading(path), open(path, "rb") as stream:
        if stream.read(32).startswith((b"/annex/objects/", b"version https://git-lfs")):
            raise UserError(f"{path}: points to a file that is not here; fetch it (such as datalad get)")
    return read_grid(path)


def series_of(candidates: Iterable[Candidate]) -> tuple[Series, ...]:
    """The acquisitions among the candidates, echoes in the order of their numbers."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
    for image in sorted(candidates, key=lambda image: image.echo):
        key = (image.contrast, image.file.name.told_by("part", "echo"))
        series = found.setdefault(
            key, Series(contrast=key[0], entities=key[1], swi=None, magnitudes={}, phases={})
        )
        echo = plain_index(image.file.name.get("echo") or "")
        if image.part == "swi":
            found[key] = dataclasses.replace(series, swi=image)
        else:
            (series.magnitudes if image.part == "mag" else series.phases)[echo] = image
    return tuple(found.values())
