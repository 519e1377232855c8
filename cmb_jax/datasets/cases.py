"""What a reader of a data set returns: cases with their images and truth, and problems.

The functions at the top find files and folders by name, ignoring upper and lower case; nothing is opened
here.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem


def check_root(root: Path) -> Path:
    """The folder of a data set.

    Raises:
        UserError: it is missing, not a folder, unreadable or empty.
    """
    root = Path(root)
    if root.is_file():
        raise UserError(f"{root}: is a file; give the folder of the data set, unpacked")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; check the path of the data set")
    try:
        if not visible(root):
            raise UserError(f"{root}: the folder is empty; unpack the data set into it")
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror}); check its permissions") from error
    return root


def visible(folder: Path) -> list[Path]:
    """Entries of a folder sorted by name, without hidden ones (macOS adds a ._x beside each x)."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: (entry.name.casefold(), entry.name))


def walk(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder, sorted; links to folders are not followed (they may be circular)."""
    for entry in visible(folder):
        if entry.is_dir():
            if not entry.is_symlink():
                yield from walk(entry)
        else:
            yield entry


def child(folder: Path, name: str) -> Path | None:
    """The entry with this name, or else one that differs only in upper and lower case."""
    if (folder / name).exists():
        return folder / name
    return next((entry for entry in visible(folder) if entry.name.casefold() == name.casefold()), None)


def is_nifti(path: Path) -> bool:
    """Whether the name ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii.gz", ".nii"))


def relative(path: Path, root: Path) -> str:
    """A path below the root as stored in an index."""
    return path.relative_to(root).as_posix()


Kind = Literal["valdo", "csiro", "dou", "yonsei", "bids", "folder"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Role = Literal["swi", "t2s", "magnitude", "phase", "t1", "t2"]
ROLES: tuple[Role, ...] = get_args(Role)
"""The first of these that a case has is its reference: voxel coordinates are on its grid."""

Convention = Literal["voxel-1", "slice-column-row-1", "ras-mm"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

Level = Literal["skipped", "left out", "note"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointTruth:
    """Centers of the lesions; an empty list means that the scan was read and has no microbleed.

    Conventions: `voxel-1` is (i, j, k) in the file's array, counted from 1; `slice-column-row-1` is (k, i, j)
    in it, counted from 1; `ras-mm` is the world space of the file's header.
    """

    convention: Convention
    points: tuple[tuple[float, float, float], ...]
    diameters_mm: tuple[float, ...] | None = None  # one per point, if the source measured them
    source: str = ""  # path of the table below the root; empty if the folder's name implies no lesions
    mimics: tuple[tuple[float, float, float], ...] = ()  # spots that a reader judged not to be microbleeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskTruth:
    """Lesions as voxels on the reference's grid."""

    path: str  # below the root
    threshold: float = 0.5  # voxels with at least this value count
    soft: bool = False  # a mean of raters or a probability: values above 1 are an error, not labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One scan. Paths are relative to the root, with forward slashes."""

    case_id: str
    patient_id: str  # all scans of a patient go to the same split
    cohort: str
    images: Mapping[Role, str]
    truth: MaskTruth | PointTruth | None  # None: nobody has read the scan
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Role:
        """The role of the image that lesions are marked on."""
        return next(role for role in ROLES if role in self.images)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a case or a file."""

    where: str  # case, or path below the root
    what: str  # one line: what is wrong and what to do
    level: Level = "skipped"  # the case was skipped, a part was left out, or for information only


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """The cases of a data set, in the order of their IDs, and its problems."""

    kind: Kind
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def patients(self) -> tuple[str, ...]:
        """The distinct patients, sorted."""
        return tuple(sorted({case.patient_id for case in self.cases}))


@dataclasses.dataclass
class Collector:
    """Collects cases and problems for a reader."""

    cases: list[Case] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def skipping(self, where: str, level: Level = "skipped") -> Iterator[None]:
        """Turn a UserError in the body into a problem of one case or of a part of it."""
        try:
            yield
        except UserError as error:
            self.problems.append(Problem(where, str(error), level))

    def skip(self, where: str, what: str) -> None:
        """Report a case that cannot be used."""
        self.problems.append(Problem(where, what))

    def note(self, where: str, what: str) -> None:
        """Report something for information only."""
        self.problems.append(Problem(where, what, "note"))

    def one_each(self, paths: Iterable[Path], root: Path, what: str) -> dict[str, Path]:
        """Files by stem in lower case; if two share one, such as 3.nii and 3.nii.gz, neither is used.

        Args:
            paths: the files.
            root: of the data set.
            what: the word for these files in the message.
        """
        groups: dict[str, list[Path]] = {}
        for path in paths:
            groups.setdefault(stem(path.name).casefold(), []).append(path)
        for group in groups.values():
            if len(group) > 1:
                files = ", ".join(relative(path, root) for path in group)
                self.skip(stem(group[0].name), f"two {what} with one ID ({files}); keep one")
        return {name: group[0] for name, group in groups.items() if len(group) == 1}

    def index(self, kind: Kind) -> DatasetIndex:
        """The cases sorted by ID; those that share an ID (in lower case) are reported instead."""
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.case_id.casefold(), []).append(case)
        for group in groups.values():
            if len(group) > 1:
                files = ", ".join(case.images[case.reference] for case in group)
                self.skip(group[0].case_id, f"two subjects with one ID ({files}); rename one")
        cases = tuple(group[0] for _, group in sorted(groups.items()) if len(group) == 1)
        return DatasetIndex(kind=kind, cases=cases, problems=tuple(self.problems))
