"""Pictures of planes through a volume, in radiological display and true aspect ratio, and overlays on them.

All planes follow one rule: columns run against the plane's first array axis and rows against its second.
Array axes run to Right, Anterior and Superior, so the patient's right is on the left of axial and coronal
pictures, sagittal pictures have the face on the left, and the top is anterior (axial) or superior.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

import contourpy
import numpy as np
from PIL import Image
from scipy import ndimage

PlaneName = Literal["axial", "coronal", "sagittal"]
OUTSIDE_GRAY = 38  # where there is no data: not black, which would look like signal loss


@dataclasses.dataclass(frozen=True)
class Plane:
    """One anatomical plane: the array axes of its columns and rows, and its edge letters."""

    name: PlaneName
    column_axis: int
    row_axis: int
    through_axis: int
    left: str  # letter at the left edge of the picture
    right: str
    top: str
    bottom: str


AXIAL = Plane("axial", 0, 1, 2, "R", "L", "A", "P")
CORONAL = Plane("coronal", 0, 2, 1, "R", "L", "S", "I")
SAGITTAL = Plane("sagittal", 1, 2, 0, "A", "P", "S", "I")
PLANES: tuple[Plane, ...] = (AXIAL, CORONAL, SAGITTAL)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The part of a plane in a picture: maps pixel edges to voxel indices of the plane's axes, and back."""

    plane: Plane
    spacing_mm: tuple[float, float]  # voxel edge along the column and row axes
    center: tuple[float, float]  # voxel index (column axis, row axis) at the picture's center
    width_px: int
    height_px: int
    mm_per_px: float

    def to_px(self, column_index, row_index):
        """Pixel edge coordinates (x, y) of voxel indices; scalars or arrays."""
        # minus, because columns and rows run against the array axes
        x = self.width_px / 2 - (column_index - self.center[0]) * self.spacing_mm[0] / self.mm_per_px
        y = self.height_px / 2 - (row_index - self.center[1]) * self.spacing_mm[1] / self.mm_per_px
        return x, y

    def grid_index(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices at the pixel centers: along the column axis (width,) and the row axis (height,)."""
        # pixel n extends from n to n + 1, so its center is at n + 0.5
        x = np.arange(self.width_px) + 0.5 - self.width_px / 2
        y = np.arange(self.height_px) + 0.5 - self.height_px / 2
        column = self.center[0] - x * self.mm_per_px / self.spacing_mm[0]
        row = self.center[1] - y * self.mm_per_px / self.spacing_mm[1]
        return column, row


def centered_frame(
    plane: Plane,
    spacing_mm: tuple[float, float, float],
    center_index: np.ndarray,
    field_of_view_mm: float,
    px: int,
) -> Frame:
    """A square picture of `px` pixels around a voxel index (x, y, z)."""
    return Frame(
        plane=plane,
        spacing_mm=(spacing_mm[plane.column_axis], spacing_mm[plane.row_axis]),
        center=(float(center_index[plane.column_axis]), float(center_index[plane.row_axis])),
        width_px=px,
        height_px=px,
        mm_per_px=field_of_view_mm / px,
    )


def fitted_frame(
    plane: Plane,
    spacing_mm: tuple[float, float, float],
    bounds: tuple[tuple[int, int], ...],
    mm_per_px: float,
    margin_mm: float = 4.0,
) -> Frame:
    """A picture of the voxel box `bounds` ((start, stop) of each axis) with a margin."""
    axes = (plane.column_axis, plane.row_axis)
    spacing = (spacing_mm[axes[0]], spacing_mm[axes[1]])
    extent = [(bounds[a][1] - bounds[a][0]) * s + 2 * margin_mm for a, s in zip(axes, spacing, strict=True)]
    return Frame(
        plane=plane,
        spacing_mm=spacing,
        center=(
            (bounds[axes[0]][0] + bounds[axes[0]][1] - 1) / 2,
            (bounds[axes[1]][0] + bounds[axes[1]][1] - 1) / 2,
        ),
        width_px=max(1, round(extent[0] / mm_per_px)),
        height_px=max(1, round(extent[1] / mm_per_px)),
        mm_per_px=mm_per_px,
    )


def take_plane(data: np.ndarray, plane: Plane, index: float) -> np.ndarray:
    """The array's slice (column axis, row axis) nearest to `index`, clipped to the array. No copy."""
    last = data.shape[plane.through_axis] - 1
    return np.take(data, int(np.clip(round(index), 0, last)), axis=plane.through_axis)


def sample_plane(values: np.ndarray, frame: Frame, order: int = 1) -> np.ndarray:
    """A slice (column axis, row axis) as a picture (height, width) float32; NaN outside the slice.

    Only the necessary part of the slice is processed. If the picture is coarser than the slice, the slice is
    smoothed first to avoid aliasing. `order` is that of the spline (1 for phase: higher orders ring at
    wraps).
    """
    # the crop has a margin for the spline and the smoothing
    column, row = frame.grid_index()
    crop, offset = [], []
    for positions, size in ((column, values.shape[0]), (row, values.shape[1])):
        low = int(np.clip(np.floor(positions.min()) - 4, 0, size - 1))
        high = int(np.clip(np.ceil(positions.max()) + 5, low + 1, size))
        crop.append(slice(low, high))
        offset.append(low)
    part = values[crop[0], crop[1]].astype(np.float32)
    # half of (pixel size / voxel size - 1) voxels: enough against aliasing without losing visible detail
    sigma = [max(0.0, 0.5 * (frame.mm_per_px / s - 1.0)) for s in frame.spacing_mm]
    if max(sigma) > 0.1:
        part = ndimage.gaussian_filter(part, sigma, mode="nearest", truncate=2.0)
    points = np.meshgrid(column - offset[0], row - offset[1], indexing="xy")
    picture = ndimage.map_coordinates(part, points, order=order, mode="nearest")
    inside = _within(column, values.shape[0])[None, :] & _within(row, values.shape[1])[:, None]
    return np.where(inside, picture, np.nan).astype(np.float32)


def _within(positions: np.ndarray, size: int) -> np.ndarray:
    return (positions > -0.5) & (positions < size - 0.5)


def to_gray(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """Gray values 0..255 of a picture in the window [low, high]; NaN becomes a uniform dark gray."""
    scaled = (np.nan_to_num(picture, nan=low) - low) / max(high - low, 1e-12)
    gray = np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return np.where(np.isnan(picture), np.uint8(OUTSIDE_GRAY), gray)


def data_uri(gray: np.ndarray, quality: int = 88) -> str:
    """A gray picture (height, width) uint8 as a JPEG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Gray-value windows, the same for every picture of a report."""

    swi: tuple[float, float]
    phase: tuple[float, float]  # symmetric, radians


def choose_windows(swi: np.ndarray, phase: np.ndarray | None, brain_mask: np.ndarray) -> Windows:
    """Windows from the brain: SWI from the 0.5th to the 99.5th percentile, phase +- the 98th of |phase|.

    A higher percentile would be set by the steep phase near the skull base, and lesions would look pale.
    """
    step = (slice(None, None, 2), slice(None, None, 2))  # a quarter of the voxels is enough
    inside = brain_mask[step]
    if not inside.any():
        inside = np.ones_like(inside)
    low, high = np.percentile(swi[step][inside], [0.5, 99.5])
    half = 1.0
    if phase is not None:
        half = max(float(np.percentile(np.abs(phase[step][inside]), 98.0)), 1e-3)
    return Windows(swi=(float(low), float(high)), phase=(-half, half))


def mask_bounds(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Bounding box ((start, stop) of each axis) of the mask; the whole array if the mask is empty."""
    bounds = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        bounds.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, mask.shape[axis]))
    return tuple(bounds)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One SVG path with the CSS classes that style it."""

    d: str
    style: str
    title: str = ""  # tooltip and accessible name
    href: str = ""  # an anchor on the same page


@dataclasses.dataclass(frozen=True)
class Label:
    """One short text."""

    x: float
    y: float
    text: str
    style: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A gray picture (or none) with an overlay of shapes and labels."""

    width: int
    height: int
    alt: str
    uri: str = ""  # data URI; empty for a pure drawing
    shapes: tuple[Shape, ...] = ()
    labels: tuple[Label, ...] = ()
    caption: str = ""


def crosshair(x: float, y: float, gap: tuple[float, float], arm: float) -> str:
    """Four arms that leave a gap of `gap` (x, y) on each side of the point."""
    gap_x, gap_y = gap
    return (
        f"M{x - gap_x - arm:.1f} {y:.1f}H{x - gap_x:.1f}M{x + gap_x:.1f} {y:.1f}H{x + gap_x + arm:.1f}"
        f"M{x:.1f} {y - gap_y - arm:.1f}V{y - gap_y:.1f}M{x:.1f} {y + gap_y:.1f}V{y + gap_y + arm:.1f}"
    )


def glyph(zone: str, x: float, y: float, r: float) -> str:
    """A zone's symbol (circle, diamond, triangle, or square), so that color is never the only cue."""
    if zone == "lobar":
        return (
            f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"
        )
    if zone == "deep":
        # corners extend beyond r, so that all symbols look equally large
        corners = [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)]
    elif zone == "infratentorial":
        corners = [(0, -1.25), (1.2, 0.85), (-1.2, 0.85)]
    else:
        corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    return _polygon([(x + dx * r, y + dy * r) for dx, dy in corners])


def outline(mask: np.ndarray, smooth_px: float = 0.8, tolerance_px: float = 1.2) -> str:
    """The outlines of a picture-sized mask (height, width) as closed curves, thinned to the tolerance."""
    if not mask.any():
        return ""
    padded = ndimage.gaussian_filter(np.pad(mask.astype(np.float32), 2), smooth_px)
    # samples lie at pixel centers (+ 0.5), and the padding shifted them by two pixels
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    curves = [_thin(np.asarray(line) - 1.5, tolerance_px) for line in lines]
    return "".join(_polygon(curve) for curve in curves if len(curve) >= 4)


def _thin(points: np.ndarray, tolerance_px: float) -> list[tuple[float, float]]:
    """Keep about one point per `tolerance_px` of the length of the curve."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    _, first = np.unique(np.floor(length / tolerance_px), return_index=True)
    return [(float(x), float(y)) for x, y in points[first]]


def _polygon(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


def edge_labels(frame: Frame, vertical: bool = False) -> tuple[Label, ...]:
    """The letters of the picture's left and right edges (and of top and bottom)."""
    plane, w, h = frame.plane, frame.width_px, frame.height_px
    labels = [Label(4, h / 2, plane.left, "edge start"), Label(w - 4, h / 2, plane.right, "edge end")]
    if vertical:
        labels += [
            Label(w / 2, 10, plane.top, "edge middle"),
            Label(w / 2, h - 10, plane.bottom, "edge middle"),
        ]
    return tuple(labels)


def scale_bar(frame: Frame, length_mm: float) -> tuple[Shape, Label]:
    """A bar of the given length in the lower right corner."""
    length = length_mm / frame.mm_per_px
    x, y = frame.width_px - 7, frame.height_px - 7
    bar = Shape(f"M{x - length:.1f} {y}H{x}", "scale")
    return bar, Label(x, y - 6, f"{length_mm:g} mm", "scale-text end")
