"""Which CMB-Phantom a folder of simulated subjects is of, and that old ones are refused."""

from __future__ import annotations

from pathlib import Path

from cmb_jax.errors import UserError
from cmb_jax.io.outside import read_json_object

VERSION = 2
"""Raise when a seed would give another subject: figures of two versions do not compare."""

DESCRIPTION = "dataset_description.json"
VERSION_KEY = "PhantomVersion"  # in dataset_description.json; version 1 has no such line


def phantom_version(folder: Path) -> int:
    """The version that dataset_description.json of a simulated tree, or of its truth, names; else 1.

    Raises:
        UserError: the file holds no JSON, or no whole number there.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return 1
    version = read_json_object(path, "simulate the tree again").get(VERSION_KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{path}: {VERSION_KEY} is {version!r}, no whole number; simulate the tree again")
    return version


def check_phantom_version(folder: Path, described: Path | None = None) -> None:
    """Refuse a simulated tree of another version.

    Args:
        folder: named in the message.
        described: folder of its dataset_description.json, if that is another one.

    Raises:
        UserError: says which version it is.
    """
    version = phantom_version(described or folder)
    if version != VERSION:
        raise UserError(
            f"{folder}: is of CMB-Phantom {version}, but this cmb-jax simulates and evaluates CMB-Phantom "
            f"{VERSION}; simulate it again, or use the cmb-jax that wrote it"
        )
