"""Reads the DICOM headers of images, in classic and multi-frame objects."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

GE_CREATOR = Tag(0x0043, 0x0010)
# "Image Type (real, imaginary, phase, magnitude)" of GEMS_PARM_01 in pydicom's private dictionary: 0
# magnitude, 1 phase, 2 real, 3 imaginary. Not to be confused with the next element, (0043,1030), the "Vas
# collapse flag", which numbers the directions of diffusion.
GE_IMAGE_TYPE = Tag(0x0043, 0x102F)
_GE_COMPONENTS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")

_KEYWORDS = (
    "ImageType SOPInstanceUID Modality Manufacturer StudyInstanceUID SeriesInstanceUID SeriesNumber "
    "SeriesDescription ProtocolName SequenceName PulseSequenceName ScanningSequence EchoPulseSequence "
    "EchoTime AcquisitionNumber TemporalPositionIdentifier FrameOfReferenceUID ImagePositionPatient "
    "ImageOrientationPatient PixelSpacing Rows Columns RescaleSlope RescaleIntercept BitsStored "
    "PixelRepresentation ComplexImageComponent SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence PatientName PatientID"
)
HEADER_TAGS: list[BaseTag] = [Tag(word) for word in _KEYWORDS.split()] + [GE_CREATOR, GE_IMAGE_TYPE]
"""All tags that `instance_frames` reads."""

_T = TypeVar("_T")
Vector = tuple[float, ...]


class NoImage(Exception):
    """The object has no image with a position in space; the message continues after the file's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """One DICOM object, which is one file."""

    path: Path
    sop_uid: str
    study_uid: str
    series_uid: str
    series_number: int | None
    frame_of_reference: str
    modality: str
    manufacturer: str
    description: str  # of the series
    protocol: str
    sequence: str  # name of the pulse sequence
    gradient_echo: bool
    echo_planar: bool
    rows: int
    columns: int
    stored_range: tuple[int, int]  # smallest and largest number that the stored bits can hold
    multi_frame: bool
    patient_id: str
    identifiers: tuple[str, ...]  # parts of the patient's name and ID; written only on request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One image plane: a classic object has one, an enhanced object has many."""

    instance: Instance
    number: int  # from 0 within its object
    image_type: tuple[str, ...]
    component: str  # MAGNITUDE, PHASE, REAL, IMAGINARY; "" if not in the header
    echo_ms: float | None
    acquisition: int | None
    temporal: int | None
    position_mm: Vector  # (3,) LPS mm, center of the first pixel
    orientation: Vector  # (6,) LPS directions along a row (to higher columns) and down a column
    spacing_mm: Vector  # (between rows, between columns)
    slope: float
    intercept: float


def instance_frames(dataset: Dataset, path: Path) -> tuple[Frame, ...]:
    """The frames of one object, in their stored order.

    Args:
        dataset: header with (at least) `HEADER_TAGS`.
        path: file that it was read from.

    Raises:
        NoImage: no image, or no position in space.
    """
    rows, columns = _number(dataset, "Rows", int), _number(dataset, "Columns", int)
    if not rows or not columns:
        raise NoImage("holds no image")
    instance = _instance(dataset, path, rows, columns)
    if not instance.multi_frame:
        return (_frame(instance, 0, dataset.get, dataset),)
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    frames = [
        _frame(instance, number, functools.partial(_grouped, (group, *shared)), dataset)
        for number, group in enumerate(_items(dataset, "PerFrameFunctionalGroupsSequence"))
    ]
    if not frames:
        raise NoImage("is multi-frame without a place for each frame")
    return tuple(frames)


def _instance(dataset: Dataset, path: Path, rows: int, columns: int) -> Instance:
    text = functools.partial(_text, dataset)
    number = functools.partial(_number, dataset, kind=int)
    if not text("SOPInstanceUID") or not text("SeriesInstanceUID"):
        raise NoImage("has no instance or series UID")
    bits = number("BitsStored") or 16
    if not 1 <= bits <= 64:
        raise NoImage(f"says that a pixel has {bits} bits")
    signed = number("PixelRepresentation") == 1
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    sequences = {*_words(dataset.get("ScanningSequence")), *_words(dataset.get("EchoPulseSequence"))}
    # "=" separates the scripts of a name and "^" its parts. Initials are left out: removing such short texts
    # from other names would mutilate them.
    name = str(dataset.get("PatientName", "") or "").replace("=", "^").replace(" ", "^")
    return Instance(
        path=path,
        sop_uid=text("SOPInstanceUID"),
        study_uid=text("StudyInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        series_number=number("SeriesNumber"),
        frame_of_reference=text("FrameOfReferenceUID"),
        modality=text("Modality"),
        manufacturer=text("Manufacturer"),
        description=text("SeriesDescription"),
        protocol=text("ProtocolName"),
        sequence=text("SequenceName") or text("PulseSequenceName"),
        gradient_echo=bool(sequences & {"GR", "GRADIENT"}),
        echo_planar="EP" in sequences,
        rows=rows,
        columns=columns,
        stored_range=stored,
        multi_frame="PerFrameFunctionalGroupsSequence" in dataset,
        patient_id=text("PatientID"),
        identifiers=tuple(part for part in (*name.split("^"), text("PatientID")) if len(part) > 2),
    )


def _frame(instance: Instance, number: int, get: Callable[[str], Any], dataset: Dataset) -> Frame:
    # for multi-frame objects, `get` searches the functional groups: the frame's, then the shared ones
    position = _vector(get("ImagePositionPatient"), 3)
    orientation = _vector(get("ImageOrientationPatient"), 6)
    spacing = _vector(get("PixelSpacing"), 2)
    if position is None or orientation is None or spacing is None or min(spacing) <= 0:
        raise NoImage("does not say where in space it lies")
    # enhanced objects use other names for some attributes
    image_type = _words(get("FrameType")) or _words(dataset.get("ImageType"))
    slope, intercept = _as(get("RescaleSlope"), float), _as(get("RescaleIntercept"), float)
    echo = _as(get("EffectiveEchoTime"), float)
    return Frame(
        instance=instance,
        number=number,
        image_type=image_type,
        component=_component(get("ComplexImageComponent"), dataset, image_type),
        echo_ms=_as(get("EchoTime"), float) if echo is None else echo,
        acquisition=_as(get("AcquisitionNumber") or get("FrameAcquisitionNumber"), int),
        temporal=_as(get("TemporalPositionIdentifier") or get("TemporalPositionIndex"), int),
        position_mm=position,
        orientation=orientation,
        spacing_mm=spacing,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
    )


def _component(stated: Any, dataset: Dataset, image_type: tuple[str, ...]) -> str:
    """MAGNITUDE, PHASE, REAL or IMAGINARY, from the standard attribute, GE's private one, or ImageType."""
    word = str(stated or "").upper()
    if word in _GE_COMPONENTS:
        return word
    element = dataset.get(GE_IMAGE_TYPE)
    if element is not None:
        value = element.value
        code = int.from_bytes(value, "little") if isinstance(value, bytes) else _as(value, int)
        if code is not None and 0 <= code < len(_GE_COMPONENTS):
            return _GE_COMPONENTS[code]
    tokens = set(image_type)
    if tokens & {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "PHASEMAP"}:
        return "PHASE"
    if tokens & {"R", "REAL", "R_FFE", "REAL_FFE"}:
        return "REAL"
    if tokens & {"I", "IMAGINARY", "I_FFE", "IMAGINARY_FFE"}:
        return "IMAGINARY"
    return "MAGNITUDE" if tokens & {"M", "M_FFE", "MAGNITUDE", "M_SWI"} else ""


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword, "") or "").strip()


def _items(dataset: Dataset, keyword: str) -> tuple[Dataset, ...]:
    return tuple(dataset.get(keyword) or ())


def _grouped(groups: tuple[Dataset, ...], keyword: str) -> Any:
    """The attribute's value in the first functional group that has it."""
    for group in groups:
        for element in group:
            if element.VR == "SQ" and len(element.value) and not element.tag.is_private:
                value = element.value[0].get(keyword)
                if value is not None:
                    return value
    return None


def _as(value: Any, kind: Callable[[Any], _T]) -> _T | None:
    try:
        return None if value is None or value == "" else kind(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(dataset: Dataset, keyword: str, kind: Callable[[Any], _T]) -> _T | None:
    return _as(dataset.get(keyword), kind)


def _vector(value: Any, length: int) -> Vector | None:
    try:
        numbers = tuple(float(item) for item in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else None


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(word).strip().upper() for word in ([value] if isinstance(value, str) else value))
