"""Readers' verdicts on candidates, and the lesions that they add; the JSON files of the viewer."""

import dataclasses
import enum
import math
import re
from pathlib import Path
from typing import Any

from cmb_jax.errors import UserError
from cmb_jax.io.atomic import sha256_file
from cmb_jax.io.outside import parse_json, read_text, shortened, shown
from cmb_jax.review.result import Result

FORMAT = "cmb-jax verdicts"
VERSION = 1
MAX_BYTES = 4_000_000
FOLDER = "verdicts"
"""The folder within a result where the local server saves them, as READER.json."""

_READER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,14}[A-Za-z0-9])?", re.ASCII)
READER_RULE = "1 to 16 letters and digits, hyphens between them"


class Verdict(enum.StrEnum):
    """A reader's judgment of a candidate."""

    MICROBLEED = "microbleed"
    MIMIC = "mimic"
    UNCERTAIN = "uncertain"


MIMIC_KINDS: tuple[str, ...] = (
    "vessel",
    "calcification",
    "cavernous malformation",
    "partial volume",
    "artifact",
    "iron deposition",
    "hemorrhagic lesion",
    "other",
)
"""What the rating scales exclude (MARS: Gregoire et al. 2009; BOMBS: Cordonnier et al. 2009), in the terms of
Microbleed-review-viewer."""

CERTAINTIES: tuple[str, ...] = ("definite", "possible")
"""How sure a reader is of a microbleed (MARS)."""

VERDICT_WORDS = ", ".join(Verdict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One candidate or added lesion, as judged by a reader."""

    candidate: int | None  # id in detections.csv; None: added by the reader
    verdict: Verdict | None  # None: not read
    position_mm: tuple[float, float, float]  # RAS
    mimic: str = ""  # one of MIMIC_KINDS, or empty
    certainty: str = ""  # of a microbleed: one of CERTAINTIES; empty: not stated
    diameter_mm: float | None = None  # as the reader measured or drew it
    where: str = ""  # row, point or label, for messages


def parse_verdict(text: str, mimic: str, where: str) -> tuple[Verdict | None, str]:
    """Verdict and kind of mimic as typed by a reader; the text "mimic: vessel" gives both.

    Args:
        text: verdict, upper or lower case; empty: not read.
        mimic: kind of mimic, or empty.
        where: file and row, for the message.

    Raises:
        UserError: an unknown word, or a kind of mimic with another verdict than mimic.
    """
    word, _, kind = (part.strip().casefold() for part in text.partition(":"))
    kind = kind or mimic.strip().casefold()
    if word and word not in list(Verdict):
        raise UserError(
            f"{where}: verdict is {text.strip()!r}; allowed: {VERDICT_WORDS}, or empty (not read)"
        )
    if kind and kind not in MIMIC_KINDS:
        raise UserError(f"{where}: kind of mimic is {kind!r}; allowed: {', '.join(MIMIC_KINDS)}, or empty")
    if kind and word != Verdict.MIMIC:
        raise UserError(
            f"{where}: names the mimic {kind!r}, but the verdict is not mimic; correct one of them"
        )
    return (Verdict(word) if word else None), kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The content of one file. Comments stay in the file: they may name the patient."""

    reader: str  # initials or another pseudonym
    swi_sha256: str  # of the image that was searched
    detections_sha256: str  # of detections.csv: the run whose candidates were judged
    marks: tuple[Mark, ...]  # judged candidates and added lesions


def is_reader_name(name: str) -> bool:
    """Whether the name is allowed for a reader; such a name is also safe as a file name."""
    return _READER.fullmatch(name) is not None


def is_verdicts(content: object) -> bool:
    """Whether JSON content claims to be of this format; nothing else is checked."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def parse_verdicts(text: str, where: str) -> Verdicts:
    """The content of a file.

    Args:
        text: JSON.
        where: file, for messages.

    Raises:
        UserError: damaged, another version, or invalid values; says which.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: is not a JSON file ({shortened(str(error))}); save it again") from error
    if not is_verdicts(content):
        raise UserError(f"{where}: holds no verdicts of the viewer; give the file that it saved")
    if content.get("format_version") != VERSION:
        raise UserError(
            f"{where}: is of format version {shown(content.get('format_version'))}, this program "
            f"reads {VERSION}; save it again with the viewer of this version"
        )
    if content.get("coordinates") != "RAS mm":
        raise UserError(f"{where}: its coordinates are not RAS mm; save it again in the viewer")
    hashes = [_hash(content, name, where) for name in ("swi_sha256", "detections_sha256")]
    reader = content.get("reader")
    if not isinstance(reader, str) or not is_reader_name(reader):
        raise UserError(f"{where}: its reader is {shown(reader)}; allowed: {READER_RULE}")
    marks: list[Mark] = []
    for name in ("marks", "added"):
        entries = content.get(name)
        if not isinstance(entries, list):
            raise UserError(f"{where}: its {name} are not a list; save it again in the viewer")
        for number, entry in enumerate(entries, start=1):
            marks.append(_mark(entry, f"{where}: {name} {number}", judges=name == "marks"))
    ids = [mark.candidate for mark in marks if mark.candidate is not None]
    if len(set(ids)) < len(ids):
        raise UserError(f"{where}: judges a candidate twice; save it again in the viewer")
    return Verdicts(reader=reader, swi_sha256=hashes[0], detections_sha256=hashes[1], marks=tuple(marks))


def _hash(content: dict[str, Any], name: str, where: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise UserError(f"{where}: its {name} is not a SHA-256 hash, so its scan is unknown; save it again")
    return value


def _mark(entry: object, where: str, judges: bool) -> Mark:
    """One entry: about a candidate (`judges`), or about a lesion that the reader added."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is not an entry; save it again in the viewer")
    # `type` and not isinstance: in Python True is an int
    candidate = entry.get("candidate")
    if judges and (type(candidate) is not int or candidate < 1):
        raise UserError(f"{where}: its candidate is {shown(candidate)}, but must be a number from 1 on")
    words = [entry.get(name) or "" for name in ("verdict", "mimic", "certainty", "comment")]
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: verdict, mimic, certainty and comment must be texts")
    verdict, mimic = parse_verdict(words[0], words[1], where)
    if verdict is None and not judges:
        raise UserError(f"{where}: a lesion was added without a verdict; give it one, or remove it")
    certainty = words[2]
    if certainty not in ("", *CERTAINTIES) or (certainty and verdict is not Verdict.MICROBLEED):
        raise UserError(
            f"{where}: certainty is {shown(certainty)}; allowed for a microbleed: {', '.join(CERTAINTIES)}"
        )
    position = entry.get("position_mm")
    if not isinstance(position, list) or len(position) != 3 or not all(map(_is_finite, position)):
        raise UserError(f"{where}: its position is {shown(position)}, but must be three numbers")
    diameter = entry.get("diameter_mm")
    if diameter is not None and not (_is_finite(diameter) and diameter > 0):
        raise UserError(f"{where}: its diameter is {shown(diameter)}; it must be above 0 mm, or null")
    return Mark(
        candidate=candidate if judges else None,
        verdict=verdict,
        mimic=mimic,
        certainty=certainty,
        position_mm=(float(position[0]), float(position[1]), float(position[2])),
        diameter_mm=diameter,
        where=where,
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_belongs(verdicts: Verdicts, where: str, swi_sha256: str, detections_sha256: str) -> None:
    """Check that verdicts were given on this result.

    Raises:
        UserError: of another scan, or of another run on this scan.
    """
    if verdicts.swi_sha256 != swi_sha256:
        raise UserError(
            f"{where}: was read on another scan (image {verdicts.swi_sha256[:8]}, not {swi_sha256[:8]}); "
            "give the file of this scan"
        )
    if verdicts.detections_sha256 != detections_sha256:
        raise UserError(
            f"{where}: was read on another run of this scan, whose candidates have other numbers; "
            "give the result that was read, or read this one"
        )


def read_verdicts(path: Path, result: Result) -> Verdicts:
    """The verdicts in a file, which must belong to this result.

    Raises:
        UserError: see `parse_verdicts` and `check_belongs`; a file that cannot be read or is far too large.
    """
    text = read_text(path, "give the file that the viewer saved", limit=MAX_BYTES)
    verdicts = parse_verdicts(text, str(path))
    check_belongs(verdicts, str(path), result.swi_sha256, sha256_file(result.paths.table))
    return verdicts
