"""Files and folders by name, whatever the case of their letters; nothing is opened here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cmb_jax.datasets.types import Case, Problem
from cmb_jax.errors import UserError
from cmb_jax.io.provenance import stem

_NIFTI = (".nii.gz", ".nii")


def check_root(root: Path) -> Path:
    """The folder, if it is one and holds anything.

    Raises:
        UserError: it is missing, a file, unreadable or empty.
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
    """What lies in a folder, sorted by name, without hidden files (macOS leaves a ._x beside each x)."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: (entry.name.casefold(), entry.name))


def walk(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder, sorted; links to folders are not followed (they may go round)."""
    for entry in visible(folder):
        if entry.is_dir():
            if not entry.is_symlink():
                yield from walk(entry)
        else:
            yield entry


def child(folder: Path, name: str) -> Path | None:
    """The entry of that name, in small or capital letters; the exact name first."""
    if (folder / name).exists():
        return folder / name
    return next((entry for entry in visible(folder) if entry.name.casefold() == name.casefold()), None)


def is_nifti(path: Path) -> bool:
    """Whether the name ends as a NIfTI image's."""
    return path.name.lower().endswith(_NIFTI)


def relative(path: Path, root: Path) -> str:
    """A path below the root as it stands in an index."""
    return path.relative_to(root).as_posix()


def one_each(paths: Iterable[Path], root: Path, what: str) -> tuple[dict[str, Path], list[Problem]]:
    """Files by stem (small letters); where two share one, neither is taken and a problem says so.

    Args:
        paths: such as 3.nii and 3.nii.gz.
        root: of the data set.
        what: the word for these files in the message.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(stem(path.name).casefold(), []).append(path)
    problems = [
        Problem(
            where=stem(same[0].name),
            what=f"two {what} with one ID ({', '.join(relative(path, root) for path in same)}); keep one",
        )
        for same in found.values()
        if len(same) > 1
    ]
    return {name: same[0] for name, same in found.items() if len(same) == 1}, problems


def distinct(cases: Iterable[Case]) -> tuple[tuple[Case, ...], list[Problem]]:
    """Cases in order of their IDs; of two with one ID (in small letters) neither is kept."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.case_id.casefold(), []).append(case)
    problems = []
    for same in found.values():
        if len(same) > 1:
            files = ", ".join(case.images[case.reference] for case in same)
            problems.append(
                Problem(where=same[0].case_id, what=f"two subjects with one ID ({files}); rename one")
            )
    return tuple(found[name][0] for name in sorted(found) if len(found[name]) == 1), problems
