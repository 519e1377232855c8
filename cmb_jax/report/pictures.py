"""The pictures on a subject's page: the whole brain with all detections, and close-ups of each."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cmb_jax.anatomy.regions import ZONE_OF_REGION, Region, Zone, region_of
from cmb_jax.core.detection import DetectionRow
from cmb_jax.report import drawing
from cmb_jax.report.summary import ReportContent, location_text, region_title

FIELD_OF_VIEW_MM = 20.0
THUMBNAIL_PX = 160
CONTEXT_MM_PER_PX = 0.9
GLASS_MM_PER_PX = 0.55
MOSAIC_MM_PER_PX = 0.65
MOSAIC_SLICES = 9
SLABS = 12

# drawn in the quality control; outside and sulcal CSF would only clutter the picture
DRAWN_REGIONS: tuple[Region, ...] = tuple(r for r in Region if r not in (Region.OUTSIDE, Region.SULCAL_CSF))


def shown_zone(row: DetectionRow, content: ReportContent) -> str:
    """The zone that determines the color of a row: "none" if the region map is not trusted."""
    return row.zone if content.regions_trusted else "none"


def voxel_indices(content: ReportContent, rows: Sequence[DetectionRow]) -> np.ndarray:
    """Continuous voxel indices (N, 3) of the rows on swi's RAS grid."""
    points = np.array([[row.x_mm, row.y_mm, row.z_mm, 1.0] for row in rows]).reshape(-1, 4)
    return (points @ np.linalg.inv(content.swi.affine).T)[:, :3]


def glass_brain(content: ReportContent, rows: Sequence[DetectionRow]) -> tuple[drawing.Picture, ...]:
    """Outlines of the brain along three axes, with a symbol for every row; drawings only, no image."""
    # at this size a mask with 1.5 mm voxels gives the same outlines at a fraction of the time
    step = tuple(max(1, round(1.5 / s)) for s in content.swi.spacing_mm)
    coarse = tuple(slice(None, None, n) for n in step)
    mask = content.brain_mask[coarse]
    sx, sy, sz = (s * n for s, n in zip(content.swi.spacing_mm, step, strict=True))
    bounds = drawing.mask_bounds(mask)
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
    for plane in drawing.PLANES:
        frame = drawing.fitted_frame(plane, (sx, sy, sz), bounds, GLASS_MM_PER_PX)
        shapes = []
        for style, layer in layers:
            seen = _inside(np.any(layer, axis=plane.through_axis), frame)
            shapes.append(drawing.Shape(drawing.outline(seen, smooth_px=2.5, tolerance_px=2.5), style))
        labels = list(drawing.edge_labels(frame, vertical=True))
        for row, index in zip(rows, indices, strict=True):
            x, y = frame.to_px(index[plane.column_axis], index[plane.row_axis])
            shapes.append(_dot(row, content, x, y, r=5.0, style="dot"))
            labels.append(_number(row.id, x, y - 6, 5.0, frame, "dot-text"))
        pictures.append(
            drawing.Picture(
                width=frame.width_px,
                height=frame.height_px,
                alt=f"Brain outline, {plane.name} projection, with {len(rows)} reported microbleeds",
                shapes=tuple(shapes),
                labels=tuple(labels),
                caption=plane.name.capitalize(),
            )
        )
    return tuple(pictures)


def _dot(
    row: DetectionRow, content: ReportContent, x: float, y: float, r: float, style: str
) -> drawing.Shape:
    zone = shown_zone(row, content)
    place = location_text(row, content.regions_trusted)
    return drawing.Shape(
        drawing.glyph(zone, x, y, r),
        f"{style} z-{zone} {row.category}",
        title=f"{row.id}: {row.category}, {place}, score {row.score:.2f}",
        href=f"#candidate-{row.id}",
    )


def slabs(
    content: ReportContent, rows: Sequence[DetectionRow], windows: drawing.Windows
) -> tuple[drawing.Picture, ...]:
    """Minimum intensity projections of axial slabs that cover the brain, from the vertex down.

    Voxels outside the brain mask are ignored, because dark skull and air would hide everything.
    """
    mask, data = content.brain_mask, content.swi.data
    bounds = drawing.mask_bounds(mask)
    frame = drawing.fitted_frame(drawing.AXIAL, content.swi.spacing_mm, bounds, MOSAIC_MM_PER_PX)
    start, stop = bounds[2]
    edges = np.linspace(start, stop, min(SLABS, stop - start) + 1).round().astype(int)
    indices = voxel_indices(content, rows)
    # a row just above or below the mask belongs to the outermost slab
    slab_of_row = np.clip(np.searchsorted(edges, indices[:, 2] + 0.5, side="right") - 1, 0, len(edges) - 2)
    pictures = []
    for n in reversed(range(len(edges) - 1)):
        z = slice(edges[n], edges[n + 1])
        inside = mask[:, :, z]
        lowest = np.min(data[:, :, z], axis=2, initial=np.inf, where=inside)
        lowest = np.where(inside.any(axis=2), lowest, windows.swi[0])
        in_slab = [i for i in range(len(rows)) if slab_of_row[i] == n]
        shapes, labels = [], list(drawing.edge_labels(frame))
        for i in in_slab:
            x, y = frame.to_px(indices[i, 0], indices[i, 1])
            r = (rows[i].diameter_mm / 2 + 3.0) / frame.mm_per_px
            ring = _dot(rows[i], content, x, y, r, style="ring")
            shapes += [drawing.Shape(ring.d, "halo"), ring]
            labels.append(_number(rows[i].id, x, y - r + 3, r, frame, "ring-text"))
        # from face to face of the slices, not from center to center
        bottom_mm, top_mm = (_z_mm(content, edge - 0.5) for edge in edges[n : n + 2])
        height = f"z {bottom_mm:.0f} to {top_mm:.0f} mm"
        thickness = (edges[n + 1] - edges[n]) * content.swi.spacing_mm[2]
        pictures.append(
            drawing.Picture(
                width=frame.width_px,
                height=frame.height_px,
                uri=drawing.data_uri(
                    drawing.to_gray(drawing.sample_plane(lowest, frame), *windows.swi), quality=82
                ),
                alt=f"Minimum intensity projection, {height}, {len(in_slab)} reported",
                shapes=tuple(shapes),
                labels=tuple(labels),
                caption=f"{height} ({thickness:.0f} mm)",
            )
        )
    return tuple(pictures)


def _z_mm(content: ReportContent, z: float) -> float:
    """RAS z of a slice in mm, at the center of the grid (an oblique slice has no single height)."""
    x, y = (n / 2 for n in content.swi.shape[:2])
    return float((content.swi.affine @ np.array([x, y, z, 1.0]))[2])


def quality_mosaic(content: ReportContent, windows: drawing.Windows) -> tuple[drawing.Picture, ...]:
    """Axial slices through the brain with the outline of its mask and of the regions."""
    bounds = drawing.mask_bounds(content.brain_mask)
    start, stop = bounds[2]
    count = min(MOSAIC_SLICES, stop - start)
    frame = drawing.fitted_frame(drawing.AXIAL, content.swi.spacing_mm, bounds, MOSAIC_MM_PER_PX)
    # middle slices of equal slabs: the first and the last slice of the brain show next to nothing
    places = (start + (np.arange(count) + 0.5) * (stop - start) / count).astype(int)
    pictures = []
    for z in places[::-1]:
        gray = drawing.to_gray(drawing.sample_plane(content.swi.data[:, :, z], frame), *windows.swi)
        brain = _inside(content.brain_mask[:, :, z], frame)
        pictures.append(
            drawing.Picture(
                width=frame.width_px,
                height=frame.height_px,
                uri=drawing.data_uri(gray, quality=82),
                alt=f"Axial SWI at z {_z_mm(content, z):.0f} mm with outlines of brain mask and regions",
                shapes=(
                    *_region_shapes(content, z, frame),
                    drawing.Shape(drawing.outline(brain), "brain-outline"),
                ),
                labels=drawing.edge_labels(frame),
                caption=f"z {_z_mm(content, z):.0f} mm",
            )
        )
    return tuple(pictures)


def _inside(mask_slice: np.ndarray, frame: drawing.Frame) -> np.ndarray:
    """A slice of a mask as a picture, bool."""
    return np.nan_to_num(drawing.sample_plane(mask_slice, frame)) > 0.5


def _number(number: int, x: float, y: float, r: float, frame: drawing.Frame, style: str) -> drawing.Label:
    """A candidate's number at height y beside its mark at x, on the side that has room."""
    if x + r + 16 < frame.width_px:
        return drawing.Label(x + r + 2, y, str(number), style)
    return drawing.Label(x - r - 2, y, str(number), f"{style} end")


def _without_sulci(region: np.ndarray) -> np.ndarray:
    """The map with sulcal CSF assigned to the nearest region: otherwise every sulcus would be outlined."""
    sulcal = region == Region.SULCAL_CSF
    named = ~sulcal & (region != Region.OUTSIDE)
    if not sulcal.any() or not named.any():
        return region
    nearest = ndimage.distance_transform_edt(~named, return_distances=False, return_indices=True)
    return np.where(sulcal, region[tuple(nearest)], region)


def _region_shapes(content: ReportContent, z: int, frame: drawing.Frame) -> list[drawing.Shape]:
    if content.region_code is None:
        return []
    region = _without_sulci(region_of(content.region_code[:, :, z]))
    shapes = []
    for label in DRAWN_REGIONS:
        here = region == label
        if here.any():
            name = label.name.lower()
            border = drawing.outline(_inside(here, frame), tolerance_px=1.6)
            shapes.append(drawing.Shape(border, f"region r-{name}", title=region_title(name)))
    return [shape for shape in shapes if shape.d]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionPictures:
    """The pictures of one detection."""

    row: DetectionRow
    context: drawing.Picture | None  # the whole axial slice with a frame around the thumbnail's field of view
    swi: tuple[drawing.Picture, ...]  # axial, coronal, sagittal; only axial for a rejected candidate
    phase: tuple[drawing.Picture, ...]  # the same planes; empty without a phase image


class ThumbnailMaker:
    """Draws the detections of one subject; holds the data that all pictures share."""

    def __init__(self, content: ReportContent, windows: drawing.Windows) -> None:
        self._content = content
        self._windows = windows
        self._spacing = content.swi.spacing_mm
        self._bounds = drawing.mask_bounds(content.brain_mask)

    def full(self, row: DetectionRow) -> DetectionPictures:
        """All pictures of a kept detection."""
        return DetectionPictures(
            row=row,
            context=self._context(row),
            swi=tuple(self._tile(row, "SWI", plane) for plane in drawing.PLANES),
            phase=()
            if self._content.phase is None
            else tuple(self._tile(row, "Phase", plane) for plane in drawing.PLANES),
        )

    def brief(self, row: DetectionRow) -> DetectionPictures:
        """The axial SWI thumbnail of a rejected candidate."""
        return DetectionPictures(
            row=row, context=None, swi=(self._tile(row, "SWI", drawing.AXIAL),), phase=()
        )

    def _tile(self, row: DetectionRow, modality: str, plane: drawing.Plane) -> drawing.Picture:
        # SWI with a cubic spline, phase linearly: higher orders ring at wraps
        center = voxel_indices(self._content, [row])[0]
        frame = drawing.centered_frame(plane, self._spacing, center, FIELD_OF_VIEW_MM, THUMBNAIL_PX)
        if modality == "SWI":
            data, window, order = self._content.swi.data, self._windows.swi, 3
        else:
            assert self._content.phase is not None
            data, window, order = self._content.phase.data, self._windows.phase, 1
        picture = drawing.sample_plane(
            drawing.take_plane(data, plane, center[plane.through_axis]), frame, order
        )
        x, y = frame.to_px(center[plane.column_axis], center[plane.row_axis])
        gap_x, gap_y = (self._gap_mm(row, spacing) / frame.mm_per_px for spacing in frame.spacing_mm)
        marker = drawing.crosshair(x, y, (gap_x, gap_y), arm=3.0 / frame.mm_per_px)
        bar, bar_text = drawing.scale_bar(frame, 5.0)
        return drawing.Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=drawing.data_uri(drawing.to_gray(picture, *window)),
            alt=f"{modality}, {plane.name} plane, {FIELD_OF_VIEW_MM:g} mm around candidate {row.id}",
            shapes=(drawing.Shape(marker, "halo"), drawing.Shape(marker, f"mark {row.category}"), bar),
            labels=(*drawing.edge_labels(frame), bar_text),
        )

    @staticmethod
    def _gap_mm(row: DetectionRow, spacing_mm: float) -> float:
        """Half the marker's gap: larger than the lesion, even in thick slices, but within the picture."""
        return min(max(row.diameter_mm / 2, 1.0) + 0.7 + spacing_mm, 0.42 * FIELD_OF_VIEW_MM)

    def _context(self, row: DetectionRow) -> drawing.Picture:
        center = voxel_indices(self._content, [row])[0]
        frame = drawing.fitted_frame(
            drawing.AXIAL, self._spacing, self._bounds, CONTEXT_MM_PER_PX, margin_mm=6.0
        )
        picture = drawing.sample_plane(
            drawing.take_plane(self._content.swi.data, drawing.AXIAL, center[2]), frame
        )
        x, y = frame.to_px(center[0], center[1])
        half = FIELD_OF_VIEW_MM / 2 / frame.mm_per_px
        # the square symbol reaches 0.9 r from its center
        box = drawing.glyph("none", x, y, half / 0.9)
        return drawing.Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=drawing.data_uri(drawing.to_gray(picture, *self._windows.swi)),
            alt=f"Axial SWI slice through candidate {row.id}; the square is the thumbnails' field of view",
            shapes=(drawing.Shape(box, "halo"), drawing.Shape(box, "mark")),
            labels=drawing.edge_labels(frame),
        )
