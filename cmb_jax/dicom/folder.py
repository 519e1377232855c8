"""All DICOM images below a folder, from their headers; what is no image, damaged or double is named."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cmb_jax.datasets.cases import Problem
from cmb_jax.dicom.files import open_whole
from cmb_jax.dicom.frames import HEADER_TAGS, Frame, NoImage, instance_frames
from cmb_jax.errors import UserError
from cmb_jax.io.outside import Unreadable, reading

_META_BYTES = 2048  # file meta information lies in them
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".iso")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderContent:
    """What lies in a folder."""

    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...]


def read_folder(folder: Path) -> FolderContent:
    """Reads the headers of all DICOM files below a folder. Links to folders are not followed.

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
            continue  # an index of the files that are read anyway
        if path.suffix.lower() in _ARCHIVES:
            problems.append(Problem(where=where, what="is an archive, which is not opened; unpack it first"))
            continue
        try:
            found = _read(path)
        except InvalidDicomError:
            ignored["is no DICOM file"] += 1
            continue
        except NoImage as error:
            ignored[str(error)] += 1
            continue
        except Unreadable as error:
            problems.append(Problem(where=where, what=f"{error.reason}; copy it again"))
            continue
        if found[0].instance.sop_uid in seen:
            ignored["is a second copy of an image"] += 1
            continue
        seen.add(found[0].instance.sop_uid)
        frames.extend(found)
    problems += [
        Problem(where=f"{count} file{'s' if count > 1 else ''}", what=what, level="note")
        for what, count in sorted(ignored.items())
    ]
    if not frames:
        reasons = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:3]) or "it is empty"
        raise UserError(f"{folder}: no DICOM image in it ({reasons}); give the folder of the examination")
    return FolderContent(frames=tuple(frames), problems=tuple(problems))


def _files(folder: Path) -> Iterator[Path]:
    """Plain files in a fixed order: neither pipes nor devices, which would block."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent) / name).is_file())


def _read(path: Path) -> tuple[Frame, ...]:
    with (
        reading(path, "copy it again", but=(InvalidDicomError, NoImage)),
        open_whole(path) as stream,
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")  # odd values are judged where they are used
        if DeflatedExplicitVRLittleEndian.encode() in stream.read(_META_BYTES):
            # dcm2niix does not read these, and there is no telling how large they become
            raise NoImage("is deflated, which is not read; convert it to another transfer syntax")
        stream.seek(0)
        dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(HEADER_TAGS), force=True)
        return instance_frames(dataset, path)
