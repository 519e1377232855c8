"""Files and folders by name, whatever the case of their letters; nothing is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmb_jax.errors import UserError


def check_root(root: Path) -> Path:
    """The folder of a data set.

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
    """Entries of a folder sorted by name, without hidden ones (macOS leaves a ._x beside each x)."""
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
    """The entry with this name, or else one whose name differs only in the case of letters."""
    if (folder / name).exists():
        return folder / name
    return next((entry for entry in visible(folder) if entry.name.casefold() == name.casefold()), None)


def is_nifti(path: Path) -> bool:
    """Whether the name ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii.gz", ".nii"))


def relative(path: Path, root: Path) -> str:
    """A path below the root as an index stores it."""
    return path.relative_to(root).as_posix()
