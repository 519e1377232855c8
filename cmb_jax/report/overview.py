"""Pictures of the whole brain: projections with all detections, minimum intensity slabs, quality control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Zone, region_of
from cmb_jax.core.detection import DetectionRow
from cmb_jax.report.content import ReportContent
from cmb_jax.report.shapes import Label, Picture, Shape, edge_labels, glyph, outline
from cmb_jax.report.slices import (
    AXIAL,
    PLANES,
    Frame,
    Windows,
    data_uri,
    fitted_frame,
    mask_bounds,
    sample_plane,
    to_gray,
)
from cmb_jax.report.summary import location_text, region_title

GLASS_MM_PER_PX = 0.55
MOSAIC_MM_PER_PX = 0.65
MOSAIC_SLICES = 9
SLABS = 12

# Regions that are drawn in the quality control; outside and sulcal CSF would only cover the picture.
DRAWN_REGIONS: tuple[Region, ...] = tuple(r for r in Region if r not in (Region.OUTSIDE, Region.SULCAL_CSF))


def shown_zone(row: DetectionRow, content: ReportContent) -> str:
    """The zone that colors a row: none when the region map is not trusted."""
    return row.zone if content.regions_trusted else "none"


def voxel_indices(content: ReportContent, rows: Sequence[DetectionRow]) -> np.ndarray:
    """Continuous voxel indices (N, 3) of the rows on swi's RAS grid."""
    points = np.array([[row.x_mm, row.y_mm, row.z_mm, 1.0] for row in rows]).reshape(-1, 4)
    return (points @ np.linalg.inv(content.swi.affine).T)[:, :3]


def glass_brain(content: ReportContent, rows: Sequence[DetectionRow]) -> tuple[Picture, ...]:
    """The brain's outline seen along three axes, with every given row as its zone's symbol. Pure drawing."""
    step = tuple(max(1, round(1.5 / s)) for s in content.swi.spacing_mm)
    coarse = tuple(slice(None, None, n) for n in step)
    mask = content.brain_mask[coarse]
    sx, sy, sz = (s * n for s, n in zip(content.swi.spacing_mm, step, strict=True))
    bounds = mask_bounds(mask)
    layers = [("glass-brain", mask)]
    if content.region_code is not None and content.regions_trusted:
        region = region_of(content.region_code[coarse])
        zone = ZONE_OF_REGION[region]
        layers += [
            ("glass-infra", zone == Zone.INFRATENTORIAL),
            ("glass-deep", zone == Zone.DEEP),
            ("glass-ventricle", region == Region.VENTRICLE),
        ]
    indices = voxel_indices(content, rows) / np.array(step)
    pictures = []
    for plane in PLANES:
        frame = fitted_frame(plane, (sx, sy, sz), bounds, GLASS_MM_PER_PX)
        shapes = []
        for style, layer in layers:
            seen = sample_plane(np.any(layer, axis=plane.through_axis), frame)
            shapes.append(Shape(outline(np.nan_to_num(seen) > 0.5, smooth_px=2.5, tolerance_px=2.5), style))
        labels = list(edge_labels(frame, vertical=True))
        for row, index in zip(rows, indices, strict=True):
            x, y = frame.to_px(index[plane.column_axis], index[plane.row_axis])
            shapes.append(_dot(row, content, x, y, r=5.0, style="dot"))
            labels.append(_number(row.id, x, y - 6, 5.0, frame, "dot-text"))
        pictures.append(
            Picture(
                width=frame.width_px,
                height=frame.height_px,
                alt=f"Brain outline, {plane.name} projection, with {len(rows)} reported microbleeds",
                shapes=tuple(shapes),
                labels=tuple(labels),
                caption=plane.name.capitalize(),
            )
        )
    return tuple(pictures)


def _dot(row: DetectionRow, content: ReportContent, x: float, y: float, r: float, style: str) -> Shape:
    zone = shown_zone(row, content)
    place = location_text(row, content.regions_trusted)
    return Shape(
        glyph(zone, x, y, r),
        f"{style} z-{zone} {row.category}",
        title=f"{row.id}: {row.category}, {place}, score {row.score:.2f}",
        href=f"#candidate-{row.id}",
    )


def slabs(content: ReportContent, rows: Sequence[DetectionRow], windows: Windows) -> tuple[Picture, ...]:
    """Minimum intensity projections of axial slabs that cover the brain, from the vertex down.

    Voxels outside the brain mask do not take part, or skull and air would hide everything.
    """
    mask, data = content.brain_mask, content.swi.data
    bounds = mask_bounds(mask)
    frame = _axial_frame(content, bounds)
    edges = (
        np.linspace(bounds[2][0], bounds[2][1], min(SLABS, bounds[2][1] - bounds[2][0]) + 1)
        .round()
        .astype(int)
    )
    indices = voxel_indices(content, rows)
    # A row just above or below the mask belongs to the outermost slab, not to none.
    slab_of_row = np.clip(np.searchsorted(edges, indices[:, 2] + 0.5, side="right") - 1, 0, len(edges) - 2)
    pictures = []
    for n in reversed(range(len(edges) - 1)):
        z = slice(edges[n], edges[n + 1])
        inside = mask[:, :, z]
        lowest = np.min(data[:, :, z], axis=2, initial=np.inf, where=inside)
        lowest = np.where(inside.any(axis=2), lowest, windows.swi[0])
        mine = [i for i in range(len(rows)) if slab_of_row[i] == n]
        shapes, labels = [], list(edge_labels(frame))
        for i in mine:
            x, y = frame.to_px(indices[i, 0], indices[i, 1])
            r = (rows[i].diameter_mm / 2 + 3.0) / frame.mm_per_px
            ring = _dot(rows[i], content, x, y, r, style="ring")
            shapes += [Shape(ring.d, "halo"), ring]
            labels.append(_number(rows[i].id, x, y - r + 3, r, frame, "ring-text"))
        height = _z_range(content, edges[n], edges[n + 1])
        thickness = (edges[n + 1] - edges[n]) * content.swi.spacing_mm[2]
        pictures.append(
            Picture(
                width=frame.width_px,
                height=frame.height_px,
                uri=data_uri(to_gray(sample_plane(lowest, frame), *windows.swi), quality=82),
                alt=f"Minimum intensity projection, {height}, {len(mine)} reported",
                shapes=tuple(shapes),
                labels=tuple(labels),
                caption=f"{height} ({thickness:.0f} mm)",
            )
        )
    return tuple(pictures)


def _axial_frame(content: ReportContent, bounds: tuple[tuple[int, int], ...]) -> Frame:
    return fitted_frame(AXIAL, content.swi.spacing_mm, bounds, MOSAIC_MM_PER_PX)


def _z_mm(content: ReportContent, z: float) -> float:
    """Superior millimeters of a slice, at the center of the grid (an oblique slice has no single height)."""
    x, y = (n / 2 for n in content.swi.shape[:2])
    return float((content.swi.affine @ np.array([x, y, z, 1.0]))[2])


def _z_range(content: ReportContent, start: int, stop: int) -> str:
    return f"z {_z_mm(content, start - 0.5):.0f} to {_z_mm(content, stop - 0.5):.0f} mm"


def quality_mosaic(content: ReportContent, windows: Windows) -> tuple[Picture, ...]:
    """Axial slices through the brain with the outline of its mask and of the regions."""
    bounds = mask_bounds(content.brain_mask)
    start, stop = bounds[2]
    count = min(MOSAIC_SLICES, stop - start)
    frame = _axial_frame(content, bounds)
    # Slice centers of equal slabs: neither the first nor the last slice, which show next to nothing.
    places = (start + (np.arange(count) + 0.5) * (stop - start) / count).astype(int)
    pictures = []
    for z in places[::-1]:
        gray = to_gray(sample_plane(content.swi.data[:, :, z], frame), *windows.swi)
        pictures.append(
            Picture(
                width=frame.width_px,
                height=frame.height_px,
                uri=data_uri(gray, quality=82),
                alt=f"Axial SWI at z {_z_mm(content, z):.0f} mm with outlines of brain mask and regions",
                shapes=(*_region_shapes(content, z, frame), _mask_shape(content.brain_mask[:, :, z], frame)),
                labels=edge_labels(frame),
                caption=f"z {_z_mm(content, z):.0f} mm",
            )
        )
    return tuple(pictures)


def _mask_shape(mask_slice: np.ndarray, frame: Frame) -> Shape:
    inside = np.nan_to_num(sample_plane(mask_slice, frame)) > 0.5
    return Shape(outline(inside), "brain-outline")


def _number(number: int, x: float, y: float, r: float, frame: Frame, style: str) -> Label:
    """A candidate's number at height y beside its mark at x, on the side where there is room."""
    if x + r + 16 < frame.width_px:
        return Label(x + r + 2, y, str(number), style)
    return Label(x - r - 2, y, str(number), f"{style} end")


def _without_sulci(region: np.ndarray) -> np.ndarray:
    """Sulcal CSF given to the nearest region of the slice: else every sulcus would outline the lobes anew."""
    sulcal = region == Region.SULCAL_CSF
    named = ~sulcal & (region != Region.OUTSIDE)
    if not sulcal.any() or not named.any():
        return region
    nearest = ndimage.distance_transform_edt(~named, return_distances=False, return_indices=True)
    return np.where(sulcal, region[tuple(nearest)], region)


def _region_shapes(content: ReportContent, z: int, frame: Frame) -> list[Shape]:
    if content.region_code is None:
        return []
    region = _without_sulci(region_of(content.region_code[:, :, z]))
    shapes = []
    for label in DRAWN_REGIONS:
        here = region == label
        if here.any():
            inside = np.nan_to_num(sample_plane(here, frame)) > 0.5
            name = label.name.lower()
            shapes.append(
                Shape(outline(inside, tolerance_px=1.6), f"region r-{name}", title=region_title(name))
            )
    return [shape for shape in shapes if shape.d]
