"""BIDS data sets by their file names: participants, sessions, scans, filters. No image is opened here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cmb_jax.datasets.cases import Problem, check_root, is_nifti, relative, visible
from cmb_jax.datasets.tables import read_csv
from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object
from cmb_jax.io.provenance import stem

_LABEL = re.compile(r"[0-9A-Za-z+]+")
_ENTITY = re.compile(r"([A-Za-z]+)-([0-9A-Za-z+]+)")
_INDICES = ("run", "echo", "chunk")  # entities whose labels are numbers

DATATYPES = ("anat", "swi")
"""Folders that are searched; swi is that of the proposal BEP004, in which many data sets are laid out."""

NO_IMAGES = "no susceptibility images in anat or swi"
"""Message for a participant without scans."""

CONTRASTS = ("MEGRE", "GRE", "T2starw", "swi")
"""Suffixes that are read, whether in upper or lower case."""

OLD_PHASE = "phase"
"""Suffix of a phase image before BIDS 1.5 introduced part-phase."""

_NOT_READ = {
    "minip": "a projection, not the image itself",
    "mip": "a projection, not the image itself",
    "t2starmap": "a map, not an image",
    "r2starmap": "a map, not an image",
    "chimap": "a map, not an image",
    "t2star": "this suffix is used for maps too; name a T2*-weighted image T2starw",
}  # other suffixes of susceptibility imaging, in lower case
_SUFFIXES = {contrast.casefold() for contrast in CONTRASTS} | _NOT_READ.keys() | {OLD_PHASE}
_PROJECTION = re.compile(r"m(?:n|in)?ip(?![a-z]{3})|project")
_MAP = re.compile(
    r"qsm|chi ?map|r2s|r2star|t2smap|t2starmap|field ?map|b0map|phasediff|swim(?![a-z])|mask|seg"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsName:
    """A parsed name such as sub-01_ses-2_part-phase_T2starw."""

    entities: tuple[tuple[str, str], ...]  # (key, label) in the order of the name
    suffix: str

    def get(self, key: str) -> str | None:
        """The label of an entity, None without it."""
        return dict(self.entities).get(key)

    def without(self, *keys: str) -> tuple[tuple[str, str], ...]:
        """The entities except those with the given keys."""
        return tuple((key, label) for key, label in self.entities if key not in keys)

    def key_without(self, *keys: str) -> tuple[tuple[str, str], ...]:
        """As `without`, to compare images by: run-01 and run-1 are the same."""
        return tuple(
            (key, plain_index(label) if key in _INDICES else label) for key, label in self.without(*keys)
        )


def plain_index(label: str) -> str:
    """A number without leading zeros; other labels as they are."""
    return str(int(label)) if label.isdecimal() and label.isascii() else label


def natural(label: str) -> tuple[int, str]:
    """Sorts labels so that 2 comes before 10, and numbers before words."""
    return (int(label) if label.isdecimal() else 10**12, label)


def parse_name(file_name: str) -> BidsName | None:
    """The entities and the suffix of a file's name; None if it is not a BIDS name.

    A name that applies to many files may have no entities at all: T2starw.json.

    Args:
        file_name: without folders, with or without .nii.gz or another ending.
    """
    *pairs, suffix = stem(file_name).split("_")
    matches = [_ENTITY.fullmatch(pair) for pair in pairs]
    entities = tuple((match.group(1), match.group(2)) for match in matches if match is not None)
    if not re.fullmatch(r"[0-9A-Za-z]+", suffix) or len(dict(entities)) < len(pairs):
        return None  # no suffix, or a part that is not an entity or is repeated
    return BidsName(entities=entities, suffix=suffix)


def join_entities(entities: tuple[tuple[str, str], ...]) -> str:
    """Entities as a file's name has them: sub-01_ses-2."""
    return "_".join(f"{key}-{label}" for key, label in entities)


def label_of(text: str, key: str) -> str:
    """A label as typed by a person, with or without its key: `01` and `sub-01` are the same.

    Raises:
        UserError: it holds anything but letters, digits and +.
    """
    label = text.removeprefix(f"{key}-")
    if not _LABEL.fullmatch(label):
        raise UserError(f"{text!r}: is not a BIDS label; labels are letters and digits, such as {key}-01")
    return label


def why_not_read(name: BidsName) -> str | None:
    """Why an image is not a susceptibility image by its suffix or labels; None if it is one."""
    reason = _NOT_READ.get(name.suffix.casefold())
    if reason is not None:
        return reason
    if (half := name.get("split")) is not None:
        return f"only a piece of an image by its split-{half}; join the pieces to one image without split-"
    for key in ("rec", "proc", "desc", "acq"):
        label = (name.get(key) or "").casefold()
        if _PROJECTION.search(label):
            return f"a projection by its {key}-{label}, not the image itself"
        if key != "acq" and _MAP.search(label):
            return f"a map or mask by its {key}-{label}, not an image"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsFile:
    """An image of a data set."""

    path: Path
    relative: str  # to the root, with forward slashes
    name: BidsName
    misplaced: bool = False  # its name has another participant or session than its folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The susceptibility images of one participant, session and run: what one result is made from."""

    participant: str  # label, without sub-
    session: str | None = None
    run: str | None = None
    chunk: str | None = None  # a part of the brain that was scanned by itself
    files: tuple[BidsFile, ...] = ()
    excluded: tuple[BidsFile, ...] = ()  # by the user's selection
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
        """The scan with only the images that are wanted; the others are listed as excluded."""
        files = tuple(file for file in self.files if wanted(file))
        excluded = tuple(file for file in self.files if not wanted(file))
        return dataclasses.replace(self, files=files, excluded=(*self.excluded, *excluded))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsLayout:
    """The participants of a data set, and how to find their scans."""

    root: Path
    participants: tuple[str, ...]  # labels that have a folder, sorted
    without_folder: tuple[str, ...] = ()  # labels that only participants.tsv has
    problems: tuple[Problem, ...] = ()

    def scans(self, participant: str) -> tuple[Scan, ...]:
        """The scans of a participant with susceptibility images, in order of session and run.

        Images without a run belong to the session's only run; where it has several, or none, they are a scan
        of their own. So are chunks, each of which shows a part of the brain.

        Raises:
            UserError: a folder cannot be read.
        """
        top = self.root / f"sub-{participant}"
        try:
            sessions = [
                entry for entry in visible(top) if entry.is_dir() and _is_folder_of("ses", entry.name)
            ]
            folders = [(None, top), *((entry.name.removeprefix("ses-"), entry) for entry in sessions)]
            return tuple(
                scan
                for session, folder in folders
                for scan in self._scans_of_session(participant, session, folder)
            )
        except OSError as error:
            where = Path(error.filename or f"sub-{participant}").name
            raise UserError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error

    def _scans_of_session(self, participant: str, session: str | None, folder: Path) -> Iterator[Scan]:
        # Run and chunk name scans; all other entities (acq, rec, part, echo, ...) name images of one scan,
        # among which `choice.choose` takes the best. Some data sets number the runs of the SWI and not those
        # of its phase.
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


def _is_folder_of(key: str, name: str) -> bool:
    return re.fullmatch(rf"{key}-[0-9A-Za-z+]+", name) is not None


def _files(folder: Path, root: Path, participant: str, session: str | None) -> Iterator[BidsFile]:
    """Susceptibility images in the folders of a participant or session."""
    for datatype in DATATYPES:
        if not (folder / datatype).is_dir():
            continue
        for path in visible(folder / datatype):
            name = parse_name(path.name) if is_nifti(path) else None
            if name is None or name.suffix.casefold() not in _SUFFIXES:
                continue
            misplaced = (name.get("sub"), name.get("ses")) != (participant, session)
            yield BidsFile(path=path, relative=relative(path, root), name=name, misplaced=misplaced)


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
        if _is_folder_of("sub", entry.name):
            labels.append(entry.name.removeprefix("sub-"))
        else:
            what = "is not a BIDS name (sub-, then letters and digits); rename the folder and its files"
            problems.append(Problem(where=ascii(entry.name)[1:-1], what=what))
    if not labels:
        odd = "".join(f" ({problem.where} {problem.what})" for problem in problems[:1])
        raise UserError(f"{root}: no folder sub-* in it{odd}; give the root of a BIDS data set")
    labels.sort(key=natural)
    listed, table_problems = _participants_table(root)
    missing = [label for label in listed if label not in labels]
    unlisted = [label for label in labels if label not in listed] if listed else []
    notes = [(label, "is not in participants.tsv") for label in unlisted]
    notes += [(label, "is in participants.tsv, but has no folder") for label in missing]
    problems += [Problem(where=f"sub-{label}", what=what, level="note") for label, what in notes]
    return BidsLayout(
        root=root,
        participants=tuple(labels),
        without_folder=tuple(missing),
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
    labels: dict[str, None] = {}
    problems = []
    for row in rows:
        name = row["participant_id"]
        if _is_folder_of("sub", name):
            labels[name.removeprefix("sub-")] = None
        else:
            what = f"participant_id {name!a} is not sub- with a label; the line was not used"
            problems.append(Problem(where=path.name, what=what, level="note"))
    return list(labels), problems


_FILTERED = ("swi", "mag", "phase")
"""Parts that filters may ask for; queries of other programs may stand in the same file."""

_LONG_KEYS = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
}
"""Entities whose names in filters differ from their keys in file names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsFilter:
    """Which images may be taken for which part, by entities; a part without a query may be any image."""

    queries: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def keeps(self, part: str, name: BidsName, datatype: str) -> bool:
        """Whether an image may be taken for that part."""
        labels = {**dict(name.entities), "suffix": name.suffix, "datatype": datatype}
        return all(
            _fits(labels.get(_LONG_KEYS.get(key, key)), wanted)
            for key, wanted in self.queries.get(part, {}).items()
        )


def read_filter(path: Path) -> BidsFilter:
    """The filter of a JSON file, in the form that fMRIPrep uses.

    {"swi": {"acquisition": "axial"}, "mag": {"reconstruction": null}, "phase": {"run": [1, 2]}}

    Raises:
        UserError: no such file, no JSON, or not of this form.
    """
    form = 'give such as {"swi": {"acquisition": "axial"}}'
    content = read_json_object(path, form)
    if not all(isinstance(query, dict) for query in content.values()):
        raise UserError(f"{path}: is not a filter; {form}")
    queries = {part: content[part] for part in _FILTERED if part in content}
    if not queries:
        raise UserError(f"{path}: has none of the queries {', '.join(_FILTERED)}; {form}")
    for part, query in queries.items():
        for key, wanted in query.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not all(value is None or type(value) in (str, int) for value in values):
                raise UserError(f"{path}: {part}: {key}: give a label, a list of labels, null (none) or *")
    return BidsFilter(queries=queries)


def _fits(label: str | None, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_fits(label, value) for value in wanted)
    if wanted is None or label is None:
        return label is wanted is None
    return wanted == "*" or plain_index(label) == plain_index(str(wanted))
