"""Which CMB-Phantom a folder of simulated subjects is of, and that old ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

from cmb_jax.errors import UserError

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
    try:
        version = json.loads(path.read_text(encoding="utf-8")).get(VERSION_KEY, 1)
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); simulate the tree again"
        ) from error
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
