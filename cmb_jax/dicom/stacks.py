"""Sorts frames into stacks, one volume each, and checks them for missing and repeated slices."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from nibabel.affines import apply_affine

from cmb_jax.dicom.frames import Frame, Instance

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ROUNDED_MM = 0.15  # some scanners round positions to 0.1 mm
_SAME_PLACE_MM = 0.01
_SAME_GRID_MM = 0.01  # at any corner
SAME_ECHO_MS = 0.1  # rounding in headers
_SAME_DIRECTION, _SAME_SPACING_MM = 2e-3, 2e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """Frames of one series that form one volume, in the order of the slice normal."""

    key: str  # series number, plus .1, .2, ... if the series has several stacks; used with --series
    frames: tuple[Frame, ...]
    affine: np.ndarray | None  # (4, 4): (column, row, slice) index -> RAS mm; None with a fault
    fault: str = ""  # why the stack is not a volume

    @property
    def first(self) -> Frame:
        """Its first frame, for attributes that all frames share."""
        return self.frames[0]

    @property
    def instance(self) -> Instance:
        """The object of its first frame, for attributes of the series."""
        return self.frames[0].instance

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        return (self.instance.columns, self.instance.rows, len(self.frames))

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The distinct objects of its frames, in the order of the frames."""
        return tuple({frame.instance.sop_uid: frame.instance for frame in self.frames}.values())


def sort_into_stacks(frames: Iterable[Frame]) -> tuple[Stack, ...]:
    """Stacks in the order of their series numbers.

    Frames that differ in series, image type, component, echo, orientation or matrix go to different stacks.
    If positions repeat, acquisition numbers or temporal positions separate the repeats.
    """
    stacks = []
    for members in sorted(_groups(frames, lambda frame: frame.instance.series_uid), key=_series_order):
        # in order of certainty: exact header values, then rounded ones, then repeated positions, which only
        # other attributes can separate
        groups = [
            part
            for alike in _groups(members, _kind)
            for group in _geometries(alike)
            for part in _repeats(group)
        ]
        name = str(members[0].instance.series_number or 0)
        for count, group in enumerate(groups, 1):
            stacks.append(_stack(name if len(groups) == 1 else f"{name}.{count}", group))
    return tuple(stacks)


def same_grid(a: Stack, b: Stack) -> bool:
    """Whether two stacks have the same voxels; UIDs are ignored, because anonymization may change them."""
    if a.affine is None or b.affine is None or a.shape != b.shape:
        return False
    corners = np.array(list(itertools.product(*((0, n - 1) for n in a.shape))))
    apart_mm = apply_affine(a.affine, corners) - apply_affine(b.affine, corners)
    return bool(np.abs(apart_mm).max() <= _SAME_GRID_MM)


def _series_order(members: Sequence[Frame]) -> tuple[int, str]:
    return (members[0].instance.series_number or 0, members[0].instance.series_uid)


def _groups(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    """Frames with the same key together, in the order of first appearance."""
    groups: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(key(frame), []).append(frame)
    return list(groups.values())


def _kind(frame: Frame) -> Hashable:
    return (frame.image_type, frame.component, frame.instance.rows, frame.instance.columns)


def _geometries(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Groups of frames with the same echo, orientation and pixel size, up to the rounding of headers."""
    groups: list[list[Frame]] = []
    for frame in frames:
        group = next((group for group in groups if _alike(group[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    if (a.echo_ms is None) != (b.echo_ms is None):
        return False
    if a.echo_ms is not None and b.echo_ms is not None and abs(a.echo_ms - b.echo_ms) > SAME_ECHO_MS:
        return False
    direction = np.abs(np.subtract(a.orientation, b.orientation)).max()
    spacing = np.abs(np.subtract(a.spacing_mm, b.spacing_mm)).max()
    return bool(direction <= _SAME_DIRECTION and spacing <= _SAME_SPACING_MM)


def _offsets(frames: Sequence[Frame]) -> np.ndarray:
    """Positions in mm along the slice normal."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    return np.array([frame.position_mm for frame in frames]) @ normal


def _has_repeats(frames: Sequence[Frame]) -> bool:
    return bool(np.any(np.diff(np.sort(_offsets(frames))) < _SAME_PLACE_MM))


def _repeats(frames: list[Frame]) -> list[list[Frame]]:
    """The frames as one group, or one group per repeat if an attribute separates the repeats."""
    # split only if that removes the fault; otherwise the frames stay together and the fault is reported
    repeated = _has_repeats(frames)
    if not repeated and not _fault(np.sort(_offsets(frames))):
        return [frames]
    for attribute in ("acquisition", "temporal"):
        groups = _groups(frames, operator.attrgetter(attribute))
        faulty = any(_has_repeats(g) if repeated else bool(_fault(np.sort(_offsets(g)))) for g in groups)
        if len(groups) > 1 and not faulty:
            return groups
    return [frames]


def _stack(key: str, frames: Sequence[Frame]) -> Stack:
    offsets = _offsets(frames)
    order = np.argsort(offsets, kind="stable")
    ordered = tuple(frames[index] for index in order)
    fault = _fault(offsets[order])
    affine = None if fault else _affine(ordered)
    if affine is not None and not _on_a_line(ordered, affine):
        affine, fault = None, "its slices are shifted against each other"
    return Stack(key=key, frames=ordered, affine=affine, fault=fault)


def _fault(offsets: np.ndarray) -> str:
    """Why slices at these ascending positions (mm) do not form a volume; empty if they do."""
    if len(offsets) < 2:
        return "it is a single slice"
    steps = np.diff(offsets)
    repeated = int(np.count_nonzero(steps < _SAME_PLACE_MM))
    if repeated:
        return (
            f"{repeated} of its {len(offsets)} slices lie where another one lies (two acquisitions in one "
            "series?), and nothing in the headers tells them apart"
        )
    # Positions may be rounded, so only a step beyond the rounding is a gap. A gap of several whole steps
    # means missing slices; any other gap means uneven spacing.
    step = float(np.median(steps))
    gaps = np.flatnonzero(steps > step + _ROUNDED_MM)
    if len(gaps):
        counts = np.rint(steps[gaps] / step)
        if np.all(counts > 1) and np.all(np.abs(steps[gaps] - counts * step) <= counts * _ROUNDED_MM):
            missing = int(np.sum(counts - 1))
            where = ", ".join(f"after slice {index + 1}" for index in gaps[:4])
            slices = "slice is" if missing == 1 else "slices are"
            return f"{missing} {slices} missing ({where} of the {len(offsets)} that there are)"
    if len(gaps) or np.any(steps < step - _ROUNDED_MM):
        return f"its slices are {steps.min():.2f} to {steps.max():.2f} mm apart, not evenly spaced"
    return ""


def _affine(frames: Sequence[Frame]) -> np.ndarray:
    """(column, row, slice) -> RAS mm (DICOM PS3.3 C.7.6.2.1.1, with x and y turned from LPS to RAS)."""
    first, last = frames[0], frames[-1]
    between_rows, between_columns = first.spacing_mm
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(first.orientation[:3]) * between_columns
    matrix[:3, 1] = np.array(first.orientation[3:]) * between_rows
    start, end = np.array(first.position_mm), np.array(last.position_mm)
    # from the first and the last slice: the rounding of positions is divided by the number of slices
    matrix[:3, 2] = (end - start) / (len(frames) - 1)
    matrix[:3, 3] = start
    return _LPS_TO_RAS @ matrix


def _on_a_line(frames: Sequence[Frame], affine: np.ndarray) -> bool:
    """Whether the positions of all frames agree with the affine, within the rounding of headers."""
    expected = affine[:3, 3] + np.arange(len(frames))[:, None] * affine[:3, 2]
    stated = np.array([frame.position_mm for frame in frames]) * np.diag(_LPS_TO_RAS)[:3]
    return bool(np.abs(expected - stated).max() <= _ROUNDED_MM)
