"""File names of BIDS: entities (key-label pairs) and a suffix, joined by underscores."""

from __future__ import annotations

import dataclasses
import re

from cmb_jax.datasets.listing import stem
from cmb_jax.errors import UserError

_LABEL = re.compile(r"[0-9A-Za-z+]+")
_INDICES = ("run", "echo", "chunk", "split")
_ENTITY = re.compile(r"([A-Za-z]+)-([0-9A-Za-z+]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidsName:
    """A parsed name such as sub-01_ses-2_part-phase_T2starw."""

    entities: tuple[tuple[str, str], ...]  # in the order of the name
    suffix: str

    def get(self, key: str) -> str | None:
        """The label of an entity, None without it."""
        return dict(self.entities).get(key)

    def without(self, *keys: str) -> tuple[tuple[str, str], ...]:
        """The entities less those of the given keys."""
        return tuple((key, label) for key, label in self.entities if key not in keys)

    def told_by(self, *without: str) -> tuple[tuple[str, str], ...]:
        """The entities that tell images apart, less some; run-01 and run-1 are one."""
        return tuple(
            (key, plain_index(label) if key in _INDICES else label) for key, label in self.without(*without)
        )


def plain_index(label: str) -> str:
    """A number without leading zeros; other labels as they are."""
    return str(int(label)) if label.isdecimal() and label.isascii() else label


def parse_name(file_name: str) -> BidsName | None:
    """The entities and the suffix of a file's name; None if it is not made as BIDS names are.

    A name that applies to many files may have no entities at all: T2starw.json.

    Args:
        file_name: without folders, with or without .nii.gz or another ending.
    """
    *pairs, suffix = stem(file_name).split("_")
    if not re.fullmatch(r"[0-9A-Za-z]+", suffix):
        return None
    entities = []
    for pair in pairs:
        found = _ENTITY.fullmatch(pair)
        if found is None:
            return None
        entities.append((found.group(1), found.group(2)))
    if len(dict(entities)) < len(entities):
        return None
    return BidsName(entities=tuple(entities), suffix=suffix)


def join_entities(entities: tuple[tuple[str, str], ...]) -> str:
    """The entities as they stand in a name: sub-01_ses-2."""
    return "_".join(f"{key}-{label}" for key, label in entities)


def label_of(text: str, key: str) -> str:
    """A label as typed by a person, with or without its key: `01` and `sub-01` are one.

    Raises:
        UserError: it holds anything but letters, digits and +.
    """
    label = text.removeprefix(f"{key}-")
    if not _LABEL.fullmatch(label):
        raise UserError(f"{text!r}: is no label of BIDS; labels are letters and digits, such as {key}-01")
    return label
