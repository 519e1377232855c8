"""Finds all DICOM images below a folder by their headers; reports other files, damaged ones and duplicates.

Files that lost their preamble and DICM mark (PS3.10 7.1) are read too.
"""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cmb_jax.datasets.cases import Problem
from cmb_jax.dicom.frames import HEADER_TAGS, Frame, NoImage, instance_frames
from cmb_jax.errors import UserError
from cmb_jax.io.outside import Unreadable, reading

_META_BYTES = 2048  # enough for the file meta information at the start of a file
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".iso")
_MARK, _PREAMBLE = b"DICM", bytes(128)
_MARKED, _REMEDY = 132, "copy it again"
_LARGE_READ = 2**16
_FIRST_GROUPS = (0x0002, 0x0008)  # file meta information, or a data set without it
_VALUE_REPRESENTATION = (b"UL", b"OB", b"CS", b"UI", b"DA", b"LO", b"SH")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderContent:
    """The frames in a folder, and what could not be used."""

    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...]


def read_folder(folder: Path) -> FolderContent:
    """Read the headers of all DICOM files below a folder. Links to folders are not followed.

    Raises:
        UserError: no such folder, or no DICOM image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file; give the folder that it lies in" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}")
    frames: list[Frame] = []
    problems: list[Problem] = []
    ignored: Counter[str] = Counter()
    seen: set[str] = set()
    for path in _files(folder):
        where = path.relative_to(folder).as_posix()
        if path.name.upper() == "DICOMDIR":
            continue  # an index of files that are read anyway
        if path.suffix.lower() in _ARCHIVES:
            problems.append(Problem(where, "is an archive, which is not opened; unpack it first"))
            continue
        try:
            found = _read(path)
        except InvalidDicomError:
            ignored["is not a DICOM file"] += 1
            continue
        except NoImage as error:
            ignored[str(error)] += 1
            continue
        except Unreadable as error:
            problems.append(Problem(where, f"{error.reason}; copy it again"))
            continue
        # images are identified by UID: a copy under another name would look like a repeated slice
        if found[0].instance.sop_uid in seen:
            ignored["is a second copy of an image"] += 1
            continue
        seen.add(found[0].instance.sop_uid)
        frames.extend(found)
    for what, count in sorted(ignored.items()):
        problems.append(Problem(f"{count} file{'s' if count > 1 else ''}", what, "note"))
    if not frames:
        reasons = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:3]) or "it is empty"
        raise UserError(f"{folder}: no DICOM image in it ({reasons}); give the folder of the examination")
    return FolderContent(frames=tuple(frames), problems=tuple(problems))


def _files(folder: Path) -> Iterator[Path]:
    """Regular files in a fixed order; reading pipes or devices would block."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent) / name).is_file())


def _read(path: Path) -> tuple[Frame, ...]:
    with (
        reading(path, _REMEDY, but=(InvalidDicomError, NoImage)),
        open_whole(path) as stream,
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")  # odd values are checked where they are used
        if DeflatedExplicitVRLittleEndian.encode() in stream.read(_META_BYTES):
            # dcm2niix does not read these, and they may inflate to any size
            raise NoImage("is deflated, which is not read; convert it to another transfer syntax")
        stream.seek(0)
        dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(HEADER_TAGS), force=True)
        return instance_frames(dataset, path)


class _Bounded(io.BufferedReader):
    """Limits reads to the size of the file: pydicom allocates whatever a damaged length field says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_whole(path: Path) -> BinaryIO:
    """The file as a stream that starts with the preamble, which is added if missing.

    Raises:
        InvalidDicomError: the file does not start as DICOM does.
        UserError: it cannot be read.
    """
    with reading(path, _REMEDY, but=(InvalidDicomError,)):
        stream = _Bounded(io.FileIO(path))
        start = stream.read(_MARKED)
        if start[len(_PREAMBLE) :] == _MARK:
            stream.seek(0)
            return stream
        with stream:
            if start[: len(_MARK)] != _MARK and not _starts_with_element(start):
                raise InvalidDicomError(f"{path.name} does not begin as DICOM does")
            rest = start + stream.read()
        return io.BytesIO(_PREAMBLE + (b"" if rest.startswith(_MARK) else _MARK) + rest)


def has_mark(path: Path) -> bool:
    """Whether the file has preamble and mark. Raises UserError."""
    with reading(path, _REMEDY), open(path, "rb") as stream:
        return stream.read(_MARKED)[len(_PREAMBLE) :] == _MARK


def _starts_with_element(start: bytes) -> bool:
    """Whether the bytes start with an element of a first group, in explicit or implicit little endian."""
    if len(start) < 12 or int.from_bytes(start[:2], "little") not in _FIRST_GROUPS:
        return False
    # Explicit: the tag is followed by the two letters of the value representation. Implicit: by a length of
    # four bytes, which is small in these groups and hardly ever small in other files.
    length = int.from_bytes(start[4:8], "little")
    return start[4:6] in _VALUE_REPRESENTATION or length <= 64
