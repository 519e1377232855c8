"""Vector drawings over the pictures: markers, outlines, letters. Coordinates are picture pixels (x, y)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import contourpy
import numpy as np
from scipy import ndimage

from cmb_jax.report.slices import Frame


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
    """A gray picture (or none) with its drawings."""

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
    """The zone's symbol, so that color is never the only sign: circle, diamond, triangle, else square."""
    if zone == "lobar":
        return (
            f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"
        )
    if zone == "deep":
        corners = [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)]
    elif zone == "infratentorial":
        corners = [(0, -1.25), (1.2, 0.85), (-1.2, 0.85)]
    else:
        corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    return _polygon([(x + dx * r, y + dy * r) for dx, dy in corners])


def outline(mask: np.ndarray, smooth_px: float = 0.8, tolerance_px: float = 1.2) -> str:
    """The borders of a picture-sized mask (height, width) as closed curves, thinned to the tolerance."""
    if not mask.any():
        return ""
    padded = ndimage.gaussian_filter(np.pad(mask.astype(np.float32), 2), smooth_px)
    # Samples sit at pixel centers; the padding moved them by two pixels.
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    curves = [_thin(np.asarray(line) - 1.5, tolerance_px) for line in lines]
    return "".join(_polygon(curve) for curve in curves if len(curve) >= 4)


def _thin(points: np.ndarray, tolerance_px: float) -> list[tuple[float, float]]:
    """Keep a point only when it is `tolerance_px` along the curve from the last one kept."""
    traveled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    _, first = np.unique(np.floor(traveled / tolerance_px), return_index=True)
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
