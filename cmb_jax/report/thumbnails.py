"""The pictures of one detection: where it is in its slice, and three planes of SWI and phase around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmb_jax.core.detection import DetectionRow
from cmb_jax.report.content import ReportContent
from cmb_jax.report.shapes import Picture, Shape, crosshair, edge_labels, glyph, scale_bar
from cmb_jax.report.slices import (
    AXIAL,
    PLANES,
    Plane,
    Windows,
    centered_frame,
    data_uri,
    fitted_frame,
    mask_bounds,
    sample_plane,
    take_plane,
    to_gray,
)

FIELD_OF_VIEW_MM = 20.0
THUMBNAIL_PX = 160
CONTEXT_MM_PER_PX = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionPictures:
    """The pictures of one detection."""

    row: DetectionRow
    context: Picture | None  # the whole axial slice with a frame around the thumbnail's field of view
    swi: tuple[Picture, ...]  # axial, coronal, sagittal; a rejected candidate has the axial one alone
    phase: tuple[Picture, ...]  # the same planes; empty without a phase image


class ThumbnailMaker:
    """Draws detections of one subject; holds what all of them share."""

    def __init__(self, content: ReportContent, windows: Windows) -> None:
        self._content = content
        self._windows = windows
        self._spacing = content.swi.spacing_mm
        self._to_index = np.linalg.inv(content.swi.affine)
        self._bounds = mask_bounds(content.brain_mask)

    def center_index(self, row: DetectionRow) -> np.ndarray:
        """Continuous voxel index (x, y, z) of a row on swi's RAS grid, from its RAS millimeters."""
        return (self._to_index @ np.array([row.x_mm, row.y_mm, row.z_mm, 1.0]))[:3]

    def full(self, row: DetectionRow) -> DetectionPictures:
        """All pictures of a kept detection."""
        return DetectionPictures(
            row=row,
            context=self._context(row),
            swi=self._strip(row, "SWI", PLANES),
            phase=self._strip(row, "Phase", PLANES) if self._content.phase is not None else (),
        )

    def brief(self, row: DetectionRow) -> DetectionPictures:
        """The axial SWI thumbnail of a rejected candidate."""
        return DetectionPictures(row=row, context=None, swi=self._strip(row, "SWI", (AXIAL,)), phase=())

    def _strip(self, row: DetectionRow, modality: str, planes: Sequence[Plane]) -> tuple[Picture, ...]:
        return tuple(self._tile(row, modality, plane) for plane in planes)

    def _tile(self, row: DetectionRow, modality: str, plane: Plane) -> Picture:
        center = self.center_index(row)
        frame = centered_frame(plane, self._spacing, center, FIELD_OF_VIEW_MM, THUMBNAIL_PX)
        if modality == "SWI":
            data, window, order = self._content.swi.data, self._windows.swi, 3
        else:
            assert self._content.phase is not None
            data, window, order = self._content.phase.data, self._windows.phase, 1
        picture = sample_plane(take_plane(data, plane, center[plane.through_axis]), frame, order)
        x, y = frame.to_px(center[plane.column_axis], center[plane.row_axis])
        gap_x, gap_y = (self._gap_mm(row, spacing) / frame.mm_per_px for spacing in frame.spacing_mm)
        marker = crosshair(x, y, (gap_x, gap_y), arm=3.0 / frame.mm_per_px)
        bar, bar_text = scale_bar(frame, 5.0)
        return Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=data_uri(to_gray(picture, *window)),
            alt=f"{modality}, {plane.name} plane, {FIELD_OF_VIEW_MM:g} mm around candidate {row.id}",
            shapes=(Shape(marker, "halo"), Shape(marker, f"mark {row.category}"), bar),
            labels=(*edge_labels(frame), bar_text),
        )

    @staticmethod
    def _gap_mm(row: DetectionRow, spacing_mm: float) -> float:
        """Half the marker's gap: clear of the lesion, which thick slices stretch, yet in the picture."""
        return min(max(row.diameter_mm / 2, 1.0) + 0.7 + spacing_mm, 0.42 * FIELD_OF_VIEW_MM)

    def _context(self, row: DetectionRow) -> Picture:
        center = self.center_index(row)
        frame = fitted_frame(AXIAL, self._spacing, self._bounds, CONTEXT_MM_PER_PX, margin_mm=6.0)
        picture = sample_plane(take_plane(self._content.swi.data, AXIAL, center[2]), frame)
        x, y = frame.to_px(center[0], center[1])
        half = FIELD_OF_VIEW_MM / 2 / frame.mm_per_px
        box = glyph("none", x, y, half / 0.9)
        return Picture(
            width=frame.width_px,
            height=frame.height_px,
            uri=data_uri(to_gray(picture, *self._windows.swi)),
            alt=f"Axial SWI slice through candidate {row.id}; the square is the thumbnails' field of view",
            shapes=(Shape(box, "halo"), Shape(box, "mark")),
            labels=edge_labels(frame),
        )
