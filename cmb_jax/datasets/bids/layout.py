"""Participants, sessions and scans of a BIDS data set, by folders and names; no image is opened here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cmb_jax.datasets.bids.names import BidsName, join_entities, parse_name, plain_index
from cmb_jax.datasets.listing import check_root, is_nifti, relative, visible
from cmb_jax.datasets.sheets import read_csv
from cmb_jax.datasets.types import Problem
from cmb_jax.errors import UserError

DATATYPES = ("anat", "swi")
"""Folders that are searched; swi is that of the proposal BEP004, in which many data sets are laid out."""

NO_IMAGES = "no susceptibility images in anat or swi"
"""What is said of a participant without scans."""

CONTRASTS = ("MEGRE", "GRE", "T2starw", "swi")
"""Suffixes that are read, in any case of letters."""

NOT_READ = {
    "minip": "a projection, not the image itself",
    "mip": "a projection, not the image itself",
    "t2starmap": "a map, not an image",
    "r2starmap": "a map, not an image",
    "chimap": "a map, not an image",
    "t2star": "this suffix is used for maps too; name a T2*-weighted image T2starw",
}
"""Other suffixes of susceptibility imaging, in small letters, and why they are not read."""

_PROJECTION = re.compile(r"m(?:n|in)?ip(?![a-z]{3})|project")
_MAP = re.compile(
    r"qsm|chi ?map|r2s|r2star|t2smap|t2starmap|field ?map|b0map|phasediff|swim(?![a-z])|mask|seg"
)


def why_not_read(name: BidsName) -> str | None:
    """Why an image with such a suffix or such labels is not the image itself; None if it is."""
    reason = NOT_READ.get(name.suffix.casefold())
    if reason is not None:
        return reason
    for key in ("rec", "proc", "desc", "acq"):
        label = (name.get(key) or "").casefold()
        if _PROJECTION.search(label):
            return f"a projection by its {key}-{label}, not the image itself"
        if key != "acq" and _MAP.search(label):
            return f"a map or mask by its {key}-{label}, not an image"
    return None


OLD_PHASE = "phase"
"""Suffix of a phase image before part-phase came, with BIDS 1.5."""

_SUFFIXES = {contrast.casefold() for contrast in CONTRASTS} | NOT_READ.keys() | {OLD_PHASE}

_SUBJECT = re.compile(r"sub-([0-9A-Za-z+]+)")
_SESSION = re.compile(r"ses-([0-9A-Za-z+]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsFile:
    """An image of a data set."""

    path: Path
    relative: str  # to the root, with forward slashes
    name: BidsName


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The susceptibility images of one participant, session and run: what one result is made from."""

    participant: str  # label, without sub-
    session: str | None = None
    run: str | None = None
    chunk: str | None = None  # a part of the brain that was scanned by itself
    files: tuple[BidsFile, ...] = ()
    excluded: tuple[BidsFile, ...] = ()  # by what the user asks for
    elsewhere: tuple[BidsFile, ...] = ()  # images of the session's other scans

    @property
    def entities(self) -> tuple[tuple[str, str], ...]:
        """What the scan is named by: sub, ses, run, chunk."""
        named = (("sub", self.participant), ("ses", self.session), ("run", self.run), ("chunk", self.chunk))
        return tuple((key, label) for key, label in named if label is not None)

    @property
    def name(self) -> str:
        """For people and file names: sub-01_ses-2_run-1."""
        return join_entities(self.entities)

    def only(self, wanted: Callable[[BidsFile], bool]) -> Scan:
        """The scan with only the images that are wanted; the others are kept in mind."""
        files = tuple(file for file in self.files if wanted(file))
        excluded = tuple(file for file in self.files if not wanted(file))
        return dataclasses.replace(self, files=files, excluded=(*self.excluded, *excluded))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsLayout:
    """A data set."""

    root: Path
    participants: tuple[str, ...]  # labels that have a folder, sorted
    without_folder: tuple[str, ...] = ()  # labels that only participants.tsv knows
    problems: tuple[Problem, ...] = ()

    def scans(self, participant: str) -> tuple[Scan, ...]:
        """The scans of a participant with susceptibility images, in order of session and run.

        Images without a run go with those of the session's only run; where it has several, or none, they are
        a scan of their own. Chunks, which each show a part of the brain, are scans of their own too.

        Raises:
            UserError: a folder cannot be read.
        """
        try:
            return tuple(self._scans(participant))
        except OSError as error:
            where = Path(error.filename or f"sub-{participant}").name
            raise UserError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error

    def _scans(self, participant: str) -> Iterator[Scan]:
        top = self.root / f"sub-{participant}"
        sessions = [entry for entry in visible(top) if entry.is_dir() and _SESSION.fullmatch(entry.name)]
        for session, folder in [(None, top), *((entry.name[4:], entry) for entry in sessions)]:
            files = tuple(_files(folder, self.root, participant, session))
            runs = {plain_index(run): run for file in files if (run := file.name.get("run"))}
            groups: dict[tuple[str, str], list[BidsFile]] = {}
            for file in files:
                run = file.name.get("run") or (next(iter(runs)) if len(runs) == 1 else "")
                chunk = file.name.get("chunk") or ""
                groups.setdefault((plain_index(run), plain_index(chunk)), []).append(file)
            for key in sorted(groups, key=lambda key: [(label != "", natural(label)) for label in key]):
                run, chunk = key
                yield Scan(
                    participant=participant,
                    session=session,
                    run=runs.get(run),
                    chunk=chunk or None,
                    files=tuple(groups[key]),
                    elsewhere=tuple(file for file in files if file not in groups[key]),
                )


def read_layout(root: Path) -> BidsLayout:
    """The participants of a data set, and where its folders and participants.tsv disagree.

    Raises:
        UserError: the folder is missing, empty or unreadable, or has no folder sub-*.
    """
    root = check_root(root)
    labels, problems = [], []
    for entry in visible(root):
        if not entry.name.casefold().startswith("sub-") or not entry.is_dir():
            continue
        named = _SUBJECT.fullmatch(entry.name)
        if named:
            labels.append(named.group(1))
        else:
            text = "is no name of BIDS (sub-, then letters and digits); rename the folder and its files"
            problems.append(Problem(where=ascii(entry.name)[1:-1], what=text))
    if not labels:
        raise UserError(f"{root}: no folder sub-* in it; give the root of a BIDS data set")
    listed, table_problems = _participants_table(root)
    labels.sort(key=natural)
    missing = tuple(label for label in listed if label not in labels)
    if listed:
        text = "is not in participants.tsv"
        problems += [
            Problem(where=f"sub-{label}", what=text, level="note") for label in labels if label not in listed
        ]
    text = "is in participants.tsv, but has no folder"
    problems += [Problem(where=f"sub-{label}", what=text, level="note") for label in missing]
    return BidsLayout(
        root=root,
        participants=tuple(labels),
        without_folder=missing,
        problems=(*problems, *table_problems),
    )


def _participants_table(root: Path) -> tuple[list[str], list[Problem]]:
    """Labels of participants.tsv, each once; a table that cannot be read is a problem, not a failure."""
    path = root / "participants.tsv"
    if not path.is_file():
        return [], []
    try:
        rows = read_csv(path, ("participant_id",), delimiter="\t")
    except UserError as error:
        what = f"{str(error).replace(str(path), path.name)}; it was not used"
        return [], [Problem(where=path.name, what=what, level="note")]
    labels, problems = [], []
    for row in rows:
        named = _SUBJECT.fullmatch(row["participant_id"])
        if named is None:
            what = f"participant_id {row['participant_id']!a} is no sub- and a label; the line was not used"
            problems.append(Problem(where=path.name, what=what, level="note"))
        elif named.group(1) not in labels:
            labels.append(named.group(1))
    return labels, problems


def _files(folder: Path, root: Path, participant: str, session: str | None) -> Iterator[BidsFile]:
    """Susceptibility images in the folders of a participant or session, whose names say that they belong."""
    for datatype in DATATYPES:
        if not (folder / datatype).is_dir():
            continue
        for path in visible(folder / datatype):
            name = parse_name(path.name) if is_nifti(path) else None
            if name is None or name.suffix.casefold() not in _SUFFIXES:
                continue
            if name.get("sub") == participant and name.get("ses") == session:
                yield BidsFile(path=path, relative=relative(path, root), name=name)


def natural(label: str) -> tuple[int, str]:
    """Sorts labels so that 2 comes before 10, and numbers before words."""
    return (int(label) if label.isdecimal() else 10**12, label)
