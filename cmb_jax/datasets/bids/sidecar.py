"""What JSON files say about an image, by the inheritance principle of BIDS."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmb_jax.datasets.bids.layout import BidsName, parse_name
from cmb_jax.datasets.cases import relative
from cmb_jax.io.outside import Unreadable, read_json_object
from cmb_jax.io.provenance import stem

_ECHO_TIME_S = (0.0005, 0.2)  # of a gradient echo of the brain; higher numbers are milliseconds by mistake
_FIELD_T = (0.05, 15.0)
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What is known about an image besides its voxels; None: not stated, or not believable."""

    echo_time_ms: float | None = None
    field_strength_t: float | None = None
    manufacturer: str | None = None
    paramagnetic_sign: int | None = None  # +1 or -1, of phase as stored: ParamagneticPhaseSign
    in_radians: bool = False  # of phase: Units
    acquired: str | None = None  # ISO 8601 date and time, to order scans by; never written to outputs
    notes: tuple[str, ...] = ()  # what is wrong with the JSON files, one line each


def read_facts(image: Path, name: BidsName, root: Path) -> ImageFacts:
    """The facts about an image from all JSON files that apply to it.

    A file applies if it lies in the image's folder or above it, has its suffix, and has no entity that the
    image lacks. The nearer file wins; in one folder, the one with more entities. A file that cannot be read
    is left out with a note.
    """
    merged: dict[str, Any] = {}
    notes = []
    for path in _applicable(image, name, root):
        try:
            merged |= read_json_object(path)
        except Unreadable as error:
            notes.append(f"{relative(path, root)}: {error.reason}, left out")
    return _facts(merged, relative(image, root), notes)


def facts_beside(image: Path, called: str) -> ImageFacts:
    """The facts about an image that need not be part of a BIDS data set: those of image.json beside it.

    Args:
        image: a NIfTI file.
        called: what notes call the JSON file; a file's own name may name a patient.
    """
    path = image.with_name(f"{stem(image.name)}.json")
    if not path.is_file():
        return ImageFacts()
    try:
        return _facts(read_json_object(path), called, [])
    except Unreadable as error:
        return ImageFacts(notes=(f"{called}: {error.reason}, left out",))


def _applicable(image: Path, name: BidsName, root: Path) -> Iterator[Path]:
    """The JSON files that apply, from the farthest and most general to the nearest."""
    # from the root down, because `read_facts` lets later files replace values of earlier ones
    levels = [folder for folder in image.parents if folder == root or root in folder.parents]
    for folder in reversed(levels):
        fitting = []
        for path in folder.glob("*.json"):
            other = parse_name(path.name)
            if (
                other is not None
                and other.suffix == name.suffix
                and set(name.entities) >= set(other.entities)
            ):
                fitting.append((len(other.entities), path))
        yield from (path for _, path in sorted(fitting))


def _facts(content: Mapping[str, Any], where: str, file_notes: list[str]) -> ImageFacts:
    echo_time_s, echo_note = _number_or_note(content, "EchoTime", _ECHO_TIME_S, "s")
    field_t, field_note = _number_or_note(content, "MagneticFieldStrength", _FIELD_T, "T")
    notes = [note for note in (echo_note, field_note) if note]
    sign = content.get("ParamagneticPhaseSign")
    if sign is not None and (isinstance(sign, bool) or sign not in (1, -1)):
        notes.append(f"ParamagneticPhaseSign is {_shown(sign)}, but it must be 1 or -1; not used")
        sign = None
    acquired = content.get("AcquisitionDateTime")
    if not isinstance(acquired, str) or _DATE_TIME.fullmatch(acquired) is None:
        acquired = None
    manufacturer = content.get("Manufacturer")
    if not isinstance(manufacturer, str) or not manufacturer.isprintable() or len(manufacturer) > 64:
        manufacturer = None
    return ImageFacts(
        echo_time_ms=None if echo_time_s is None else round(1000.0 * echo_time_s, 6),
        field_strength_t=field_t,
        manufacturer=manufacturer and manufacturer.strip(),
        paramagnetic_sign=None if sign is None else int(sign),
        in_radians=content.get("Units") == "rad",
        acquired=acquired,
        notes=(*file_notes, *(f"{where}: {note}" for note in notes)),
    )


def _number_or_note(
    content: Mapping[str, Any], key: str, limits: tuple[float, float], unit: str
) -> tuple[float | None, str]:
    """A number above the lower and up to the upper limit, else None; and a note on what is wrong with it."""
    value = content.get(key)
    if value is None:
        return None, ""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if limits[0] < value <= limits[1]:
            return float(value), ""
        what = f"must lie above {limits[0]:g} and up to {limits[1]:g} {unit}"
    else:
        what = f"must be a number ({unit})"
    return None, f"{key} is {_shown(value)}, but it {what}; not used"


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
