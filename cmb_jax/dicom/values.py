"""Voxels of a converted volume against slope x pixel + intercept of the frames that they came from."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
from pydicom import dcmread

from cmb_jax.dicom.files import open_whole
from cmb_jax.dicom.grid import frame_mapping
from cmb_jax.dicom.stacks import Stack
from cmb_jax.io.outside import Unreadable, reading
from cmb_jax.io.volume import Volume

_TOLERANCE = 1e-4  # of a frame's largest value; float32 rounds


def valued_by_headers(volume: Volume, stack: Stack) -> Volume:
    """The volume with the values of its headers; a warning where the converter gave others.

    Converters take one slope for a series, but each slice may have its own. What pydicom cannot decompress is
    left as it is, and said.
    """
    mapping = frame_mapping(volume, stack)
    converted = mapping.to_frames(volume.data)
    changed, expected = 0, np.empty_like(converted)
    cache: dict[Path, np.ndarray] = {}
    for index, frame in enumerate(stack.frames):
        try:
            pixels = _pixels(frame.instance.path, cache)[frame.number]
        except Unreadable as error:  # a codec that is missing, or damaged data
            said = f"series {stack.key}: values were not compared with the headers: {error.reason}"
            return dataclasses.replace(volume, warnings=(*volume.warnings, said))
        expected[index] = pixels * frame.slope + frame.intercept
        apart = np.abs(expected[index] - converted[index]).max()
        changed += bool(apart > _TOLERANCE * max(1e-30, float(np.abs(expected[index]).max())))
    if not changed:
        return volume
    said = (
        f"series {stack.key}: dcm2niix gave {changed} of {len(stack.frames)} slices other values than slope "
        "and intercept in their headers do; those of the headers were taken"
    )
    return dataclasses.replace(volume, data=mapping.from_frames(expected), warnings=(*volume.warnings, said))


def _pixels(path: Path, cache: dict[Path, np.ndarray]) -> np.ndarray:
    """(frames, rows, columns) as stored; the last file is kept, for objects of many frames."""
    if path not in cache:
        cache.clear()
        with reading(path), open_whole(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = dcmread(stream, force=True).pixel_array
            cache[path] = array if array.ndim == 3 else array[None]
    return cache[path]
